//! Credentials that end while a session lives: what was read of the kubeconfig is read again when the API server does not
//! take it any more, and every later request and pipe goes with what was found.

use std::sync::Arc;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Config;
use kube::client::{Body, ConfigExt};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use crate::dial::{DialError, Dialer, Stream};
use crate::error::{Error, Kind};
use crate::kubeconfig::{ConnectOptions, Loaded, Surroundings, load};
use crate::outline;

/// Unused connections of the pool are closed after this.
const IDLE: Duration = Duration::from_secs(20);

/// Read buffer of a connection for API requests, bytes.
const API_BUFFER: usize = 16 << 10;

/// Between two readings: a plugin may ask its user something.
const BETWEEN: Duration = Duration::from_secs(5);

/// Sends API requests.
type Requests = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// Puts base path, authorization and impersonation on a request, and hands it back instead of sending it.
type Heads = BoxCloneSyncService<Request<Body>, Response<(Uri, HeaderMap)>, BoxError>;

/// What one reading of the kubeconfig gave. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) dialer: Dialer,
    pub(crate) heads: Heads,
    /// When its credentials end, in seconds since 1970.
    pub(crate) ends: Option<i64>,
    requests: Requests,
}

/// The last reading, and how to read again.
pub(crate) struct Renewal {
    access: RwLock<Access>,
    /// Names the context, so that another one made current meanwhile is not taken.
    options: ConnectOptions,
    last: Mutex<Option<Instant>>,
}

impl Renewal {
    pub(crate) async fn new(options: &ConnectOptions, loaded: Loaded) -> Result<Self, Error> {
        let context = (!loaded.of_pod).then(|| loaded.context.clone());
        let options = ConnectOptions { context, ..options.clone() };
        Ok(Renewal { access: RwLock::new(Access::of(loaded).await?), options, last: Mutex::default() })
    }

    pub(crate) fn access(&self) -> Access {
        self.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends each request by the last reading; a refusal of who asks leads to the next one.
    pub(crate) fn requests(self: &Arc<Self>) -> Requests {
        let renewal = self.clone();
        BoxCloneSyncService::new(service_fn(move |request| {
            let renewal = renewal.clone();
            async move {
                let answer = renewal.access().requests.oneshot(request).await?;
                if answer.status() == StatusCode::UNAUTHORIZED {
                    // The answer does not wait for a plugin that may ask its user something.
                    tokio::spawn(async move { renewal.renew().await });
                }
                Ok(answer)
            }
        }))
    }

    /// Reads the kubeconfig again, unless it was just done.
    pub(crate) async fn renew(&self) {
        let mut last = self.last.lock().await;
        if last.is_some_and(|at| at.elapsed() < BETWEEN) {
            return;
        }
        let read = async { Access::of(load(&self.options, &Surroundings::of_process()).await?).await };
        match read.await {
            Ok(access) => *self.access.write().unwrap_or_else(PoisonError::into_inner) = access,
            Err(error) => tracing::info!(%error, "the kubeconfig cannot be read again"),
        }
        *last = Some(Instant::now());
    }
}

impl Access {
    /// Blocks, in a thread of its own, while an exec plugin runs.
    async fn of(loaded: Loaded) -> Result<Self, Error> {
        tokio::task::spawn_blocking(move || Self::with_config(&loaded.config))
            .await
            .map_err(|error| Error::new(Kind::Internal, "cannot prepare the cluster's client").because(error))?
    }

    fn with_config(config: &Config) -> Result<Self, Error> {
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
        let requests = layers().service(ServiceExt::<Request<Body>>::map_err(pool, BoxError::from));
        let heads = layers().service(service_fn(|request: Request<Body>| async move {
            let (parts, _) = request.into_parts();
            Ok::<_, BoxError>(Response::new((parts.uri, parts.headers)))
        }));
        Ok(Access {
            dialer,
            heads: BoxCloneSyncService::new(heads),
            ends: outline::end_of(&config.auth_info),
            requests: BoxCloneSyncService::new(requests),
        })
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
