//! Pure: the command's environment from the machine's and the container's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use wire::{Description, EnvEntry};

/// Variables that stay the machine's whatever the container says: they name places and people of this machine, its
/// terminal and display, or a toolchain that only the image has.
const MACHINES_OWN: [&str; 44] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "OLDPWD",
    "TMPDIR",
    "TMP",
    "TEMP",
    "MAIL",
    "TERM",
    "TERMINFO",
    "COLORTERM",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "DBUS_SESSION_BUS_ADDRESS",
    "SHLVL",
    "_",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "KUBECONFIG",
    "DOCKER_HOST",
    "JAVA_HOME",
    "GOROOT",
    "GOPATH",
    "GOBIN",
    "GOFLAGS",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "NVM_DIR",
    "NODE_PATH",
    "CLASSPATH",
    "MANPATH",
    "INFOPATH",
    "CPATH",
    "LIBRARY_PATH",
    "PKG_CONFIG_PATH",
    "HOSTALIASES",
    "RES_OPTIONS",
];

/// Variables that steer loaders, shells and interpreters: a hostile or careless pod must not run code on the machine.
const STEERING: [&str; 25] = [
    "NODE_OPTIONS",
    "NODE_REPL_EXTERNAL_MODULE",
    "BASH_ENV",
    "ENV",
    "PROMPT_COMMAND",
    "PS4",
    "IFS",
    "SHELLOPTS",
    "BASHOPTS",
    "CDPATH",
    "GLOBIGNORE",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "LOCPATH",
    "NLSPATH",
    "RUBYOPT",
    "RUBYLIB",
    "ZDOTDIR",
    "DOTNET_STARTUP_HOOKS",
    "GIT_SSH_COMMAND",
    "GIT_EXEC_PATH",
    "LESSOPEN",
];

const PREFIXES: [&str; 12] = [
    "LD_",
    "DYLD_",
    "XDG_",
    "SSH_",
    "PYTHON",
    "PERL",
    "MALLOC_",
    "BASH_FUNC_",
    "CORECLR_",
    "COR_",
    "STEAD_",
    "NPM_CONFIG_",
];

/// What the user wants otherwise (`--env-include`, `--env-exclude`): names, or beginnings of names with a `*` behind.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Taken from the container although they would stay the machine's.
    pub include: Vec<String>,
    /// Not taken from the container. The last word.
    pub exclude: Vec<String>,
}

impl Choice {
    /// True for a variable of the container that the command gets.
    fn takes(&self, name: &[u8]) -> bool {
        let is = |list: &[&str]| list.iter().any(|n| n.as_bytes() == name);
        let is_possible = !name.is_empty() && !name.contains(&b'=');
        let stays = is(&MACHINES_OWN) || is(&STEERING) || PREFIXES.iter().any(|p| name.starts_with(p.as_bytes()));
        is_possible && !fits(&self.exclude, name) && (!stays || fits(&self.include, name))
    }
}

fn fits(patterns: &[String], name: &[u8]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning.as_bytes()),
        None => name == pattern.as_bytes(),
    })
}

/// The values of the container's variables, as far as they are text.
pub(crate) fn values(container: &Description) -> impl Iterator<Item = &str> {
    let entries = container.kubelet_env.iter().chain(&container.process_env);
    entries.filter_map(|entry| std::str::from_utf8(&entry.value).ok())
}

/// Addresses of Services, as the kubelet puts those of the namespace into every container.
pub(crate) fn service_hosts(container: &Description) -> impl Iterator<Item = IpAddr> {
    let hosts = container.kubelet_env.iter().filter(|it| it.name.ends_with(b"_SERVICE_HOST"));
    hosts.filter_map(|it| std::str::from_utf8(&it.value).ok()?.parse().ok())
}

/// What the command gets beside the machine's environment, by name: what the container has (its live process before what
/// the kubelet resolved), over it `ours` (`STEAD_…`).
pub(crate) fn of_the_pod(
    container: &Description,
    choice: &Choice,
    ours: impl IntoIterator<Item = (&'static str, String)>,
) -> Vec<(OsString, OsString)> {
    let mut merged = BTreeMap::new();
    for EnvEntry { name, value } in container.kubelet_env.iter().chain(&container.process_env) {
        if choice.takes(name) && !value.contains(&0) {
            merged.insert(OsStr::from_bytes(name).to_owned(), OsString::from_vec(value.clone()));
        }
    }
    merged.extend(ours.into_iter().map(|(name, value)| (name.into(), value.into())));
    merged.into_iter().collect()
}

/// The pod's variables over the machine's.
pub(crate) fn compose(
    machine: impl IntoIterator<Item = (OsString, OsString)>,
    of_the_pod: &[(OsString, OsString)],
) -> Vec<(OsString, OsString)> {
    let mut merged: BTreeMap<OsString, OsString> = machine.into_iter().collect();
    merged.extend(of_the_pod.iter().cloned());
    merged.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, &str)]) -> Vec<EnvEntry> {
        list.iter().map(|(n, v)| EnvEntry { name: n.as_bytes().to_vec(), value: v.as_bytes().to_vec() }).collect()
    }

    fn compose_text(machine: &[(&str, &str)], kubelet: &[(&str, &str)], process: &[(&str, &str)]) -> Vec<String> {
        chosen_text(machine, kubelet, process, &Choice::default())
    }

    fn chosen_text(
        machine: &[(&str, &str)],
        kubelet: &[(&str, &str)],
        process: &[(&str, &str)],
        choice: &Choice,
    ) -> Vec<String> {
        let container =
            Description { kubelet_env: entries(kubelet), process_env: entries(process), ..Description::default() };
        let pod = of_the_pod(&container, choice, [("STEAD_POD", "web-1".to_owned())]);
        compose(machine.iter().map(|(n, v)| (n.into(), v.into())), &pod)
            .into_iter()
            .map(|(n, v)| format!("{}={}", n.display(), v.display()))
            .collect()
    }

    #[test]
    fn the_live_process_wins_over_the_kubelet_and_both_over_the_machine() {
        let env = compose_text(
            &[("A", "machine"), ("B", "machine")],
            &[("A", "kubelet"), ("C", "kubelet")],
            &[("C", "live")],
        );
        assert_eq!(env, ["A=kubelet", "B=machine", "C=live", "STEAD_POD=web-1"]);
    }

    #[test]
    fn loaders_interpreters_and_places_stay_the_machines() {
        let hostile = [
            ("LD_PRELOAD", "/evil.so"),
            ("PYTHONSTARTUP", "/evil.py"),
            ("BASH_ENV", "/evil.sh"),
            ("NODE_OPTIONS", "--require /evil.js"),
            ("JAVA_TOOL_OPTIONS", "-javaagent:/evil.jar"),
            ("BASH_FUNC_ls%%", "() { evil; }"),
            ("STEAD_POD", "other"),
            ("XDG_RUNTIME_DIR", "/tmp"),
        ];
        let env =
            compose_text(&[("PATH", "/usr/bin"), ("HOME", "/home/dev")], &hostile, &[("PATH", "/app"), ("HOME", "/")]);
        assert_eq!(env, ["HOME=/home/dev", "PATH=/usr/bin", "STEAD_POD=web-1"]);
    }

    #[test]
    fn the_user_may_take_more_or_less() {
        let (machine, container) =
            ([("PATH", "/usr/bin")], [("PATH", "/app"), ("LD_A", "1"), ("LD_B", "2"), ("C", "3")]);
        let patterns = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let choice = Choice { include: patterns(&["PATH", "LD_*"]), exclude: patterns(&["LD_B", "C", "STEAD_*"]) };
        let env = chosen_text(&machine, &container, &[], &choice);
        assert_eq!(env, ["LD_A=1", "PATH=/app", "STEAD_POD=web-1"]);
    }

    #[test]
    fn names_and_values_that_no_process_could_have_are_left_out() {
        assert_eq!(compose_text(&[], &[("", "x"), ("A=B", "x"), ("C", "x\0y")], &[]), ["STEAD_POD=web-1"]);
    }

    #[test]
    fn addresses_of_services_are_known_by_the_kubelets_variables() {
        let entry = |name: &str, value: &str| EnvEntry { name: name.into(), value: value.into() };
        let kubelet_env = vec![
            entry("DB_SERVICE_HOST", "10.96.3.4"),
            entry("DB_SERVICE_PORT", "5432"),
            entry("HOME_SERVICE_HOST", "not an address"),
            entry("KUBERNETES_SERVICE_HOST", "fd00:96::1"),
        ];
        let description = Description { kubelet_env, ..Description::default() };
        let found: Vec<String> = service_hosts(&description).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["10.96.3.4", "fd00:96::1"]);
    }
}
