//! An archive read back the way a runtime reads it, with an independent `tar`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Read;

use oci::{File, ImageBuilder, Layer};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn image(arch: &str) -> ImageBuilder {
    let long = format!("opt/{}/file", "x".repeat(180));
    let layer = Layer::from_files([
        File::new("bin/app", 0o755, "program"),
        File::new(long, 0o600, "long name").owner(1000, 1001),
        File::symlink("bin/link", "app"),
        File::directory("tmp", 0o1777),
    ])
    .unwrap();
    ImageBuilder::new("localhost/app:1.2")
        .arch(arch)
        .layer(layer.clone().gzip().unwrap())
        .layer(layer)
        .entrypoint(["/bin/app"])
        .cmd(["serve"])
        .env("A", "1")
        .env("B", "2")
        .user("1000:1001")
        .workdir("/tmp")
        .exposed_port("8080/tcp")
        .label("stead.dev/test", "yes")
}

fn written(image: &ImageBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write(&mut bytes).unwrap();
    bytes
}

fn files(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(bytes);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    };
    archive.entries().unwrap().map(read).collect()
}

/// The blob a descriptor names, after checking its digest and size.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let (_, hex) = descriptor["digest"].as_str().unwrap().split_once(':').unwrap();
    let content = &files[&format!("blobs/sha256/{hex}")];
    let actual: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(actual, hex);
    assert_eq!(descriptor["size"], content.len());
    content
}

fn check_manifest(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
    let manifest: Value = serde_json::from_slice(blob(files, descriptor)).unwrap();
    let config: Value = serde_json::from_slice(blob(files, &manifest["config"])).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    assert!(layers[0]["mediaType"].as_str().unwrap().ends_with("tar+gzip"));
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(blob(files, &layers[0])).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, blob(files, &layers[1]), "the deflated layer holds the same tar");
    assert_eq!(config["rootfs"]["diff_ids"][0], layers[1]["digest"]);
    assert_eq!(config["architecture"], descriptor["platform"]["architecture"]);
    config
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert_eq!(written(&image("amd64")), written(&image("amd64")));
}

#[test]
fn every_descriptor_names_a_blob_of_its_digest_and_size() {
    let files = files(&written(&image("amd64")));
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let descriptor = &index["manifests"][0];
    assert_eq!(descriptor["annotations"]["io.containerd.image.name"], "localhost/app:1.2");
    assert_eq!(descriptor["annotations"]["org.opencontainers.image.ref.name"], "1.2");
    let config = check_manifest(&files, descriptor);
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/bin/app"]));
    assert_eq!(config["config"]["Env"], serde_json::json!(["A=1", "B=2"]));
    assert_eq!(config["config"]["User"], "1000:1001");
    assert_eq!(config["config"]["ExposedPorts"], serde_json::json!({ "8080/tcp": {} }));
}

#[test]
fn an_index_holds_a_manifest_for_each_architecture() {
    let mut bytes = Vec::new();
    oci::write_index(&[image("amd64"), image("arm64")], &mut bytes).unwrap();
    let files = files(&bytes);
    let outer: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let inner: Value = serde_json::from_slice(blob(&files, &outer["manifests"][0])).unwrap();
    let archs: Vec<_> =
        inner["manifests"].as_array().unwrap().iter().map(|m| m["platform"]["architecture"].clone()).collect();
    assert_eq!(archs, ["amd64", "arm64"]);
    inner["manifests"].as_array().unwrap().iter().for_each(|m| drop(check_manifest(&files, m)));
}

#[test]
fn the_system_tar_reads_it() {
    let file = std::env::temp_dir().join(format!("oci-archive-{}.tar", std::process::id()));
    std::fs::write(&file, written(&image("amd64"))).unwrap();
    let listed = std::process::Command::new("tar").arg("-tf").arg(&file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(listed.status.success());
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.starts_with("oci-layout\nindex.json\nblobs/sha256/"), "{text}");
}
