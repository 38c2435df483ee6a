//! One layer: a tar in a fixed order, with fixed times. Does not know what an image is.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::Error;

/// A file, directory or symbolic link of a layer. Owner is root unless said otherwise.
#[derive(Debug, Clone)]
pub struct File {
    path: String,
    mode: u32,
    owner: (u64, u64),
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Vec<u8>),
    Directory,
    Symlink(String),
    Hardlink(String),
    Device { character: bool, major: u32, minor: u32 },
    Fifo,
}

impl File {
    /// A regular file; `path` is absolute in the image (a leading slash may be left out).
    pub fn new(path: impl Into<String>, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode, owner: (0, 0), content: Content::Bytes(bytes.into()) }
    }

    /// A directory. Parents that nobody names are made with mode 0755.
    pub fn directory(path: impl Into<String>, mode: u32) -> Self {
        Self { path: path.into(), mode, owner: (0, 0), content: Content::Directory }
    }

    /// A symbolic link to `target`.
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o777, owner: (0, 0), content: Content::Symlink(target.into()) }
    }

    /// Numeric owner.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }
}

/// A finished layer: its blob, and the digest of the tar inside.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: String,
    pub(crate) media_type: &'static str,
}

impl Layer {
    /// Of several files of one path the last counts.
    ///
    /// # Errors
    /// A path that leaves the image.
    pub fn from_files(files: impl IntoIterator<Item = File>) -> Result<Self, Error> {
        let mut by_path = BTreeMap::new();
        for file in files {
            let path = normalise(&file.path)?;
            let mut parent = path.as_str();
            while let Some((up, _)) = parent.rsplit_once('/') {
                by_path.entry(up.to_owned()).or_insert_with(|| File::directory(up, 0o755));
                parent = up;
            }
            by_path.insert(path, file);
        }
        Self::write(by_path)
    }

    /// Takes over an existing tar (`mmdebstrap`'s, say): owners and modes stay; times become 0, the order becomes that
    /// of the paths, and extended attributes, user names and the tar's own dialect are dropped.
    ///
    /// # Errors
    /// A tar that cannot be read, or holds a path that leaves the image.
    pub fn from_tar(tar: impl Read) -> Result<Self, Error> {
        let mut by_path = BTreeMap::new();
        for entry in tar::Archive::new(tar).entries()? {
            let mut entry = entry?;
            let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if raw.trim_matches(['.', '/']).is_empty() {
                continue; // the root itself
            }
            let Some(content) = read_content(&mut entry)? else { continue };
            let header = entry.header();
            let owner = (header.uid()?, header.gid()?);
            let file = File { path: raw.clone(), mode: header.mode()? & 0o7777, owner, content };
            by_path.insert(normalise(&raw)?, file);
        }
        Self::write(by_path)
    }

    /// The same layer deflated (no name, no time in the header: deterministic as well).
    ///
    /// # Errors
    /// None in practice: it writes to memory.
    pub fn gzip(self) -> Result<Self, Error> {
        let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
        encoder.write_all(&self.blob)?;
        let blob = encoder.finish()?;
        Ok(Self { blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip", ..self })
    }

    fn write(by_path: BTreeMap<String, File>) -> Result<Self, Error> {
        let mut builder = Builder::new(Vec::new());
        // A hard link must come after the file it names, whatever their names.
        let (links, files): (Vec<_>, Vec<_>) =
            by_path.into_iter().partition(|(_, file)| matches!(file.content, Content::Hardlink(_)));
        for (path, file) in files.into_iter().chain(links) {
            append(&mut builder, &path, &file)?;
        }
        let blob = builder.into_inner()?;
        let diff_id = digest(&blob);
        Ok(Self { blob, diff_id, media_type: "application/vnd.oci.image.layer.v1.tar" })
    }
}

/// `sha256:<hex>` of some bytes, as OCI writes it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

fn normalise(path: &str) -> Result<String, Error> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(Error::Path(path.to_owned()));
    }
    Ok(parts.join("/"))
}

fn read_content(entry: &mut tar::Entry<'_, impl Read>) -> Result<Option<Content>, Error> {
    let link = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
    let header = entry.header();
    let device = |character| -> Result<_, Error> {
        let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        Ok(Content::Device { character, major, minor })
    };
    Ok(Some(match header.entry_type() {
        EntryType::Directory => Content::Directory,
        EntryType::Symlink => Content::Symlink(link.unwrap_or_default()),
        EntryType::Link => Content::Hardlink(normalise(&link.unwrap_or_default())?),
        EntryType::Char => device(true)?,
        EntryType::Block => device(false)?,
        EntryType::Fifo => Content::Fifo,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Content::Bytes(bytes)
        }
        _ => return Ok(None),
    }))
}

fn append(builder: &mut Builder<Vec<u8>>, path: &str, file: &File) -> Result<(), Error> {
    let mut header = Header::new_gnu();
    header.set_mode(file.mode);
    header.set_uid(file.owner.0);
    header.set_gid(file.owner.1);
    header.set_mtime(0);
    header.set_size(0);
    match &file.content {
        Content::Bytes(bytes) => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, path, bytes.as_slice())?;
            return Ok(());
        }
        Content::Symlink(target) | Content::Hardlink(target) => {
            let symbolic = matches!(file.content, Content::Symlink(_));
            header.set_entry_type(if symbolic { EntryType::Symlink } else { EntryType::Link });
            builder.append_link(&mut header, path, target)?;
            return Ok(());
        }
        Content::Directory => header.set_entry_type(EntryType::Directory),
        Content::Fifo => header.set_entry_type(EntryType::Fifo),
        Content::Device { character, major, minor } => {
            header.set_entry_type(if *character { EntryType::Char } else { EntryType::Block });
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
        }
    }
    builder.append_data(&mut header, path, std::io::empty())?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn names(layer: &Layer) -> Vec<String> {
        let mut archive = tar::Archive::new(layer.blob.as_slice());
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn parents_come_before_their_files_and_names_are_sorted() {
        let layer =
            Layer::from_files([File::new("/usr/bin/b", 0o755, "b"), File::new("usr/bin/a", 0o755, "a")]).unwrap();
        assert_eq!(names(&layer), ["usr", "usr/bin", "usr/bin/a", "usr/bin/b"]);
    }

    #[test]
    fn a_path_that_leaves_the_image_is_refused() {
        assert!(matches!(Layer::from_files([File::new("../x", 0o644, "")]), Err(Error::Path(_))));
    }

    #[test]
    fn a_tar_in_any_order_and_time_gives_the_same_layer_and_keeps_owners() {
        let make = |reverse: bool, time: u64| {
            let mut builder = Builder::new(Vec::new());
            let mut entries = vec![("./etc/a", "1"), ("./etc/b", "2")];
            if reverse {
                entries.reverse();
            }
            for (path, text) in entries {
                let mut header = Header::new_gnu();
                header.set_mode(0o640);
                header.set_uid(33);
                header.set_gid(34);
                header.set_mtime(time);
                header.set_size(1);
                builder.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
            Layer::from_tar(builder.into_inner().unwrap().as_slice()).unwrap()
        };
        let (one, two) = (make(false, 5), make(true, 77));
        assert_eq!(one.blob, two.blob);
        let mut archive = tar::Archive::new(one.blob.as_slice());
        let header = archive.entries().unwrap().next().unwrap().unwrap().header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap()), (33, 34, 0o640));
        assert_eq!(header.mtime().unwrap(), 0);
    }

    #[test]
    fn a_hard_link_follows_its_target() {
        let mut builder = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(1);
        builder.append_data(&mut header, "z", "x".as_bytes()).unwrap();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, "a", "z").unwrap();
        let layer = Layer::from_tar(builder.into_inner().unwrap().as_slice()).unwrap();
        assert_eq!(names(&layer), ["z", "a"]);
    }
}
