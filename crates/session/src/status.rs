//! What a session says of itself: the one form behind `stead status`, `stead list` and their JSON.

use serde::{Deserialize, Serialize};

/// How well a session works. The numbers are `stead status`'s exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy = 0,
    /// Some links are lost, or one has not been heard of for longer than three pings.
    Degraded = 1,
    /// No link is up: open connections stand still, new ones wait.
    Lost = 2,
}

/// A session and everything it does, each observed fact with its age.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// 32 hex digits.
    pub session: String,
    pub release: String,
    pub health: Health,
    /// Why `health` is not healthy, for the user.
    pub reason: Option<String>,
    pub context: String,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    pub agent: String,
    /// Process id of the client.
    pub client_pid: u32,
    pub command: Vec<String>,
    pub command_pid: Option<u32>,
    pub age_seconds: u64,
    pub attachments: Vec<Attachment>,
    pub links: Vec<Link>,
    /// What the links through the API server are kept to; `null`: they carry what they can.
    pub api_rate: Option<ApiRate>,
    /// Of the command, on this machine's localhost.
    pub ports: Vec<Port>,
    pub flows: Flows,
}

/// What the session does to one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// `deployment/web`.
    pub workload: String,
    pub namespace: String,
    /// `observe` in this release.
    pub kind: String,
}

impl Attachment {
    /// By its whole name, or without the kind.
    pub fn is_called(&self, name: &str) -> bool {
        self.workload == name || self.workload.split_once('/').is_some_and(|(_, short)| short == name)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    pub number: u32,
    pub rung: String,
    pub up: bool,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Smoothed; absent until a PING was answered.
    pub round_trip_us: Option<u64>,
    /// Since anything was received.
    pub heard_ms_ago: Option<u64>,
    /// Why the link is down, for the user.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiRate {
    /// Each way, all links together.
    pub bytes_per_second: u64,
    /// Since its answers take longer than usual; else by `--api-rate`.
    pub slow_api_server: bool,
}

/// A port that the command listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub port: u16,
    /// Its number here; the same, unless that one is taken.
    pub machine_port: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    pub open: u64,
    /// Asked of the pod since the session began.
    pub through_pod: u64,
    /// Asked of this machine itself, since they lead outside the cluster.
    pub by_machine: u64,
    /// Of all these, those that the far side refused or that could not be made.
    pub refused: u64,
}

/// A link that has not been heard of for this long is in doubt: three PING intervals of 5 s and a second.
const SILENT_MS: u64 = 16_000;

/// Health as it follows from the links alone.
pub fn health(links: &[Link]) -> (Health, Option<String>) {
    let up: Vec<&Link> = links.iter().filter(|l| l.up).collect();
    if up.is_empty() {
        let why = links.iter().find_map(|l| l.error.clone()).unwrap_or_else(|| "no link is up yet".to_owned());
        return (Health::Lost, Some(why));
    }
    if let Some(down) = links.iter().find(|l| !l.up) {
        let why = down.error.as_deref().unwrap_or("not connected");
        return (Health::Degraded, Some(format!("link {} is down: {why}", down.number)));
    }
    if let Some(silent) = up.iter().find(|l| l.heard_ms_ago.is_some_and(|ms| ms > SILENT_MS)) {
        let seconds = silent.heard_ms_ago.unwrap_or_default() / 1000;
        return (Health::Degraded, Some(format!("link {} has been silent for {seconds} s", silent.number)));
    }
    (Health::Healthy, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(number: u32, up: bool, heard_ms_ago: u64) -> Link {
        Link {
            number,
            rung: "proxy".into(),
            up,
            sent_bytes: 0,
            received_bytes: 0,
            round_trip_us: None,
            heard_ms_ago: Some(heard_ms_ago),
            error: (!up).then(|| "connection reset".into()),
        }
    }

    #[test]
    fn health_turns_with_each_links_state() {
        assert_eq!(health(&[link(0, true, 10), link(1, true, 10)]), (Health::Healthy, None));
        let (health_one_down, why) = health(&[link(0, true, 10), link(1, false, 10)]);
        assert_eq!(health_one_down, Health::Degraded);
        assert_eq!(why.as_deref(), Some("link 1 is down: connection reset"));
        assert_eq!(health(&[link(0, true, 17_000), link(1, true, 10)]).0, Health::Degraded);
        assert_eq!(health(&[link(0, false, 10), link(1, false, 10)]).0, Health::Lost);
        assert_eq!(health(&[]).0, Health::Lost);
    }
}
