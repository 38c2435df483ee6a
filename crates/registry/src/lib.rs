//! Pushes an image to a registry (OCI distribution specification 1.1): blobs, manifests, one index under a tag.
//!
//! Pure: `reference` and `challenge`. `credentials` reads what `docker login` and `podman login` wrote and runs their
//! helpers. `http` is one connection per request, with names resolved by `dns::lookup`, as the binary is static. What it
//! does not: pull, cross-repository mounts, chunked uploads.

mod challenge;
mod credentials;
mod error;
mod http;
mod push;
mod reference;

pub use credentials::{Credentials, Keys};
pub use error::Error;
pub use push::{Pushed, push};
pub use reference::Reference;
