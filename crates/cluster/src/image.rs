//! Names of the agent's image.

/// The image of this release, as `stead image save` names it.
pub fn default_image() -> String {
    format!("stead-agent:{}", crate::RELEASE)
}

/// The reference as container runtimes store it: with registry and namespace (`docker.io/library/…`) and a tag.
pub fn normalized(image: &str) -> String {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let named = if first.contains(['.', ':']) || first == "localhost" {
        image.to_owned()
    } else if first.is_empty() {
        format!("docker.io/library/{rest}")
    } else {
        format!("docker.io/{image}")
    };
    let last = named.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { named } else { format!("{named}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_reference_gets_what_the_runtime_adds() {
        for (short, long) in [
            ("stead-agent:0.1.0", "docker.io/library/stead-agent:0.1.0"),
            ("team/stead-agent", "docker.io/team/stead-agent:latest"),
            ("registry.example:5000/a", "registry.example:5000/a:latest"),
            ("localhost/a@sha256:00", "localhost/a@sha256:00"),
        ] {
            assert_eq!(normalized(short), long);
        }
    }
}
