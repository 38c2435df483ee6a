//! The role that gives every right of the table, as an admin applies it. Pure.

use std::collections::BTreeMap;

use crate::rights::Need;

/// Verbs by resource, resources by group and whether they are namespaced: a ClusterRole that the default role `edit` (and so
/// `admin`) takes up, and one for what lies outside of namespaces.
pub fn role_yaml(needs: &[Need]) -> String {
    let (inside, outside): (Vec<&Need>, Vec<&Need>) = needs.iter().partition(|need| need.namespaced);
    let mut text = String::from(
        "# Everything that stead uses. The first role is added to the default roles edit and admin of every namespace.\n",
    );
    text += &role("stead", true, &inside);
    if !outside.is_empty() {
        text += "---\n# Hints only: without it stead knows less about the cluster. Bind it with\n\
                 # kubectl create clusterrolebinding stead-hints --clusterrole=stead-hints --group=GROUP\n";
        text += &role("stead-hints", false, &outside);
    }
    text
}

fn role(name: &str, aggregates: bool, needs: &[&Need]) -> String {
    let labels = if aggregates { "\n  labels: {rbac.authorization.k8s.io/aggregate-to-edit: \"true\"}" } else { "" };
    let mut text = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: {name}{labels}\nrules:\n"
    );
    let mut rules: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for need in needs {
        rules.entry((need.group, need.full_resource())).or_default().push(need.verb);
    }
    for ((group, resource), mut verbs) in rules {
        verbs.sort_unstable();
        verbs.dedup();
        let verbs = verbs.join(", ");
        text += &format!("- {{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verbs}]}}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rights::NEEDS;

    #[test]
    fn every_right_of_the_table_is_in_the_role() {
        let text = role_yaml(NEEDS);
        for need in NEEDS {
            let of_resource = format!("resources: [{}]", need.full_resource());
            let line = text
                .lines()
                .find(|line| line.contains(&of_resource) && line.contains(&format!("apiGroups: [\"{}\"]", need.group)));
            let line = line.unwrap_or_else(|| panic!("no rule for {}", need.full_resource()));
            let verbs = line.split("verbs: [").nth(1).and_then(|rest| rest.split(']').next()).expect("verbs");
            assert!(verbs.split(", ").any(|verb| verb == need.verb), "{} of {line}", need.verb);
        }
    }
}
