//! The files of the tree: which .rs files no crate root leads to, and which texts name a machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Every file below `dir` that git could know: no target directories, no dot directories but .ci and .cargo.
pub fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if name != "target" && (!name.starts_with('.') || name == ".ci" || name == ".cargo") {
                    todo.push(entry.path());
                }
            } else {
                out.push(entry.path());
            }
        }
    }
    out.sort();
    Ok(out)
}

/// .rs files of the package directories that no target's root reaches by `mod` items or `#[path]`.
pub fn orphans(metadata: &serde_json::Value) -> anyhow::Result<Vec<PathBuf>> {
    let mut reached = BTreeSet::new();
    let mut present = BTreeSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let dir = manifest.parent().context("a manifest lies in a directory")?;
        present.extend(files(dir)?.into_iter().filter(|f| f.extension().is_some_and(|e| e == "rs")));
        for target in package["targets"].as_array().into_iter().flatten() {
            let root = PathBuf::from(target["src_path"].as_str().unwrap_or_default());
            let below = root.parent().context("a source file lies in a directory")?.to_owned();
            follow(&root, &below, &mut reached)?;
        }
    }
    Ok(present.difference(&reached).cloned().collect())
}

/// Marks `file` and the files of its `mod` items; `below` is where those lie.
fn follow(file: &Path, below: &Path, reached: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    if !reached.insert(file.to_owned()) {
        return Ok(());
    }
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut path = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path = \"") {
            path = rest.split('"').next().map(str::to_owned);
            continue;
        }
        let Some(name) = module(line) else { continue };
        let (child, dir) = match path.take() {
            Some(p) => {
                // Relative to the directory of the file that says so.
                let child = normal(&file.parent().unwrap_or(Path::new("")).join(p));
                let dir = child.parent().unwrap_or(Path::new("")).to_owned();
                (child, dir)
            }
            None if below.join(format!("{name}.rs")).is_file() => (below.join(format!("{name}.rs")), below.join(name)),
            None => (below.join(name).join("mod.rs"), below.join(name)),
        };
        // A module that only another platform or feature has may be absent; the compiler would have told otherwise.
        if child.is_file() {
            follow(&child, &dir, reached)?;
        }
    }
    Ok(())
}

/// The name in `mod name;`, `pub mod name;`, `pub(crate) mod name;`.
fn module(line: &str) -> Option<&str> {
    let line = line.strip_suffix(';')?;
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let name = line.strip_prefix("mod ")?.trim();
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some(name)
}

/// Without `.` and `..`, so that equal files have equal paths.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// `file:line` of every text that names the workspace's own place or a home directory.
pub fn machine_paths(workspace: &Path) -> anyhow::Result<Vec<String>> {
    let own = workspace.display().to_string();
    let mut out = Vec::new();
    for file in files(workspace)? {
        // What is no text (an object, a picture) names nothing.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        for (n, line) in text.lines().enumerate() {
            let named = line.contains(&own) || line.contains(concat!("/root", "/")) || line.contains(concat!("/home", "/"));
            if named {
                out.push(format!("{}:{}", file.strip_prefix(workspace).unwrap_or(&file).display(), n + 1));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_items_are_recognised() {
        assert_eq!(module("mod a;"), Some("a"));
        assert_eq!(module("pub mod a_b;"), Some("a_b"));
        assert_eq!(module("pub(crate) mod a;"), Some("a"));
        for no in ["mod a {", "use a;", "// mod a;", "module a;", "let x = 1;"] {
            assert_eq!(module(no), None, "{no}");
        }
    }

    #[test]
    fn a_file_that_no_module_names_is_an_orphan() {
        let dir = tempfile::tempdir().unwrap();
        let src = dir.path().join("src");
        std::fs::create_dir_all(src.join("a")).unwrap();
        std::fs::write(src.join("lib.rs"), "mod a;\n#[path = \"../shared/s.rs\"]\nmod s;\n").unwrap();
        std::fs::write(src.join("a.rs"), "pub mod b;\n").unwrap();
        std::fs::write(src.join("a/b.rs"), "").unwrap();
        std::fs::write(src.join("lost.rs"), "").unwrap();
        std::fs::create_dir_all(dir.path().join("shared")).unwrap();
        std::fs::write(dir.path().join("shared/s.rs"), "").unwrap();
        let metadata = serde_json::json!({"packages": [{
            "manifest_path": dir.path().join("Cargo.toml"),
            "targets": [{"src_path": src.join("lib.rs")}],
        }]});
        assert_eq!(orphans(&metadata).unwrap(), [src.join("lost.rs")]);
    }
}
