//! deploy/crds: one file for each kind, `<group>_<plural>.yaml`, written from `api::crds`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

const DIR: &str = "deploy/crds";
const HEADER: &str = "# Written by `cargo xtask crds` from the types of the crate api.\n";

/// File name and content of every kind.
fn rendered() -> anyhow::Result<BTreeMap<String, String>> {
    api::crds::all()
        .into_iter()
        .map(|crd| {
            let name = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
            // Through a JSON value: its maps are sorted, so that the order of Rust fields is no part of the file.
            let value = serde_json::to_value(&crd).with_context(|| name.clone())?;
            Ok((name, format!("{HEADER}{}", serde_saphyr::to_string(&value)?)))
        })
        .collect()
}

fn present(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        files.push(entry?.path());
    }
    Ok(files)
}

/// Writes all, removes what belongs to no kind any more, and tells the paths of what changed.
pub fn write(workspace: &Path) -> anyhow::Result<Vec<String>> {
    let stale = stale(workspace)?;
    let want = rendered()?;
    for path in &stale {
        let file = workspace.join(path);
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match want.get(name) {
            Some(text) => std::fs::write(&file, text).with_context(|| path.clone())?,
            None => std::fs::remove_file(&file).with_context(|| path.clone())?,
        }
    }
    Ok(stale)
}

/// Paths below the workspace of files that are not what `write` would leave: other text, missing, or of no kind.
pub fn stale(workspace: &Path) -> anyhow::Result<Vec<String>> {
    let dir = workspace.join(DIR);
    std::fs::create_dir_all(&dir)?;
    let want = rendered()?;
    let mut out = Vec::new();
    for (name, text) in &want {
        if std::fs::read_to_string(dir.join(name)).ok().as_ref() != Some(text) {
            out.push(format!("{DIR}/{name}"));
        }
    }
    for file in present(&dir)? {
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if !want.contains_key(&name) {
            out.push(format!("{DIR}/{name}"));
        }
    }
    Ok(out)
}
