//! The client against an API server of the test's own, in plain HTTP on loopback, reached by a name of /etc/hosts: a
//! static binary has no `getaddrinfo`, so the name shows that the crate's own lookup is used.

use std::path::PathBuf;

use cluster::{Cluster, ConnectOptions, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Serves one answer per connection, chosen by the request's first line; ends with the test.
struct ApiServer {
    kubeconfig: PathBuf,
    _dir: tempfile::TempDir,
    _serving: JoinSet<()>,
}

impl ApiServer {
    async fn start(answer: fn(&str) -> Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, answer));
            }
        });
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = write_kubeconfig(&dir, &format!("http://localhost:{port}/base"));
        ApiServer { kubeconfig, _dir: dir, _serving: serving }
    }

    async fn connect(&self) -> Cluster {
        connect(&self.kubeconfig).await
    }
}

async fn connect(kubeconfig: &std::path::Path) -> Cluster {
    let options = ConnectOptions {
        kubeconfig: Some(kubeconfig.into()),
        as_user: Some("dev".into()),
        as_groups: vec!["a".into(), "b".into()],
        ..ConnectOptions::default()
    };
    Cluster::connect(&options).await.expect("a kubeconfig")
}

fn write_kubeconfig(dir: &tempfile::TempDir, server: &str) -> PathBuf {
    let path = dir.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: t\n\
         clusters:\n- name: t\n  cluster: {{server: \"{server}\"}}\n\
         contexts:\n- name: t\n  context: {{cluster: t, user: u, namespace: team}}\n\
         users:\n- name: u\n  user: {{token: secret}}\n"
    );
    std::fs::write(&path, text).expect("written");
    path
}

/// Reads a head, answers, then echoes.
async fn serve(mut stream: TcpStream, answer: fn(&str) -> Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    if stream.write_all(&answer(&head)).await.is_err() {
        return;
    }
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

fn json_answer(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes()
}

fn not_found() -> Vec<u8> {
    json_answer(
        "404 Not Found",
        r#"{"kind":"Status","status":"Failure","code":404,"reason":"NotFound","message":"no"}"#,
    )
}

#[tokio::test]
async fn a_pipe_is_upgraded_with_the_users_identity_and_keeps_early_bytes() {
    let server = ApiServer::start(|head| {
        let expected = [
            "get /base/api/v1/namespaces/team/pods/web:7000/proxy/stead http/1.1",
            "upgrade: stead-1",
            "authorization: bearer secret",
            "impersonate-user: dev",
            "impersonate-group: a",
            "impersonate-group: b",
        ];
        if expected.iter().all(|line| head.lines().any(|other| other == *line)) {
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: stead-1\r\n\r\nearly".to_vec()
        } else {
            json_answer("400 Bad Request", head)
        }
    })
    .await;
    let mut pipe = server.connect().await.pipe(cluster::Rung::Proxy, "web", &[], 7000).await.expect("a pipe");
    pipe.write_all(b" and late").await.expect("written");
    let mut read = [0; 14];
    pipe.read_exact(&mut read).await.expect("echoed");
    assert_eq!(&read, b"early and late");
}

#[tokio::test]
async fn a_refused_pipe_names_the_missing_right() {
    let server = ApiServer::start(|_| {
        json_answer("403 Forbidden", r#"{"kind":"Status","status":"Failure","code":403,"message":"User cannot"}"#)
    })
    .await;
    let error = server.connect().await.pipe(cluster::Rung::Proxy, "web", &[], 7000).await.err().expect("refused");
    assert_eq!(error.kind().exit_code(), 77);
    assert!(error.next_step().is_some_and(|hint| hint.contains("pods/proxy")));
}

#[tokio::test]
async fn a_bare_name_is_looked_for_in_every_kind_at_once() {
    let server = ApiServer::start(|head| {
        if head.starts_with("get /base/apis/apps/v1/namespaces/team/statefulsets/db ") {
            let body = r#"{"metadata":{"name":"db","namespace":"team","uid":"u"},
                "spec":{"replicas":3,"selector":{"matchLabels":{"app":"db"}},"serviceName":"db","template":{}}}"#;
            json_answer("200 OK", body)
        } else {
            not_found()
        }
    })
    .await;
    let found = server.connect().await.workload("db").await.expect("found");
    assert_eq!((found.to_string().as_str(), found.replicas, found.uid.as_str()), ("sts/db", 3, "u"));
}

#[tokio::test]
async fn an_unknown_name_is_answered_with_near_ones_of_every_kind() {
    let server = ApiServer::start(|head| {
        let list = |name: &str| {
            json_answer(
                "200 OK",
                &format!(
                    r#"{{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadataList","metadata":{{}},"items":
                    [{{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{{"name":"{name}"}}}}]}}"#
                ),
            )
        };
        if head.contains("/namespaces/team/deployments?") {
            list("frontend")
        } else if head.contains("get /base/api/v1/namespaces/team ") {
            json_answer("200 OK", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"team"}}"#)
        } else {
            not_found()
        }
    })
    .await;
    let error = server.connect().await.workload("frontned").await.expect_err("unknown");
    assert_eq!(error.to_string(), "no workload \"frontned\" in namespace team");
    assert_eq!(error.next_step(), Some("near to it: deploy/frontend"));
}

#[tokio::test]
async fn a_missing_namespace_is_told_instead_of_the_workload() {
    let server = ApiServer::start(|_| not_found()).await;
    let error = server.connect().await.workload("web").await.expect_err("unknown");
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "no namespace \"team\" in t"));
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let dir = tempfile::tempdir().expect("a directory");
    for scheme in ["http", "https"] {
        let cluster = connect(&write_kubeconfig(&dir, &format!("{scheme}://localhost:{port}"))).await;
        let error = cluster.workload("web").await.expect_err("down");
        assert_eq!(error.kind().exit_code(), 69, "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
        let error = cluster.pipe(cluster::Rung::Proxy, "web", &[], 1).await.err().expect("down");
        assert_eq!(error.kind().exit_code(), 69, "{error}");
    }
}

#[tokio::test]
async fn refused_credentials_are_the_kubeconfigs_fault() {
    let server = ApiServer::start(|_| {
        json_answer("401 Unauthorized", r#"{"kind":"Status","status":"Failure","code":401,"message":"Unauthorized"}"#)
    })
    .await;
    let error = server.connect().await.workload("web").await.expect_err("unauthorized");
    assert_eq!(error.kind().exit_code(), 65, "{error}");
}
