//! A cluster as the user reaches it: its client for API requests and the head of requests that become byte pipes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::NamespaceResourceScope;
use kube::client::{Body, ConfigExt};
use kube::{Api, Client, Config, Resource};
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use crate::dial::{DialError, Dialer, Stream};
use crate::error::{Error, Kind, Right};
use crate::kubeconfig::{ConnectOptions, Surroundings, load};

/// For a request that is no stream, from asking to the whole answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Unused connections of the pool are closed after this.
const IDLE: Duration = Duration::from_secs(20);

/// Read buffer of a connection for API requests, bytes.
const API_BUFFER: usize = 16 << 10;

/// The user's way into one namespace of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    dialer: Dialer,
    heads: Heads,
    namespace: String,
    context: String,
    server: String,
}

/// Puts base path, authorization and impersonation on a request, and hands it back instead of sending it.
type Heads = BoxCloneSyncService<Request<Body>, Response<(Uri, HeaderMap)>, BoxError>;

impl Cluster {
    /// Reads the kubeconfig (and runs its exec plugin, where it has one). Opens no connection yet: an API server that
    /// cannot be reached shows with the first request.
    pub async fn connect(options: &ConnectOptions) -> Result<Cluster, Error> {
        let loaded = load(options, &Surroundings::of_process()).await?;
        // Blocks while an exec plugin runs, which may ask the user to log in.
        tokio::task::spawn_blocking(move || Self::with_config(&loaded.config, loaded.context))
            .await
            .map_err(|error| Error::new(Kind::Internal, "cannot prepare the cluster's client").because(error))?
    }

    pub(crate) fn with_config(config: &Config, context: String) -> Result<Cluster, Error> {
        let dialer = Dialer::new(config)?;
        let bad = |error: kube::Error| Error::from_chain(&error, "prepare the cluster's client");
        let auth = config.auth_layer().map_err(bad)?;
        let extra = config.extra_headers_layer().map_err(bad)?;
        let layers =
            || ServiceBuilder::new().layer(config.base_uri_layer()).option_layer(auth.as_ref()).layer(extra.clone());
        let pool: Pool<_, Body> = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector(dialer.clone()));
        let client = Client::new(
            layers().service(ServiceExt::<Request<Body>>::map_err(pool, BoxError::from)),
            config.default_namespace.clone(),
        );
        let heads = layers().service(service_fn(|request: Request<Body>| async move {
            let (parts, _) = request.into_parts();
            Ok::<_, BoxError>(Response::new((parts.uri, parts.headers)))
        }));
        Ok(Cluster {
            inner: Arc::new(Inner {
                client,
                dialer,
                heads: BoxCloneSyncService::new(heads),
                namespace: config.default_namespace.clone(),
                context,
                server: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            }),
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
        timeout(REQUEST_TIMEOUT, request).await.map_err(|_| {
            Error::new(Kind::TimedOut, format!("cannot {doing}"))
                .because(format!("{} did not answer within {} s", self.server(), REQUEST_TIMEOUT.as_secs()))
                .hint("`kubectl get --raw /readyz` shows whether the API server is well")
        })
    }

    pub(crate) async fn dial(&self, buffer: usize) -> Result<Stream, Error> {
        self.inner.dialer.dial(buffer).await.map_err(|error| error.to_error())
    }

    /// The whole URI and the headers that a GET of `path` would be sent with.
    pub(crate) async fn head(&self, path: &str) -> Result<(Uri, HeaderMap), Error> {
        let doing = "prepare a request to the API server";
        let request = Request::get(path)
            .body(Body::empty())
            .map_err(|error| Error::new(Kind::Internal, format!("cannot {doing}")).because(error))?;
        let answer = self.inner.heads.clone().oneshot(request).await;
        answer.map(Response::into_body).map_err(|error| Error::from_chain(&*error, doing))
    }
}

fn connector(
    dialer: Dialer,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<Stream>,
    Error = DialError,
    Future = BoxFuture<'static, Result<TokioIo<Stream>, DialError>>,
> + Clone
+ Send
+ Sync
+ 'static {
    service_fn(move |_: Uri| {
        let dialer = dialer.clone();
        let dialing: BoxFuture<'static, _> = Box::pin(async move { dialer.dial(API_BUFFER).await.map(TokioIo::new) });
        dialing
    })
}
