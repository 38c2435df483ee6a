//! Writes container images as OCI archives: the same input gives the same bytes, on any machine and at any time.
//!
//! What it does: layers from files or from an existing tar, an image config, manifests, one index for one or several
//! architectures, all in one tar that `ctr images import`, `podman load`, `skopeo` and `docker load` read.
//! [`parts`] gives the same content to whoever pushes it. What it does not: talk to registries, run anything, read Dockerfiles, build file systems.
//!
//! Layers are plain tar unless [`Layer::gzip`] is asked for: import of a plain layer needs no inflating (a 120 MB layer
//! costs 4-5 s of CPU to deflate and saves only disk), while an image that travels to other machines wants a third of
//! the size.

mod archive;
mod layer;

pub use archive::{Blob, ImageBuilder, Parts, parts, write_index};
pub use layer::{File, Layer};

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive could not be written, or a source tar could not be read.
    #[error("cannot read or write the archive: {0}")]
    Io(#[from] std::io::Error),
    /// A path that leaves the image's root, or is empty.
    #[error("path {0:?} does not lie inside the image")]
    Path(String),
    /// An index over several images of different names, or of none.
    #[error("an index needs at least one image, and all of one name")]
    Index,
}
