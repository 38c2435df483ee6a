//! The sample of the demo and of the README: three small services, `web` → `api` → `db`.

const MANIFEST: &str = include_str!("shop.yaml");

/// The services' names.
pub const SERVICES: [&str; 3] = ["web", "api", "db"];

/// The objects, for a namespace and with the test program's image.
pub fn manifest(namespace: &str, image: &str) -> String {
    MANIFEST.replace("$NAMESPACE", namespace).replace("$IMAGE", image)
}
