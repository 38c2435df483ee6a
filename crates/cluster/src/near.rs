//! Which of the names that exist a mistyped one may have meant. Pure.

/// At most this many are worth reading.
const SHOWN: usize = 5;

/// The names near to `wanted`, nearest first, each once: few edits away, or one begins with or contains the other.
pub(crate) fn near<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut ranked: Vec<(usize, &str)> =
        names.into_iter().filter_map(|name| Some((distance(wanted, name)?, name))).collect();
    ranked.sort();
    ranked.dedup();
    ranked.into_iter().take(SHOWN).map(|(_, name)| name).collect()
}

/// Small is near; `None` is not near at all.
fn distance(wanted: &str, name: &str) -> Option<usize> {
    let edits = strsim::damerau_levenshtein(wanted, name);
    // A third of the letters wrong is still a typing error; "web" and "api" are not near.
    if edits <= wanted.chars().count().max(3) / 3 {
        return Some(edits);
    }
    let (short, long) = if wanted.len() < name.len() { (wanted, name) } else { (name, wanted) };
    if short.len() < 2 {
        return None;
    }
    if long.starts_with(short) {
        Some(10)
    } else if long.contains(short) {
        Some(20)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_come_before_longer_names() {
        assert_eq!(near("frontned", ["backend", "frontend-canary", "frontend"]), ["frontend"]);
        assert_eq!(near("web", ["api", "web-canary", "wbe", "my-web"]), ["wbe", "web-canary", "my-web"]);
    }

    #[test]
    fn unlike_names_are_not_offered() {
        assert!(near("web", ["api", "db", "a"]).is_empty());
    }

    #[test]
    fn a_name_found_twice_is_offered_once() {
        assert_eq!(near("wbe", ["web", "web"]), ["web"]);
    }
}
