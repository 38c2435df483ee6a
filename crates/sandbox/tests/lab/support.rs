//! Running `sandbox-lab`, and small servers for it to reach.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

pub(crate) const LAB: &str = env!("CARGO_BIN_EXE_sandbox-lab");
/// Nothing here takes as long, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// `sandbox-lab ARG…` as the ordinary user.
pub(crate) fn as_user(arguments: &[&str]) -> Command {
    let mut command = Command::new(LAB);
    command.args(["as-user", "--"]).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A command in the sandbox, to its end: exit code (128 + n for a signal), stdout, stderr.
pub(crate) fn run(argv: &[&str]) -> (i32, String, String) {
    let arguments = [&["run", "--"], argv].concat();
    finish(as_user(&arguments).spawn().expect("sandbox-lab starts"))
}

/// What `sandbox-lab client` said inside.
pub(crate) fn client(arguments: &[&str]) -> String {
    let (code, out, err) = run(&[&["@self", "client"], arguments].concat());
    assert_eq!(code, 0, "{err}");
    out.trim_end().to_owned()
}

pub(crate) fn finish(child: Child) -> (i32, String, String) {
    let id = child.id();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let Output { status, stdout, stderr } = receive.recv_timeout(LONG).map_or_else(
        |_| {
            kill(id, 9);
            panic!("{id} did not end")
        },
        |output| output.expect("its output"),
    );
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).expect("an end");
    (code, text(stdout), text(stderr))
}

pub(crate) fn kill(pid: u32, signal: i32) {
    let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).expect("kill");
}

/// Serves each connection with `serve` in a thread of its own; the port it listens on. Lives as long as the test program.
pub(crate) fn serve(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let port = listener.local_addr().expect("address").port();
    let v6 = TcpListener::bind(("::1", port));
    for listener in [Ok(listener), v6].into_iter().flatten() {
        let serve = serve.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
    }
    port
}

/// Speaks first: one `!`, then its end.
pub(crate) fn greeter() -> u16 {
    serve(|mut stream| {
        let _ = stream.write_all(b"!");
    })
}

/// Sends everything back after it saw the end.
pub(crate) fn echo_after_end() -> u16 {
    serve(|mut stream| {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("read");
        stream.write_all(&received).expect("write");
    })
}

/// A port where nobody listens.
pub(crate) fn closed_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).expect("bind").local_addr().expect("address").port()
}
