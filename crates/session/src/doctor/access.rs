//! The kubeconfig: which files, which context, and whether its credentials can be used at all. Asks nobody.

use cluster::{Context, Credential, Outline};

use super::{Area, Finding, Verdict};

/// A certificate that ends sooner is worth a word.
const SOON: i64 = 24 * 3600;

/// Exit code of what is wrong with a kubeconfig.
const KUBECONFIG: u8 = 65;

/// `now` in seconds since 1970.
pub(super) fn judge(outline: &Outline, now: i64) -> Vec<Finding> {
    let skip = |check| Finding::skip(Area::Kubeconfig, check, "there is no kubeconfig to look into");
    let file = match &outline.files {
        Ok(files) => Finding::ok(Area::Kubeconfig, "kubeconfig", files),
        Err(error) => Finding::fail(Area::Kubeconfig, "kubeconfig", error.clone()),
    };
    match &outline.context {
        None => vec![file, skip("context"), skip("credentials")],
        Some(Err(error)) => {
            let credentials = Finding::skip(Area::Kubeconfig, "credentials", "no context was chosen");
            vec![file, Finding::fail(Area::Kubeconfig, "context", error.clone()), credentials]
        }
        Some(Ok(context)) => vec![file, judge_context(context), judge_credential(context, now)],
    }
}

fn judge_context(context: &Context) -> Finding {
    let Context { name, server, namespace, user, acts_as, .. } = context;
    let acting = acts_as.as_ref().map(|name| format!(" acting as {name}")).unwrap_or_default();
    let found = format!("{name}: {server}, namespace {namespace}, user {user}{acting}");
    if !server.is_empty() {
        return Finding::ok(Area::Kubeconfig, "context", found);
    }
    fail("context", format!("{name} names no cluster with a server"))
        .fix(format!("`kubectl --context {name} config view --minify` shows what it refers to"))
}

fn judge_credential(context: &Context, now: i64) -> Finding {
    let ok = |found: String| Finding::ok(Area::Kubeconfig, "credentials", found);
    let (failed, fix) = match &context.credential {
        Credential::Token => return ok("a token".to_owned()),
        Credential::Password => return ok("a user name and password".to_owned()),
        Credential::TokenFile { path, unreadable: None } => return ok(format!("a token in {}", path.display())),
        Credential::Exec { command, found: true, .. } => return ok(format!("the plugin {command}")),
        Credential::Certificate { ends: None, unreadable: None } => return ok("a client certificate".to_owned()),
        Credential::Certificate { ends: Some(end), unreadable: None } if *end > now => {
            return certificate_left(*end - now);
        }
        Credential::Certificate { ends: Some(end), unreadable: None } => {
            let ended = format!("the client certificate ended {} ago", duration(now - *end));
            (ended, "renew it, or log in again as your cluster's documentation says".to_owned())
        }
        Credential::Certificate { unreadable: Some(why), .. } => {
            let failed = format!("the client certificate cannot be used: {why}");
            (failed, "check client-certificate and client-key of the user entry".to_owned())
        }
        Credential::TokenFile { path, unreadable: Some(why) } => {
            (format!("the token's file {} cannot be read: {why}", path.display()), "log in again".to_owned())
        }
        Credential::Exec { command, install_hint, .. } => {
            let install = install_hint.clone().unwrap_or_else(|| format!("install {command}, or put it in PATH"));
            (format!("the plugin {command:?}, which gives the credential, is not found"), install)
        }
        Credential::Missing => {
            let failed = format!("the user entry {:?} is missing or empty", context.user);
            (failed, "log in, or name a token or client certificate".to_owned())
        }
        Credential::Provider(name) => {
            let failed = format!("the credential comes from auth-provider {name}, which kubectl has given up too");
            (failed, "use the exec plugin that took its place".to_owned())
        }
    };
    fail("credentials", failed).fix(fix)
}

fn certificate_left(seconds: i64) -> Finding {
    let found = format!("a client certificate that ends in {}", duration(seconds));
    if seconds >= SOON {
        return Finding::ok(Area::Kubeconfig, "credentials", found);
    }
    Finding::warn(Area::Kubeconfig, "credentials", found)
        .fix("renew it soon: a session goes on with the new one once the kubeconfig has it")
}

fn fail(check: &str, found: String) -> Finding {
    Finding { exit_code: KUBECONFIG, ..Finding::new(Area::Kubeconfig, check, Verdict::Fail, found) }
}

/// In the largest unit of which there are two.
fn duration(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{all_ok, only_red};

    const NOW: i64 = 1_800_000_000;

    fn with(credential: Credential) -> Outline {
        let context = Context {
            name: "dev".into(),
            server: "https://k".into(),
            namespace: "team".into(),
            user: "u".into(),
            acts_as: None,
            credential,
        };
        Outline { files: Ok("/home/dev/.kube/config".into()), context: Some(Ok(context)) }
    }

    fn certificate(seconds: i64) -> Outline {
        with(Credential::Certificate { ends: Some(NOW + seconds), unreadable: None })
    }

    #[test]
    fn usable_credentials_are_ok() {
        let plugin = Credential::Exec { command: "login".into(), found: true, install_hint: None };
        for outline in [with(Credential::Token), with(plugin), certificate(SOON)] {
            assert!(all_ok(&judge(&outline, NOW)), "{:?}", judge(&outline, NOW));
        }
    }

    #[test]
    fn a_certificate_that_ended_turns_red_alone_and_one_that_ends_soon_warns() {
        let findings = judge(&certificate(-7200), NOW);
        let red = only_red(&findings);
        assert_eq!((red.check.as_str(), red.verdict, red.exit_code), ("credentials", Verdict::Fail, 65));
        assert_eq!(red.found, "the client certificate ended 2 hours ago");
        let findings = judge(&certificate(60), NOW);
        assert_eq!(only_red(&findings).verdict, Verdict::Warn);
    }

    #[test]
    fn each_credential_that_cannot_be_used_turns_red_alone_with_a_fix() {
        let hint = Some("brew install login".to_owned());
        for credential in [
            Credential::Missing,
            Credential::Exec { command: "login".into(), found: false, install_hint: hint },
            Credential::TokenFile { path: "/t".into(), unreadable: Some("no".into()) },
            Credential::Certificate { ends: None, unreadable: Some("no".into()) },
            Credential::Provider("gcp".into()),
        ] {
            let findings = judge(&with(credential), NOW);
            let red = only_red(&findings);
            assert_eq!((red.check.as_str(), red.exit_code), ("credentials", 65));
            assert!(red.fix.is_some());
        }
    }

    #[test]
    fn a_context_without_a_server_turns_red_alone() {
        let mut outline = with(Credential::Token);
        if let Some(Ok(context)) = &mut outline.context {
            context.server.clear();
        }
        let findings = judge(&outline, NOW);
        assert_eq!(only_red(&findings).check, "context");
    }
}
