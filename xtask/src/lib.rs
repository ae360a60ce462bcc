//! Chores of this repository as functions: writing what is generated, and the facts that the tidy test checks.
//! Knows the tree, nothing of what the code in it does.

pub mod crds;
pub mod layers;
pub mod tidy;
pub mod tree;

use std::path::{Path, PathBuf};

/// The workspace: the directory above this crate's.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}
