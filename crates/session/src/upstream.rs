//! The two sides that names are asked of: the pod's resolver, through the agent, and this machine's.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use wire::{Resolve, answer, request};

use crate::agent::Outbound;

/// The pod's name servers.
pub(crate) struct PodResolver(pub(crate) Outbound);

impl dns::Upstream for PodResolver {
    fn ask(&self, query: Bytes) -> BoxFuture<'static, io::Result<Bytes>> {
        let outbound = self.0.clone();
        Box::pin(async move {
            match outbound.ask(request::Kind::Resolve(Resolve { query })).await? {
                answer::Kind::Resolved(resolved) => Ok(resolved.response),
                _ => Err(io::Error::other("the agent answered something else than was asked")),
            }
        })
    }
}

/// This machine's name servers, as its resolv.conf named them when the session began.
pub(crate) struct MachineResolver {
    servers: Arc<[SocketAddr]>,
}

impl MachineResolver {
    pub(crate) fn from_resolv_conf() -> Self {
        let conf = dns::host_resolv_conf(Path::new("/etc/resolv.conf"));
        MachineResolver { servers: conf.map(|conf| conf.nameservers).unwrap_or_default().into() }
    }
}

impl dns::Upstream for MachineResolver {
    fn ask(&self, query: Bytes) -> BoxFuture<'static, io::Result<Bytes>> {
        let servers = self.servers.clone();
        Box::pin(async move { dns::exchange(&servers, &query).await })
    }
}
