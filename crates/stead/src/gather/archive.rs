//! The archive: text files in one gzipped tar, below one directory.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

/// Below which every file lies.
const TOP: &str = "stead-logs";

pub(crate) struct Archive<W: Write> {
    tar: Builder<GzEncoder<W>>,
    /// Seconds since 1970, the same for every file.
    made: u64,
    names: Vec<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W, made: u64) -> Self {
        Archive { tar: Builder::new(GzEncoder::new(out, Compression::default())), made, names: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(self.made);
        self.tar.append_data(&mut header, format!("{TOP}/{name}"), text.as_bytes())?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// The files that were added.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn finish(self) -> io::Result<W> {
        self.tar.into_inner()?.finish()
    }
}
