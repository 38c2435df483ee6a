//! What the command's TCP sees (acceptance R4, R10).

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::{LONG, as_user, client, closed_port, echo_after_end, finish, greeter, serve};

fn to(address: &str, port: u16) -> String {
    format!("{address}:{port}")
}

#[test]
fn a_closed_port_refuses() {
    assert_eq!(client(&["connect", &to("10.96.0.5", closed_port())]), "ECONNREFUSED");
    assert_eq!(client(&["connect", &to("[fd96::5]", closed_port())]), "ECONNREFUSED");
}

#[test]
fn unreachable_is_said_as_host_and_as_network() {
    assert_eq!(client(&["connect", "10.96.255.1:80"]), "EHOSTUNREACH");
    assert_eq!(client(&["connect", "10.96.255.3:80"]), "ENETUNREACH");
    assert_eq!(client(&["connect", "192.0.2.1:80"]), "ENETUNREACH");
    assert_eq!(client(&["connect", "[fd97::1]:80"]), "EHOSTUNREACH");
}

#[test]
fn no_answer_leaves_the_command_its_own_timeout() {
    assert_eq!(client(&["timeout", "10.96.255.2:80"]), "TimedOut true");
    assert_eq!(client(&["timeout", "10.96.255.4:80"]), "TimedOut true");
}

#[test]
fn the_server_may_speak_first() {
    let port = greeter();
    assert_eq!(client(&["read", &to("10.96.0.5", port)]), "! ok");
    assert_eq!(client(&["read", &to("[fd96::5]", port)]), "! ok");
}

#[test]
fn a_half_close_stays_a_half_close() {
    let port = echo_after_end();
    assert_eq!(client(&["half-close", &to("10.96.0.5", port)]), "1048576 bytes, equal true");
    assert_eq!(client(&["half-close", &to("[fd96::5]", port)]), "1048576 bytes, equal true");
}

#[test]
fn a_reset_by_the_server_is_a_reset() {
    let port = serve(|stream| {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    assert_eq!(client(&["read", &to("10.96.0.5", port)]), " ECONNRESET");
}

#[test]
fn a_reset_by_the_command_is_a_reset() {
    let (send, receive) = mpsc::channel();
    let port = serve(move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the first byte");
        stream.write_all(&byte).expect("answer");
        let _ = send.send(stream.read(&mut byte));
    });
    client(&["reset", &to("10.96.0.5", port)]);
    let end = receive.recv_timeout(LONG).expect("the server saw an end");
    assert_eq!(end.expect_err("not a clean end").raw_os_error(), Some(libc::ECONNRESET));
}

#[test]
fn eight_thousand_good_and_four_hundred_refused_connects_have_no_wrong_result() {
    let good = to("10.96.0.5", greeter());
    assert_eq!(client(&["many", &good, &to("10.96.0.5", closed_port())]), "0 wrong");
}

#[test]
fn connects_that_do_not_block_wait_together() {
    let said = client(&["at-once", &to("10.96.254.1", greeter())]);
    let times: Vec<u128> = said.split(' ').map(|t| t.parse().expect(&said)).collect();
    assert!(times[0] < 50 && (50..=120).contains(&times[1]), "begun, made after ms: {said}");
}

#[test]
fn ports_can_be_used_anew_at_once() {
    let port = greeter();
    assert_eq!(client(&["reuse", &to("10.96.0.5", port), &to("10.96.254.5", port)]), "7 read");
}

#[test]
fn a_dial_is_dropped_when_the_command_gives_its_connection_up() {
    // The command lives on, so that nothing else can have dropped it.
    let script = r#""$1" client timeout 10.96.255.2:80; read line"#;
    let mut child =
        as_user(&["run", "--", "sh", "-c", script, "sh", "@self"]).stdin(Stdio::piped()).spawn().expect("start");
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().expect("piped")).read_line(&mut line).expect("read");
    assert_eq!(line, "dial of 10.96.255.2:80 dropped\n");
    drop(child.stdin.take());
    finish(child);
}

#[test]
fn a_datagram_of_any_size_goes_out_and_its_answer_comes_from_whom_it_went_to() {
    for to in ["10.96.0.10:53", "[fd96::a]:53"] {
        for length in ["0", "1", "1400", "9000", "60000"] {
            assert_eq!(client(&["udp", to, length]), format!("same {to}"));
        }
    }
}

#[test]
fn a_connected_socket_learns_that_nobody_listens() {
    for address in ["10.96.0.10", "[fd96::a]"] {
        assert_eq!(client(&["udp-connected", &format!("{address}:53")]), "ok");
        assert_eq!(client(&["udp-connected", &format!("{address}:1")]), "ECONNREFUSED");
    }
}

#[test]
fn an_echo_request_is_answered() {
    assert_eq!(client(&["ping", "10.96.0.10:7"]), "0 7 [104, 105]");
    assert_eq!(client(&["ping", "[fd96::a]:7"]), "129 7 [104, 105]");
}

#[test]
fn the_machines_localhost_is_reached_and_what_listens_inside_comes_first() {
    let port = greeter();
    assert_eq!(client(&["read", &to("127.0.0.1", port)]), client(&["read", &to("10.96.0.5", port)]));
    assert_eq!(client(&["own", &to("127.0.0.1", port)]), "?");
    assert_eq!(client(&["connect", &to("127.0.0.1", closed_port())]), "ECONNREFUSED");
    // Not of IPv6, and nothing of the sandbox's own.
    assert_eq!(client(&["connect", &to("[::1]", port)]), "ECONNREFUSED");
    assert_eq!(client(&["own", &to("[::1]", port)]), "?");
    assert_eq!(client(&["connect", "127.0.0.1:64999"]), "ECONNREFUSED");
}

/// What the client got from the ports that the command listens on.
fn visited(at: &str, count: &str) -> String {
    let arguments = ["run", "--visit", "--", "@self", "client", "serve", at, count];
    let (code, out, err) = finish(as_user(&arguments).spawn().expect("sandbox-lab starts"));
    assert_eq!(code, 0, "{err}");
    out
}

#[test]
fn what_the_command_listens_on_is_reached_from_outside() {
    assert_eq!(visited("127.0.0.1:8080", "1"), "127.0.0.1:8080 ! Ok(())\n");
    assert_eq!(visited("[::1]:8080", "1"), "[::1]:8080 ! Ok(())\n");
    assert_eq!(visited("198.18.0.1:8080", "1"), "198.18.0.1:8080 ! Ok(())\n");
    assert_eq!(visited("[::]:8080", "2"), "127.0.0.1:8080 ! Ok(())\n[::1]:8080 ! Ok(())\n");
}

#[test]
fn the_command_may_listen_on_any_port_as_in_a_container() {
    assert_eq!(visited("0.0.0.0:80", "1"), "127.0.0.1:80 ! Ok(())\n");
}
