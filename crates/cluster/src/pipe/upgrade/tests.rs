use super::*;

#[test]
fn a_head_is_found_however_it_is_cut() {
    let bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: stead-1\r\n\r\nearly";
    let end = bytes.len() - "early".len();
    for cut in 0..end {
        assert_eq!(parse_head(&bytes[..cut]).expect("well formed"), None, "{cut}");
    }
    let expected = Head { status: 101, body: Body::Open };
    assert_eq!(parse_head(bytes).expect("well formed"), Some((expected, end)));
}

#[test]
fn the_length_of_a_body_is_read_whatever_its_case() {
    let bytes = b"HTTP/1.0 403 Forbidden\r\nCONTENT-length:  12\r\n\r\n";
    let (head, _) = parse_head(bytes).expect("well formed").expect("whole");
    assert_eq!(head, Head { status: 403, body: Body::Length(12) });
}

#[test]
fn what_is_not_http_is_an_error_not_a_panic() {
    for bytes in [&b"SSH-2.0-x\r\n\r\n"[..], b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 \xff\xff\xff\r\n\r\n", b"\r\n\r\n"] {
        assert!(parse_head(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn the_request_carries_what_the_auth_layers_added_and_upgrades_once() {
    let uri = "https://api.example:6443/k8s/api/v1/x".parse().expect("a URI");
    let mut headers = HeaderMap::new();
    headers.insert("authorization", "Bearer t".parse().expect("a value"));
    headers.append("impersonate-group", "a".parse().expect("a value"));
    headers.append("impersonate-group", "b".parse().expect("a value"));
    headers.insert("connection", "close".parse().expect("a value"));
    let request = Request {
        path: "/api/v1/x".to_owned(),
        upgrade: PROTOCOL,
        headers: vec![("X-Ours", "1".to_owned())],
        right: Right::core("pods/proxy", &["get"]),
    };
    let request = String::from_utf8(head_of(&uri, &headers, &request)).expect("text");
    assert!(request.starts_with("GET /k8s/api/v1/x HTTP/1.1\r\nHost: api.example:6443\r\n"), "{request}");
    assert!(request.contains("\r\nX-Ours: 1\r\n") && request.contains("\r\nauthorization: Bearer t\r\n"));
    assert!(request.contains("\r\nimpersonate-group: a\r\nimpersonate-group: b\r\n"));
    assert!(request.contains("\r\nConnection: Upgrade\r\nUpgrade: stead-1\r\n") && !request.contains("close"));
    assert!(request.ends_with("\r\n\r\n"));
}

#[test]
fn each_refusal_has_its_class() {
    let right = || Right::core("pods/proxy", &["get"]);
    let status = |message: &str| serde_json::to_vec(&Status::failure(message, "")).expect("json");
    for (code, message, kind) in [
        (403, "pods is forbidden", Kind::MissingRight),
        (401, "Unauthorized", Kind::Kubeconfig),
        (404, "pods \"a\" not found", Kind::AgentStart),
        (500, "dial tcp 10.0.0.1:1: connect: connection refused", Kind::AgentStart),
        (503, "dial tcp 10.0.0.1:1: i/o timeout", Kind::Unreachable),
        (200, "", Kind::Protocol),
    ] {
        assert_eq!(refusal(code, &status(message), "a", right()).kind(), kind, "{code} {message}");
    }
    let plain = refusal(502, b"error trying to reach service\n", "a", right());
    assert!(plain.to_string().ends_with("error trying to reach service"), "{plain}");
}
