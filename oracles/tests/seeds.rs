//! Every seed, and every input that once broke something, through the check that it is for: `make test` does without a fuzzer.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use oracles::TARGETS;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Panics of any thread and task. A runtime keeps a task's to itself, where a fuzzer ends with the process.
static PANICS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn every_seed_passes_its_check() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        report(info);
    }));
    for (name, check) in TARGETS {
        let mut files: Vec<PathBuf> = fs::read_dir(folder("seeds").join(name))
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            if let Err(e) = std::panic::catch_unwind(|| check(&bytes)) {
                eprintln!("seed {}", file.display());
                std::panic::resume_unwind(e);
            }
            assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a task's panic: seed {}", file.display());
        }
    }
}

#[test]
fn seeds_checks_and_fuzz_targets_are_the_same_list() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&folder("seeds")), known);
    assert_eq!(names(&folder("../fuzz/fuzz_targets")), known);
}

#[test]
fn seeds_are_small() {
    let mut bytes = 0;
    for name in names(&folder("seeds")) {
        for file in fs::read_dir(folder("seeds").join(name)).unwrap() {
            bytes += file.unwrap().metadata().unwrap().len();
        }
    }
    assert!(bytes < 200 * 1024, "{bytes} bytes of seeds");
}
