//! What the command is, finds, and how it ends (acceptance R11).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use crate::support::{LAB, as_user, finish, run};

/// A directory the ordinary user may enter.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    directory
}

fn script(directory: &tempfile::TempDir, text: &str) -> String {
    let path = directory.path().join("script");
    std::fs::write(&path, text).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn exit_codes_and_signals_are_the_commands() {
    assert_eq!(run(&["true"]).0, 0);
    assert_eq!(run(&["sh", "-c", "exit 7"]).0, 7);
    assert_eq!(run(&["sh", "-c", "kill -TERM $$"]).0, 128 + 15);
    // A real-time signal, which many a wrapper does not know.
    assert_eq!(run(&["sh", "-c", "kill -40 $$"]).0, 128 + 40);
}

#[test]
fn a_command_that_is_not_there_is_not_found() {
    let directory = directory();
    for name in ["no-such-command-here", "/no/such/file", "", "./none"] {
        let (code, _, err) = run(&[name]);
        assert_eq!(code, 127, "{name}: {err}");
    }
    drop(directory);
}

#[test]
fn a_file_that_is_no_program_cannot_be_executed() {
    let directory = directory();
    assert_eq!(run(&["/etc/passwd"]).0, 126);
    assert_eq!(run(&["/etc"]).0, 126);
    assert_eq!(run(&[&script(&directory, "no first line that says how")]).0, 126);
    assert_eq!(run(&[&script(&directory, "#!/no/such/interpreter\n")]).0, 126);
}

#[test]
fn a_working_directory_is_entered_and_a_missing_one_is_named() {
    let cwd = |path: &str| finish(as_user(&["run", "--cwd", path, "--", "pwd"]).spawn().expect("start"));
    assert_eq!(cwd("/usr").1, "/usr\n");
    let (code, _, err) = cwd("/no/such/place");
    assert_eq!(code, 70);
    assert!(err.contains("/no/such/place"), "{err}");
}

#[test]
fn a_file_is_covered_inside_only_and_cannot_be_written() {
    let directory = directory();
    let file = directory.path().join("real.conf");
    std::fs::write(&file, "outside").expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("mode");
    let link = directory.path().join("link.conf");
    symlink("real.conf", &link).expect("link");
    let (link, file) = (link.to_str().expect("UTF-8"), file.to_str().expect("UTF-8"));
    let cover = format!("{link}=inside");
    let look = r#"cat "$1" "$2"; echo more 2>/dev/null > "$1" || echo " read-only""#;
    let arguments =
        ["run", "--file", &cover, "--file", "/etc/hosts=1.2.3.4 h", "--", "sh", "-c", look, "sh", link, file];
    let (code, out, err) = finish(as_user(&arguments).spawn().expect("start"));
    assert_eq!((code, out.as_str()), (0, "insideinside read-only\n"), "{err}");
    assert_eq!(std::fs::read_to_string(file).expect("read"), "outside");
}

#[test]
fn a_file_replaced_outside_stays_covered() {
    let directory = directory();
    let file = directory.path().join("resolv.conf");
    std::fs::write(&file, "outside").expect("write");
    let path = file.to_str().expect("UTF-8");
    let cover = format!("{path}=inside");
    // Says what it finds at first, waits for the replacement, and looks until the cover is back.
    let look = r#"cat "$1"; echo; read line; until [ "$(cat "$1")" = inside ]; do :; done; echo again"#;
    let mut command = as_user(&["run", "--file", &cover, "--", "sh", "-c", look, "sh", path]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("start");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("read");
    assert_eq!(line, "inside\n");
    // Gone for a moment, then another file.
    std::fs::remove_file(&file).expect("remove");
    std::fs::write(directory.path().join("new"), "changed").expect("write");
    std::fs::rename(directory.path().join("new"), &file).expect("rename");
    child.stdin.take().expect("piped").write_all(b"\n").expect("write");
    line.clear();
    reader.read_line(&mut line).expect("read");
    assert_eq!(line, "again\n");
    assert_eq!(finish(child).0, 0);
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "changed");
}

#[test]
fn a_missing_file_to_cover_is_named() {
    let (code, _, err) = finish(as_user(&["run", "--file", "/no/such=x", "--", "true"]).spawn().expect("start"));
    assert_eq!(code, 70);
    assert!(err.contains("/no/such"), "{err}");
}

#[test]
fn the_command_has_no_capabilities() {
    let show = ["sh", "-c", "grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status"];
    let none = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].map(|set| format!("{set}\t0000000000000000\n")).concat();
    assert_eq!(run(&show).1, none);
    // As whoever runs the tests: root keeps none either.
    let mut own = std::process::Command::new(LAB);
    own.args(["run", "--"]).args(show).stdout(Stdio::piped()).stderr(Stdio::piped());
    assert_eq!(finish(own.spawn().expect("start")).1, none);
}

#[test]
fn the_command_can_change_neither_network_nor_mounts() {
    let (_, out, _) = run(&[
        "sh",
        "-c",
        "umount /proc 2>/dev/null || echo no mount; echo 1 2>/dev/null > /proc/sys/net/ipv4/conf/all/rp_filter || echo no sysctl",
    ]);
    assert_eq!(out, "no mount\nno sysctl\n");
}

#[test]
fn what_a_process_inherits_is_as_without_the_sandbox() {
    let show = r"
        id -u; id -g; echo $HOME; pwd; umask; ulimit -a; nice; cat /proc/self/oom_score_adj
        grep -E '^(Sig(Blk|Ign|Cgt)|NoNewPrivs|Seccomp:)' /proc/self/status; ls /proc/$$/fd; echo $PARENT_PGID; ps -o pgid= -p $$ | tr -d ' '
    ";
    // A descriptor, a mask of files, a limit and an ignored signal that differ from the defaults.
    let around = r#"exec 7</dev/null; umask 027; ulimit -n 99; trap '' USR2; exec nice -n 3 "$@""#;
    let inherited = |how: &str| {
        let arguments = ["plain", "--", "sh", "-c", around, "sh", "@self", how, "--", "sh", "-c", show];
        let (code, out, err) = finish(as_user(&arguments).env("HOME", "/mnt/home").spawn().expect("start"));
        assert_eq!(code, 0, "{err}");
        out
    };
    let (without, with) = (inherited("plain"), inherited("run"));
    assert!(without.contains("/mnt/home") && without.contains("0027") && without.contains("\n7\n"), "{without}");
    assert_eq!(without, with);
}
