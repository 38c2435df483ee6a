//! A cluster as the user reaches it: its client for API requests and the head of requests that become byte pipes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response, Uri};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use kube::{Api, Client, Resource};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::dial::Stream;
use crate::error::{Error, Kind, Right};
use crate::kubeconfig::{ConnectOptions, Surroundings, load};
use crate::renew::Renewal;

/// For a request that is no stream, from asking to the whole answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The user's way into one namespace of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    renewal: Arc<Renewal>,
    namespace: String,
    context: String,
    server: String,
    /// Microseconds that the fastest answer took so far.
    fastest: AtomicU64,
}

impl Cluster {
    /// Reads the kubeconfig (and runs its exec plugin, where it has one). Opens no connection yet: an API server that
    /// cannot be reached shows with the first request.
    pub async fn connect(options: &ConnectOptions) -> Result<Cluster, Error> {
        let loaded = load(options, &Surroundings::of_process()).await?;
        let namespace = loaded.config.default_namespace.clone();
        let server = loaded.config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let context = loaded.context.clone();
        let renewal = Arc::new(Renewal::new(options, loaded).await?);
        let client = Client::new(renewal.requests(), namespace.clone());
        Ok(Cluster {
            inner: Arc::new(Inner { client, renewal, namespace, context, server, fastest: AtomicU64::new(u64::MAX) }),
        })
    }

    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// The kubeconfig context's name; `in-cluster` for a pod's own service account.
    pub fn context(&self) -> &str {
        &self.inner.context
    }

    /// The API server's URL.
    pub fn server(&self) -> &str {
        &self.inner.server
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.inner.client.clone(), &self.inner.namespace)
    }

    /// Waits for the answer to a request that is no stream. `doing` completes "cannot …".
    pub(crate) async fn ask<T>(
        &self,
        doing: impl fmt::Display,
        right: Right,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let answer = self.patient(&doing, request).await?;
        answer.map_err(|error| Error::from_kube(error, doing, right))
    }

    /// As `ask`, but leaves the API server's refusal to the caller.
    pub(crate) async fn patient<T>(
        &self,
        doing: impl fmt::Display,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<kube::Result<T>, Error> {
        let asked = Instant::now();
        let answer = timeout(REQUEST_TIMEOUT, request).await.map_err(|_| {
            Error::new(Kind::TimedOut, format!("cannot {doing}"))
                .because(format!("{} did not answer within {} s", self.server(), REQUEST_TIMEOUT.as_secs()))
                .hint("`kubectl get --raw /readyz` shows whether the API server is well")
        })?;
        if answer.is_ok() {
            self.inner.fastest.fetch_min(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        Ok(answer)
    }

    /// What the API server's answers take when it has little to do: the fastest so far.
    pub fn fastest_answer(&self) -> Option<Duration> {
        Some(self.inner.fastest.load(Ordering::Relaxed)).filter(|us| *us < u64::MAX).map(Duration::from_micros)
    }

    /// How long the API server takes, now, for a small answer such as everybody asks for; `limit` when it takes longer or is
    /// too busy for it. `None` when it cannot be told.
    pub async fn time_of_an_answer(&self, pod: &str, limit: Duration) -> Option<Duration> {
        let asked = Instant::now();
        match timeout(limit, self.api::<Pod>().get_metadata_opt(pod)).await {
            Ok(Ok(_)) => Some(asked.elapsed()),
            Ok(Err(kube::Error::Api(status))) if status.code == 429 => Some(limit),
            Ok(Err(_)) => None,
            Err(_) => Some(limit),
        }
    }

    pub(crate) async fn dial(&self, buffer: usize) -> Result<Stream, Error> {
        let dialer = self.inner.renewal.access().dialer;
        let error = match dialer.dial(buffer).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error.to_error(),
        };
        if error.kind() == Kind::Kubeconfig {
            self.renew().await;
        }
        Err(error)
    }

    /// Reads the kubeconfig again, since the API server does not take the credentials it had; for later requests.
    pub async fn renew(&self) {
        self.inner.renewal.renew().await;
    }

    /// When the credentials end, in seconds since 1970, where they tell.
    pub fn credentials_end(&self) -> Option<i64> {
        self.inner.renewal.access().ends
    }

    /// The whole URI and the headers that a GET of `path` would be sent with.
    pub(crate) async fn head(&self, path: &str) -> Result<(Uri, HeaderMap), Error> {
        let doing = "prepare a request to the API server";
        let request = Request::get(path)
            .body(Body::empty())
            .map_err(|error| Error::new(Kind::Internal, format!("cannot {doing}")).because(error))?;
        let answer = self.inner.renewal.access().heads.oneshot(request).await;
        answer.map(Response::into_body).map_err(|error| Error::from_chain(&*error, doing))
    }
}
