//! Asks the pod's name servers. The question is a DNS message of the client's and goes on as it is.

use bytes::Bytes;

use crate::describe::Sources;

/// A header and the shortest question.
const SHORTEST_QUERY: usize = 17;

/// The response as it came, or why there is none, for the user. Reads resolv.conf each time: it is one page, and may
/// be written anew by the kubelet.
pub(crate) async fn resolve(sources: &Sources, query: &[u8]) -> Result<Bytes, String> {
    if query.len() < SHORTEST_QUERY {
        return Err("the question is no DNS message".into());
    }
    let conf =
        dns::host_resolv_conf(&sources.resolv_conf).map_err(|error| format!("the pod's resolv.conf: {error}"))?;
    let mut servers = conf.nameservers;
    servers.iter_mut().for_each(|server| server.set_port(sources.dns_port));
    let asked = dns::exchange(&servers, query).await;
    asked.map_err(|error| format!("the pod's name servers do not answer: {error}"))
}
