//! The checks that keep the tree as ARCHITECTURE.md says. Each returns what it found, one sentence each; the tidy test asks
//! for none, `cargo xtask tidy` prints them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{crds, layers, tree};

type Found = anyhow::Result<Vec<String>>;

/// Looks at a workspace.
type Check = fn(&Path) -> Found;

/// Name and check.
pub const CHECKS: &[(&str, Check)] = &[
    ("arrows point down", arrows),
    ("every source file is in a module tree", orphans),
    ("generated CRDs are current", generated),
    ("no file names a place of one machine", places),
    ("thinking has no I/O", thinking),
    ("every source file says what it is", headers),
];

fn metadata(workspace: &Path) -> anyhow::Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace)
        .output()
        .context("cargo metadata")?;
    ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

pub fn arrows(workspace: &Path) -> Found {
    Ok(layers::violations(&metadata(workspace)?))
}

pub fn orphans(workspace: &Path) -> Found {
    let files = tree::orphans(&metadata(workspace)?)?;
    Ok(files.iter().map(|f| format!("{} is in no module tree", below(f, workspace))).collect())
}

pub fn generated(workspace: &Path) -> Found {
    Ok(crds::stale(workspace)?.into_iter().map(|f| format!("{f} is not what `cargo xtask crds` writes")).collect())
}

pub fn places(workspace: &Path) -> Found {
    Ok(tree::machine_paths(workspace)?.into_iter().map(|f| format!("{f} names a place of one machine")).collect())
}

/// A crate in thinking has no I/O, no clock and nothing async. Its tests may: what follows `#[cfg(test)]` is not looked at.
pub fn thinking(workspace: &Path) -> Found {
    let (crate_, _, shim) = layers::SHIM;
    let shim = workspace.join(crate_).join(shim).display().to_string();
    let mut found = Vec::new();
    for name in layers::thinking() {
        for file in tree::files(&workspace.join(name).join("src"))? {
            if file.display().to_string().starts_with(&shim) || file.file_stem().is_some_and(|s| s == "tests") {
                continue;
            }
            let text = std::fs::read_to_string(&file)?;
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
                for word in layers::NOT_IN_SOURCES.iter().filter(|w| line.contains(**w)) {
                    found.push(format!("{} has {word}", below(&file, workspace)));
                }
            }
        }
    }
    Ok(found)
}

pub fn headers(workspace: &Path) -> Found {
    let mut found = Vec::new();
    for file in tree::files(workspace)? {
        if file.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let place = below(&file, workspace);
        if !std::fs::read_to_string(&file)?.starts_with("//!") {
            found.push(format!("{place} does not begin with //!"));
        }
        // Below tests/ a mod.rs is what several targets share, and anything else would be a target of its own.
        if file.file_name().is_some_and(|n| n == "mod.rs") && !place.contains("/tests/") {
            found.push(format!("{place} should be named after its directory"));
        }
    }
    Ok(found)
}

fn below(file: &Path, workspace: &Path) -> String {
    file.strip_prefix(workspace).unwrap_or(file).display().to_string()
}
