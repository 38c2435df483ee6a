//! Config, manifest, index and the outer tar of an OCI archive.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::layer::digest;
use crate::{Error, Layer};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// One image of one architecture.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    name: String,
    arch: String,
    user: Option<String>,
    workdir: Option<String>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    ports: Vec<String>,
    labels: BTreeMap<String, String>,
    layers: Vec<Layer>,
}

impl ImageBuilder {
    /// `name` is the full reference (`docker.io/library/stead-agent:0.1.0`); the architecture is `amd64` at first.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            arch: "amd64".to_owned(),
            user: None,
            workdir: None,
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            ports: Vec::new(),
            labels: BTreeMap::new(),
            layers: Vec::new(),
        }
    }

    /// Architecture in Go's words: `amd64`, `arm64`.
    #[must_use]
    pub fn arch(mut self, arch: impl Into<String>) -> Self {
        self.arch = arch.into();
        self
    }

    /// Adds a layer above those before it.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// What always runs.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Arguments that a pod's `args` replace.
    #[must_use]
    pub fn cmd<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.cmd = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets one variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// `UID`, `UID:GID` or a name of the image's own /etc/passwd.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Directory the entrypoint starts in.
    #[must_use]
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// A port that the image says it listens on, as `8080/tcp`.
    #[must_use]
    pub fn exposed_port(mut self, port: impl Into<String>) -> Self {
        self.ports.push(port.into());
        self
    }

    /// One label of the image's config.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Writes an archive that holds this image alone.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: &mut impl Write) -> Result<(), Error> {
        let mut blobs = Blobs::default();
        let descriptor = self.manifest(&mut blobs);
        write_archive(out, &blobs, self.named(descriptor))
    }

    fn manifest(&self, blobs: &mut Blobs) -> Value {
        let layers: Vec<_> =
            self.layers.iter().map(|layer| blobs.add_bytes(layer.media_type, layer.blob.clone())).collect();
        let config = blobs.add_json(CONFIG, &self.config());
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        let mut descriptor = blobs.add_json(MANIFEST, &manifest);
        descriptor["platform"] = json!({ "architecture": self.arch, "os": "linux" });
        descriptor
    }

    fn config(&self) -> Value {
        let mut run = serde_json::Map::new();
        let mut set = |key: &str, value: Value, is_set: bool| {
            if is_set {
                run.insert(key.to_owned(), value);
            }
        };
        set("User", json!(self.user), self.user.is_some());
        set("WorkingDir", json!(self.workdir), self.workdir.is_some());
        set("Entrypoint", json!(self.entrypoint), !self.entrypoint.is_empty());
        set("Cmd", json!(self.cmd), !self.cmd.is_empty());
        set("Env", json!(self.env), !self.env.is_empty());
        set("Labels", json!(self.labels), !self.labels.is_empty());
        let ports: BTreeMap<_, _> = self.ports.iter().map(|port| (port, json!({}))).collect();
        set("ExposedPorts", json!(ports), !self.ports.is_empty());
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        json!({
            "architecture": self.arch, "os": "linux", "created": "1970-01-01T00:00:00Z", "config": run,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
    }

    fn named(&self, mut descriptor: Value) -> Value {
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor["annotations"] =
            json!({ "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag });
        descriptor
    }
}

/// Writes one archive over images of one name and several architectures; runtimes pick theirs.
///
/// # Errors
/// No image, images of different names, or the writer's.
pub fn write_index(images: &[ImageBuilder], out: &mut impl Write) -> Result<(), Error> {
    let (blobs, descriptor) = indexed(images)?;
    write_archive(out, &blobs, descriptor)
}

/// What a registry keeps of images of one name: blobs, a manifest for each architecture, one index over them.
#[derive(Debug)]
pub struct Parts {
    /// Layers and configs.
    pub blobs: Vec<Blob>,
    pub manifests: Vec<Blob>,
    /// What the name stands for.
    pub index: Blob,
}

/// Bytes that are known by their digest.
#[derive(Clone, Debug)]
pub struct Blob {
    /// `sha256:…`
    pub digest: String,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// The parts that [`write_index`] would write.
///
/// # Errors
/// No image, or images of different names.
pub fn parts(images: &[ImageBuilder]) -> Result<Parts, Error> {
    let (blobs, index) = indexed(images)?;
    let named = index["digest"].as_str().unwrap_or_default();
    let all = blobs.0.into_iter().map(|(digest, (media_type, bytes))| Blob { digest, media_type, bytes });
    let (mut parts, mut index) = ((Vec::new(), Vec::new()), None);
    for blob in all {
        match blob.media_type.as_str() {
            INDEX if blob.digest == named => index = Some(blob),
            MANIFEST => parts.1.push(blob),
            _ => parts.0.push(blob),
        }
    }
    Ok(Parts { blobs: parts.0, manifests: parts.1, index: index.ok_or(Error::Index)? })
}

/// The blobs of an index and its own descriptor.
fn indexed(images: &[ImageBuilder]) -> Result<(Blobs, Value), Error> {
    let first = images.first().ok_or(Error::Index)?;
    if images.iter().any(|image| image.name != first.name) {
        return Err(Error::Index);
    }
    let mut blobs = Blobs::default();
    let manifests: Vec<_> = images.iter().map(|image| image.manifest(&mut blobs)).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let descriptor = blobs.add_json(INDEX, &index);
    Ok((blobs, first.named(descriptor)))
}

/// Media type and content by digest: one blob is written once, however often it is named.
#[derive(Default)]
struct Blobs(BTreeMap<String, (String, Vec<u8>)>);

impl Blobs {
    fn add_json(&mut self, media_type: &str, value: &Value) -> Value {
        self.add_bytes(media_type, value.to_string().into_bytes()) // serde_json sorts keys: deterministic
    }

    fn add_bytes(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        self.0.insert(digest, (media_type.to_owned(), bytes));
        descriptor
    }
}

fn write_archive(out: &mut impl Write, blobs: &Blobs, descriptor: Value) -> Result<(), Error> {
    let mut builder = Builder::new(out);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor] }).to_string();
    append(&mut builder, "oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())?;
    append(&mut builder, "index.json", index.as_bytes())?;
    for (digest, (_, bytes)) in &blobs.0 {
        append(&mut builder, &format!("blobs/{}", digest.replace(':', "/")), bytes)?;
    }
    builder.finish()?;
    Ok(())
}

fn append(builder: &mut Builder<impl Write>, path: &str, bytes: &[u8]) -> Result<(), Error> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    Ok(builder.append_data(&mut header, path, bytes)?)
}
