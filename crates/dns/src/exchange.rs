//! One question to name servers, as libc does it: UDP, TCP when the answer was cut, the next server on failure.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::message::{NAME_ERROR, NO_ERROR, is_response_to, is_truncated, plain_rcode, udp_room};

/// For one try with one server. libc waits 5 s; clusters answer in milliseconds, and a lost datagram should not cost
/// a program 5 s.
const TRY: Duration = Duration::from_secs(2);
/// How often the list is gone through while servers are silent, as libc's `attempts`.
const ROUNDS: usize = 2;

/// Asks the servers in turn until one answers; a server that failed (SERVFAIL, REFUSED …) is taken only when no other
/// does better. The id is kept as it is: the caller draws it at random.
pub async fn exchange(servers: &[SocketAddr], query: &[u8]) -> io::Result<Bytes> {
    let mut error = io::Error::other("no name servers are known");
    for _ in 0..ROUNDS {
        let (mut failure, mut silent) = (None, false);
        for &server in servers {
            match ask(server, query).await {
                Ok(response) if matches!(plain_rcode(&response), Some(NO_ERROR | NAME_ERROR)) => return Ok(response),
                Ok(response) => failure = failure.or(Some(response)),
                Err(e) => {
                    tracing::debug!(%server, error = %e, "name server gave no answer");
                    silent |= e.kind() == io::ErrorKind::TimedOut;
                    error = e;
                }
            }
        }
        if let Some(failure) = failure {
            return Ok(failure);
        }
        if !silent {
            break;
        }
    }
    Err(error)
}

async fn ask(server: SocketAddr, query: &[u8]) -> io::Result<Bytes> {
    let response = within(over_udp(server, query)).await?;
    if !is_truncated(&response) {
        return Ok(response);
    }
    match within(over_tcp(server, query)).await {
        Ok(whole) => Ok(whole),
        Err(error) => {
            tracing::debug!(%server, %error, "cut answer could not be fetched over TCP");
            Ok(response)
        }
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(TRY, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A socket of its own for each question: a fresh source port, and connected, so that a closed port is an error at
/// once and others' datagrams do not arrive.
async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Bytes> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; udp_room(query)];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if is_response_to(&buffer[..len], query) {
            buffer.truncate(len);
            return Ok(buffer.into());
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Bytes> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&with_length(query)?).await?;
    let mut response = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut response).await?;
    if is_response_to(&response, query) {
        Ok(response.into())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the name server answered another question"))
    }
}

/// As messages travel over TCP (RFC 1035 section 4.2.2).
pub(crate) fn with_length(message: &[u8]) -> io::Result<Vec<u8>> {
    let len = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok([&len.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::message::{Query, SERVER_FAILURE};

    fn query() -> (Query, Bytes) {
        let query = Query::new(&hickory_proto::rr::Name::from_ascii("web.example.").expect("a name"), 1);
        let sent = query.to_upstream(7);
        (Query::parse(&sent).expect("a question"), sent)
    }

    async fn bound() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        let address = socket.local_addr().expect("bound");
        (socket, address)
    }

    async fn closed() -> SocketAddr {
        bound().await.1
    }

    async fn reply<const N: usize>(socket: &UdpSocket, responses: [Vec<u8>; N]) {
        let mut buffer = [0; 512];
        let (_, from) = socket.recv_from(&mut buffer).await.expect("asked");
        for response in responses {
            socket.send_to(&response, from).await.expect("sent");
        }
    }

    #[tokio::test]
    async fn a_closed_and_a_failing_server_are_passed_over() {
        let (query, sent) = query();
        let (failing, failing_at) = bound().await;
        let (good, good_at) = bound().await;
        let servers = [closed().await, failing_at, good_at];
        let (response, ..) = tokio::join!(
            exchange(&servers, &sent),
            reply(&failing, [query.fail(SERVER_FAILURE)]),
            reply(&good, [query.fail(NAME_ERROR)])
        );
        assert_eq!(plain_rcode(&response.expect("answered")), Some(NAME_ERROR));
    }

    #[tokio::test]
    async fn a_failure_is_the_answer_when_no_server_does_better() {
        let (query, sent) = query();
        let (failing, failing_at) = bound().await;
        let servers = [failing_at, closed().await];
        let (response, ()) = tokio::join!(exchange(&servers, &sent), reply(&failing, [query.fail(SERVER_FAILURE)]));
        assert_eq!(plain_rcode(&response.expect("answered")), Some(SERVER_FAILURE));
        let error = exchange(&[closed().await], &sent).await.expect_err("nobody there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        exchange(&[], &sent).await.expect_err("no server at all");
    }

    #[tokio::test]
    async fn answers_to_other_questions_are_not_taken() {
        let (query, sent) = query();
        let (server, at) = bound().await;
        let mut forged = query.fail(NO_ERROR);
        forged[1] = 8;
        let responses = [forged, b"garbage".to_vec(), query.fail(NAME_ERROR)];
        let (response, ()) = tokio::join!(exchange(std::slice::from_ref(&at), &sent), reply(&server, responses));
        assert_eq!(plain_rcode(&response.expect("answered")), Some(NAME_ERROR));
    }

    #[tokio::test]
    async fn a_cut_answer_is_fetched_over_tcp() {
        let (query, sent) = query();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let at = listener.local_addr().expect("bound");
        let udp = UdpSocket::bind(at).await.expect("the same port");
        let mut cut = query.fail(NO_ERROR);
        cut[2] |= 0x02;
        let serve_tcp = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut asked = vec![0; stream.read_u16().await.expect("a length").into()];
            stream.read_exact(&mut asked).await.expect("a question");
            let whole = Query::parse(&asked).expect("a question").fail(NAME_ERROR);
            stream.write_all(&with_length(&whole).expect("short")).await.expect("sent");
        };
        let (response, (), ()) =
            tokio::join!(exchange(std::slice::from_ref(&at), &sent), reply(&udp, [cut]), serve_tcp);
        assert_eq!(plain_rcode(&response.expect("answered")), Some(NAME_ERROR));
    }
}
