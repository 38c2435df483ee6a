//! The first bytes of a connection: TLS at once, or the API server's HTTP upgrade before it. Pure; `listener` reads.

/// What may come before the handshake.
pub(crate) const HEAD_LIMIT: usize = 8 << 10;

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: stead-1\r\n\r\n";

/// What a first byte announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    /// A TLS record of type handshake (RFC 8446 section 5.1).
    Tls,
    /// GET.
    Http,
    /// Neither: closed without a word.
    Foreign,
}

pub(crate) fn begins(first: u8) -> Begins {
    match first {
        0x16 => Begins::Tls,
        b'G' => Begins::Http,
        _ => Begins::Foreign,
    }
}

/// What is answered to what was read so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The head goes on.
    More,
    /// Answer with these bytes; TLS follows.
    Upgrade(&'static [u8]),
    /// Answer with these bytes and close.
    Refuse(&'static [u8]),
}

pub(crate) fn judge(read: &[u8]) -> Verdict {
    let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
        if read.len() >= HEAD_LIMIT {
            return refuse("431 Request Header Fields Too Large");
        }
        // A head of another protocol that happens to begin with G is not read to the limit.
        let is_get = read.iter().zip(b"GET ").all(|(have, want)| have == want);
        return if is_get { Verdict::More } else { refuse("400 Bad Request") };
    };
    // The client sends nothing before it saw the 101; what comes earlier would be lost by an API server.
    if read.len() > end + 4 {
        return refuse("400 Bad Request");
    }
    match std::str::from_utf8(&read[..end]) {
        Ok(head) => judge_head(head),
        Err(_) => refuse("400 Bad Request"),
    }
}

fn judge_head(head: &str) -> Verdict {
    let mut lines = head.split("\r\n");
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (Some("GET"), Some(target), Some("HTTP/1.1"), None) =
        (request.next(), request.next(), request.next(), request.next())
    else {
        return refuse("400 Bad Request");
    };
    let path = target.split('?').next().unwrap_or_default();
    if !path.ends_with("/stead") {
        return refuse("404 Not Found");
    }
    let (mut connection, mut protocol) = (false, false);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return refuse("400 Bad Request") };
        let has = |token: &str| value.split(',').any(|have| have.trim().eq_ignore_ascii_case(token));
        connection |= name.eq_ignore_ascii_case("connection") && has("upgrade");
        protocol |= name.eq_ignore_ascii_case("upgrade") && has("stead-1");
    }
    if connection && protocol { Verdict::Upgrade(SWITCH) } else { refuse("426 Upgrade Required") }
}

/// Says no more than HTTP asks for.
fn refuse(status: &'static str) -> Verdict {
    Verdict::Refuse(match status {
        "404 Not Found" => b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "426 Upgrade Required" => {
            b"HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nUpgrade: stead-1\r\nContent-Length: 0\r\n\r\n"
        }
        "431 Request Header Fields Too Large" => {
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        }
        _ => b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /stead HTTP/1.1\r\nHost: 10.0.0.1:4000\r\nUpgrade: stead-1\r\nConnection: Upgrade\r\n\r\n";

    fn status(read: &[u8]) -> String {
        match judge(read) {
            Verdict::More => "more".into(),
            Verdict::Upgrade(answer) | Verdict::Refuse(answer) => String::from_utf8_lossy(&answer[9..12]).into(),
        }
    }

    #[test]
    fn the_upgrade_is_accepted_once_it_is_whole() {
        for cut in 0..GOOD.len() {
            assert_eq!(judge(&GOOD.as_bytes()[..cut]), Verdict::More, "cut at {cut}");
        }
        assert_eq!(judge(GOOD.as_bytes()), Verdict::Upgrade(SWITCH));
        let other = GOOD.replace("/stead", "/x/stead?y").replace("Upgrade: stead-1", "upgrade:h2c, Stead-1");
        assert_eq!(judge(other.as_bytes()), Verdict::Upgrade(SWITCH));
    }

    #[test]
    fn other_requests_are_refused() {
        assert_eq!(status(GOOD.replace("/stead", "/").as_bytes()), "404");
        assert_eq!(status(GOOD.replace("stead-1", "stead-2").as_bytes()), "426");
        assert_eq!(status(GOOD.replace("Connection: Upgrade", "Connection: close").as_bytes()), "426");
        assert_eq!(status(GOOD.replace("HTTP/1.1", "HTTP/1.0").as_bytes()), "400");
        assert_eq!(status(GOOD.replace("Host:", "Host").replace(":4000", "").as_bytes()), "400");
        assert_eq!(status(format!("{GOOD}x").as_bytes()), "400");
        assert_eq!(status(b"GOPHER"), "400");
        assert_eq!(status(b"GET /\xff HTTP/1.1\r\n\r\n"), "400");
        assert_eq!(status("GET ".repeat(HEAD_LIMIT / 4).as_bytes()), "431");
    }

    #[test]
    fn the_first_byte_tells() {
        assert_eq!([0x16, b'G', b'S', 0].map(begins), [Begins::Tls, Begins::Http, Begins::Foreign, Begins::Foreign]);
    }
}
