//! The layers of ARCHITECTURE.md as a table: which crate may depend on which, and what thinking never sees.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Layers from the top down. A crate may depend on crates of lower layers, and on those named beside it.
pub const LAYERS: &[(&str, &[&str])] = &[
    ("proof", &["integration-tests", "leak-oracle", "oracles", "xtask"]),
    ("processes", &["controller", "bridge-agent", "cli"]),
    ("assembly", &["plumbing", "cni-plugin", "cni-ovs", "cni-macvlan", "cni-meta", "standalone"]),
    ("hands", &["ovsdb", "netlink", "runtime"]),
    ("thinking", &["api", "cni", "ipam", "planner"]),
    ("words", &["model"]),
];

/// Place of `thinking` in `LAYERS`; what is below it obeys the same.
const THINKING: usize = 4;

/// Crates of words and thinking.
pub fn thinking() -> impl Iterator<Item = &'static str> {
    LAYERS[THINKING..].iter().flat_map(|(_, crates)| crates.iter().copied())
}

/// Arrows within a layer. The hands do not know each other, processes meet in API objects or CNI messages.
pub const WITHIN: &[(&str, &str)] = &[
    // What a pool means is arithmetic of addresses, and that exists once.
    ("api", "ipam"),
    ("cni-ovs", "cni-plugin"),
    ("cni-macvlan", "cni-plugin"),
    // Running alone, where no agent belongs to the host (features `bin` and `alone`).
    ("cni-plugin", "plumbing"),
    ("cni-ovs", "plumbing"),
    ("cni-macvlan", "plumbing"),
];

/// Crates that thinking and words never see, because each is I/O, a clock or async. `kube` is not among them: its derive
/// macros write the kinds, and `api` uses nothing else of it (a test looks at the sources).
pub const NOT_IN_THINKING: &[&str] = &[
    "tokio",
    "tokio-util",
    "futures-util",
    "hyper",
    "hyper-util",
    "tower",
    "nix",
    "netlink-sys",
    "rtnetlink",
    "zbus",
    "kube-client",
    "kube-runtime",
    "tracing",
    "tempfile",
];

/// Who judges the product from outside shares nothing with it: a mistake that both made would be right.
pub const APART: &[&str] = &["leak-oracle"];

/// The blocking socket of a CNI binary, which lies with the protocol it speaks: the one place in thinking that does I/O.
pub const SHIM: (&str, &str, &str) = ("cni", "nix", "src/shim");

/// Words that no source of words and thinking has.
pub const NOT_IN_SOURCES: &[&str] = &[
    "tokio::",
    "async fn",
    "std::fs",
    "std::env::",
    "std::process::",
    "UnixStream",
    "TcpStream",
    "UdpSocket",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "kube::Client",
    "kube::Api",
    "kube::client",
    "kube::api::",
    "kube::runtime",
];

/// The arrows of the workspace that the table does not allow, one sentence each, from `cargo metadata --no-deps`.
/// Dev-dependencies are not arrows: a test may use what it judges.
pub fn violations(metadata: &Value) -> Vec<String> {
    let layer: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(i, (_, crates))| crates.iter().map(move |c| (*c, i))).collect();
    let mut out = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        seen.insert(name.to_owned());
        let Some(&from) = layer.get(name) else {
            out.push(format!("{name} has no layer, add it to the table"));
            continue;
        };
        for dep in package["dependencies"].as_array().into_iter().flatten() {
            if dep["kind"].as_str() == Some("dev") {
                continue;
            }
            let on = dep["name"].as_str().unwrap_or_default();
            match layer.get(on) {
                Some(_) if APART.contains(&name) => out.push(format!("{name} must depend on nothing of ours, and does on {on}")),
                Some(&to) if to > from || WITHIN.contains(&(name, on)) => {}
                Some(&to) => out.push(format!("{name} ({}) must not depend on {on} ({})", LAYERS[from].0, LAYERS[to].0)),
                None if (name, on) == (SHIM.0, SHIM.1) => {}
                None if from >= THINKING && NOT_IN_THINKING.contains(&on) => {
                    out.push(format!("{name} ({}) must not depend on {on}", LAYERS[from].0))
                }
                None => {}
            }
        }
    }
    for (_, crates) in LAYERS {
        for missing in crates.iter().filter(|c| !seen.contains(**c)) {
            out.push(format!("{missing} is in the table of layers and not in the workspace"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(name: &str, on: &str, kind: Option<&str>) -> Vec<String> {
        let packages: Vec<Value> = LAYERS
            .iter()
            .flat_map(|(_, c)| c.iter())
            .map(|c| json!({"name": c, "dependencies": if *c == name { json!([{"name": on, "kind": kind}]) } else { json!([]) }}))
            .collect();
        violations(&json!({ "packages": packages }))
    }

    #[test]
    fn arrows_point_down() {
        assert_eq!(with("controller", "planner", None), Vec::<String>::new());
        assert_eq!(with("planner", "netlink", None), ["planner (thinking) must not depend on netlink (hands)"]);
        assert_eq!(with("ovsdb", "netlink", None), ["ovsdb (hands) must not depend on netlink (hands)"]);
        assert_eq!(
            with("controller", "bridge-agent", None),
            ["controller (processes) must not depend on bridge-agent (processes)"]
        );
    }

    #[test]
    fn the_oracle_shares_no_code_with_what_it_judges() {
        assert_eq!(with("leak-oracle", "model", None), ["leak-oracle must depend on nothing of ours, and does on model"]);
        assert_eq!(with("leak-oracle", "serde_json", None), Vec::<String>::new());
    }

    #[test]
    fn thinking_sees_no_runtime() {
        assert_eq!(with("ipam", "tokio", None), ["ipam (thinking) must not depend on tokio"]);
        assert_eq!(with("ipam", "tokio", Some("dev")), Vec::<String>::new());
        assert_eq!(with("ovsdb", "tokio", None), Vec::<String>::new());
    }

    #[test]
    fn a_crate_without_a_layer_is_told() {
        assert!(
            violations(&json!({"packages": [{"name": "other", "dependencies": []}]}))
                .contains(&"other has no layer, add it to the table".to_owned())
        );
    }
}
