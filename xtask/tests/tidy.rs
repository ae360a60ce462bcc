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

/// A crate in thinking has no I/O, no clock and nothing async. Its tests may: what follows `#[cfg(test)]` is not looked at.
#[test]
fn thinking_has_no_io() {
    let (crate_, _, shim) = xtask::layers::SHIM;
    let shim = xtask::workspace().join(crate_).join(shim).display().to_string();
    let mut found = Vec::new();
    for name in xtask::layers::thinking() {
        for file in xtask::tree::files(&xtask::workspace().join(name).join("src")).expect("the tree can be read") {
            if file.display().to_string().starts_with(&shim) || file.file_stem().is_some_and(|s| s == "tests") {
                continue;
            }
            let text = std::fs::read_to_string(&file).expect("a source file is text");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
                for word in xtask::layers::NOT_IN_SOURCES.iter().filter(|w| line.contains(**w)) {
                    found.push(format!("{}: {word}", file.strip_prefix(xtask::workspace()).unwrap_or(&file).display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_source_file_says_what_it_is() {
    let mut found = Vec::new();
    for file in xtask::tree::files(&xtask::workspace()).expect("the tree can be read") {
        if file.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a source file is text");
        let place = file.strip_prefix(xtask::workspace()).unwrap_or(&file).display().to_string();
        if !text.starts_with("//!") {
            found.push(format!("{place} does not begin with //!"));
        }
        // Below tests/ a mod.rs is what several targets share, and anything else would be a target of its own.
        if file.file_name().is_some_and(|n| n == "mod.rs") && !place.contains("/tests/") {
            found.push(format!("{place}: name it after its directory"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
