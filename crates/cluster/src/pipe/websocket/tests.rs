use super::*;

/// A server's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..126 => out.push(len as u8),
        len @ 126..=0xffff => out.extend([&[126][..], &(len as u16).to_be_bytes()].concat()),
        len => out.extend([&[127][..], &(len as u64).to_be_bytes()].concat()),
    }
    out.extend_from_slice(payload);
    out
}

fn message(channel: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x82, &[&[channel][..], payload].concat())
}

/// All that the bytes mean, given in pieces of a size.
fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<Incoming>), Malformed> {
    let mut decoder = Decoder::new();
    let (mut data, mut others) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        while let Some(came) = decoder.poll()? {
            match came {
                Incoming::Data(bytes) => data.extend_from_slice(&bytes),
                other => others.push(other),
            }
        }
    }
    Ok((data, others))
}

#[test]
fn data_comes_whole_however_it_is_cut() {
    let long: Vec<u8> = (0..70_000u32).map(|i| i as u8).collect();
    let bytes = [
        message(0, &[0x39, 0x30]),
        message(1, &[0x39, 0x30]),
        message(0, b"abc"),
        frame(0x89, b"ping"),
        message(0, &[]),
        message(0, &long[..200]),
        message(0, &long),
        frame(0x02, &[0, b'd']),
        frame(0x8a, b""),
        frame(0x00, b"e"),
        frame(0x80, b"f"),
        frame(0x88, &[0x03, 0xe8]),
    ]
    .concat();
    let expected = [b"abc", &long[..200], &long, b"def"].concat();
    for piece in [1, 2, 3, 7, 100, bytes.len()] {
        let (data, others) = decode(&bytes, piece).expect("well formed");
        assert!(data == expected, "in pieces of {piece}");
        assert_eq!(others, [Incoming::Ping("ping".into()), Incoming::End(String::new())]);
    }
}

#[test]
fn the_port_and_what_follows_may_share_a_message() {
    assert_eq!(decode(&message(0, b"\x39\x30x"), 1), Ok((b"x".to_vec(), vec![])));
}

#[test]
fn why_a_dial_failed_is_told_at_the_end() {
    let bytes = [message(1, &[1, 0]), message(1, b"connection "), message(1, b"refused\n"), frame(0x88, b"")].concat();
    assert_eq!(decode(&bytes, 5), Ok((vec![], vec![Incoming::End("connection refused".to_owned())])));
    let mut decoder = Decoder::new();
    decoder.buffer().extend_from_slice(&bytes[..bytes.len() - 2]);
    assert_eq!(decoder.poll(), Ok(None));
    assert_eq!(decoder.reason().as_deref(), Some("connection refused"));
}

#[test]
fn a_reason_is_not_kept_without_bound() {
    let mut decoder = Decoder::new();
    for _ in 0..3 {
        decoder.buffer().extend_from_slice(&message(1, &[b'x'; REASON_LIMIT]));
        assert_eq!(decoder.poll(), Ok(None));
    }
    assert_eq!(decoder.reason().map(|reason| reason.len()), Some(REASON_LIMIT));
}

#[test]
fn nothing_comes_after_the_end() {
    let bytes = [frame(0x88, b"\x03\xe8bye"), message(0, b"\0\0late")].concat();
    assert_eq!(decode(&bytes, bytes.len()), Ok((vec![], vec![Incoming::End("bye".to_owned())])));
}

#[test]
fn what_kubernetes_does_not_speak_is_refused() {
    for bytes in [
        frame(0x81, b"text"),
        frame(0xc2, b"reserved"),
        frame(0x80, b"a continuation of nothing"),
        [frame(0x02, b"\0"), frame(0x82, b"\0")].concat(),
        frame(0x09, b"a ping in pieces"),
        frame(0x89, &[0; 126]),
        message(2, b"x"),
        vec![0x82, 0x81, 0, 0, 0, 0, 0],
    ] {
        assert!(decode(&bytes, bytes.len()).is_err(), "{bytes:?}");
    }
}

#[test]
fn frames_are_written_masked_by_zero() {
    let mut out = BytesMut::new();
    put_data(&mut out, 3, [&b"a"[..], b"bc"].into_iter());
    assert_eq!(out[..], [0x82, 0x84, 0, 0, 0, 0, 0, b'a', b'b', b'c']);
    let lengths = |len: usize| {
        let mut out = BytesMut::new();
        put_data(&mut out, len, [&vec![7; len][..]].into_iter());
        out[..10].to_vec()
    };
    assert_eq!(lengths(124)[1], 0x80 | 125);
    assert_eq!(lengths(125)[1..4], [0x80 | 126, 0, 126]);
    assert_eq!(lengths(0xfffe)[1..4], [0x80 | 126, 0xff, 0xff]);
    assert_eq!(lengths(0xffff)[1..10], [0x80 | 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    let mut out = BytesMut::new();
    put_pong(&mut out, b"p");
    put_close(&mut out);
    assert_eq!(out[..], [0x8a, 0x81, 0, 0, 0, 0, b'p', 0x88, 0x82, 0, 0, 0, 0, 3, 232]);
}
