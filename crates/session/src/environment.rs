//! Pure: the command's environment from the machine's and the container's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
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

/// True for a variable of the container that the command gets.
fn is_taken(name: &[u8]) -> bool {
    let is = |list: &[&str]| list.iter().any(|n| n.as_bytes() == name);
    !name.is_empty()
        && !name.contains(&b'=')
        && !is(&MACHINES_OWN)
        && !is(&STEERING)
        && !PREFIXES.iter().any(|p| name.starts_with(p.as_bytes()))
}

/// The machine's environment, over it what the container has (its live process before what the kubelet resolved), over
/// it `ours` (`STEAD_…`).
pub(crate) fn compose(
    machine: impl IntoIterator<Item = (OsString, OsString)>,
    container: &Description,
    ours: impl IntoIterator<Item = (&'static str, String)>,
) -> Vec<(OsString, OsString)> {
    let mut merged: BTreeMap<OsString, OsString> = machine.into_iter().collect();
    for EnvEntry { name, value } in container.kubelet_env.iter().chain(&container.process_env) {
        if is_taken(name) && !value.contains(&0) {
            merged.insert(OsStr::from_bytes(name).to_owned(), OsString::from_vec(value.clone()));
        }
    }
    merged.extend(ours.into_iter().map(|(name, value)| (name.into(), value.into())));
    merged.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, &str)]) -> Vec<EnvEntry> {
        list.iter().map(|(n, v)| EnvEntry { name: n.as_bytes().to_vec(), value: v.as_bytes().to_vec() }).collect()
    }

    fn compose_text(machine: &[(&str, &str)], kubelet: &[(&str, &str)], process: &[(&str, &str)]) -> Vec<String> {
        let container =
            Description { kubelet_env: entries(kubelet), process_env: entries(process), ..Description::default() };
        compose(machine.iter().map(|(n, v)| (n.into(), v.into())), &container, [("STEAD_POD", "web-1".to_owned())])
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
    fn names_and_values_that_no_process_could_have_are_left_out() {
        assert_eq!(compose_text(&[], &[("", "x"), ("A=B", "x"), ("C", "x\0y")], &[]), ["STEAD_POD=web-1"]);
    }
}
