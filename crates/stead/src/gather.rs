//! What `gather-logs` puts together and how it is made fit to be sent. Pure but for `archive`, which writes bytes.

mod archive;
mod redact;

pub(crate) use archive::Archive;
pub(crate) use redact::{Redactor, looks_secret};
