//! The tree is as ARCHITECTURE.md says: layers, no lost files, generated files current, no place of one machine.

use std::process::Command;

fn metadata() -> serde_json::Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(xtask::workspace())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata writes JSON")
}

#[test]
fn arrows_point_down() {
    assert_eq!(xtask::layers::violations(&metadata()), Vec::<String>::new());
}

#[test]
fn every_source_file_is_in_a_module_tree() {
    let orphans = xtask::tree::orphans(&metadata()).expect("the tree can be read");
    assert!(orphans.is_empty(), "{orphans:#?}");
}

#[test]
fn generated_crds_are_current() {
    let stale = xtask::crds::stale(&xtask::workspace()).expect("deploy/crds can be read");
    assert!(stale.is_empty(), "run `cargo xtask crds`: {stale:?}");
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let named = xtask::tree::machine_paths(&xtask::workspace()).expect("the tree can be read");
    assert!(named.is_empty(), "{named:#?}");
}

/// `api` may name only what of kube is types and derive macros.
#[test]
fn api_uses_no_client() {
    for file in xtask::tree::files(&xtask::workspace().join("api/src")).expect("the tree can be read") {
        let text = std::fs::read_to_string(&file).expect("a source file is text");
        for word in ["kube::Client", "kube::Api", "kube::client", "kube::api", "kube::runtime", "std::fs", "std::time::SystemTime", "async fn"] {
            assert!(!text.contains(word), "{} names {word}", file.display());
        }
    }
}
