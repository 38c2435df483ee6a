//! A push to a registry of the test's own, which wants a token of its token server, as hosted ones do. (The real one of
//! the distribution project is in the cluster's rows.)

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use oci::{File, ImageBuilder, Layer, Parts};
use registry::{Error, Keys, Reference, push};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// `dev:right`
const RIGHT: &str = "Basic ZGV2OnJpZ2h0";

/// What was put, by path.
type Store = Arc<Mutex<BTreeMap<String, Bytes>>>;

struct Server {
    host: String,
    store: Store,
    _serving: JoinSet<()>,
}

impl Server {
    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let host = format!("localhost:{}", listener.local_addr().expect("bound").port());
        let (store, mut serving) = (Store::default(), JoinSet::new());
        let (kept, name) = (store.clone(), host.clone());
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (store, host) = (kept.clone(), name.clone());
                let service = service_fn(move |request| answer(request, store.clone(), host.clone()));
                connections
                    .spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Server { host, store, _serving: serving }
    }

    fn reference(&self) -> Reference {
        Reference::parse(&format!("{}/team/agent", self.host), "1").expect("a name")
    }

    /// A file of credentials for this registry, as `docker login` writes it.
    fn keys(&self, auth: &str) -> (tempfile::TempDir, Keys) {
        let dir = tempfile::tempdir().expect("a directory");
        let path: PathBuf = dir.path().join("config.json");
        let text = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, self.host);
        std::fs::write(&path, text).expect("written");
        (dir, Keys(vec![path]))
    }
}

async fn answer(request: Request<Incoming>, store: Store, host: String) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let path = head.uri.path().to_owned();
    let status = |status: StatusCode| Response::builder().status(status);
    let plain = |response: http::response::Builder| response.body(Full::default()).expect("a response");
    if path == "/token" {
        let right = header("authorization") == RIGHT;
        let scoped = head.uri.query().is_some_and(|q| q.contains("scope=repository%3Ateam%2Fagent%3Apull%2Cpush"));
        let text = if scoped { r#"{"token": "good"}"# } else { "{}" };
        let code = if right { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        return Ok(status(code).body(Full::from(text)).expect("a response"));
    }
    if header("authorization") != "Bearer good" {
        let wanted = format!("Bearer realm=\"http://{host}/token\",service=\"test\"");
        return Ok(plain(status(StatusCode::UNAUTHORIZED).header("www-authenticate", wanted)));
    }
    let mut store = store.lock().expect("one thread");
    Ok(plain(match head.method {
        Method::HEAD if store.contains_key(&path) => status(StatusCode::OK),
        Method::HEAD => status(StatusCode::NOT_FOUND),
        Method::POST => status(StatusCode::ACCEPTED).header("location", format!("{path}upload?state=1")),
        Method::PUT => {
            let digest = head.uri.query().and_then(|query| query.split_once("state=1&digest="));
            let kept = digest.map_or(path.clone(), |(_, digest)| path.replace("uploads/upload", digest));
            store.insert(kept, body);
            status(StatusCode::CREATED)
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED),
    }))
}

fn image() -> Parts {
    let of = |arch: &str| {
        let layer = Layer::from_files([File::new("agent", 0o755, arch)]).expect("a layer");
        ImageBuilder::new("team/agent:1").arch(arch).layer(layer).entrypoint(["/agent"])
    };
    oci::parts(&[of("amd64"), of("arm64")]).expect("parts")
}

#[tokio::test]
async fn every_part_arrives_and_the_tag_names_the_index() {
    let (server, parts) = (Server::start().await, image());
    let (_dir, keys) = server.keys("ZGV2OnJpZ2h0");
    let pushed = push(&server.reference(), &parts, &keys, false).await.expect("pushed");
    assert_eq!((pushed.uploaded, &pushed.digest), (4, &parts.index.digest));
    let stored = server.store.lock().expect("one thread").clone();
    let at = |path: String| stored.get(&path).unwrap_or_else(|| panic!("{path} is not there: {:?}", stored.keys()));
    for blob in &parts.blobs {
        assert_eq!(*at(format!("/v2/team/agent/blobs/{}", blob.digest)), blob.bytes);
    }
    for manifest in &parts.manifests {
        assert_eq!(*at(format!("/v2/team/agent/manifests/{}", manifest.digest)), manifest.bytes);
    }
    assert_eq!(*at("/v2/team/agent/manifests/1".to_owned()), parts.index.bytes);
    let again = push(&server.reference(), &parts, &keys, false).await.expect("pushed again");
    assert_eq!(again.uploaded, 0, "what is there is not sent again");
}

#[tokio::test]
async fn without_the_right_credentials_it_says_who_may_not() {
    let server = Server::start().await;
    let error = push(&server.reference(), &image(), &Keys::default(), false).await.expect_err("nobody");
    assert!(matches!(error, Error::Denied { known: false, .. }), "{error}");
    let (_dir, keys) = server.keys("ZGV2Ondyb25n");
    let error = push(&server.reference(), &image(), &keys, false).await.expect_err("a wrong password");
    assert!(matches!(error, Error::Denied { known: true, .. }), "{error}");
    assert_eq!(error.exit_code(), 77);
    assert!(error.hint().is_some_and(|hint| hint.contains("docker login localhost")), "{error:?}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let host = format!("127.0.0.1:{}", listener.local_addr().expect("bound").port());
    drop(listener);
    let reference = Reference::parse(&format!("{host}/agent"), "1").expect("a name");
    let error = push(&reference, &image(), &Keys::default(), false).await.expect_err("down");
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains(&host), "{error}");
}
