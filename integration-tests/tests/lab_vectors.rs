//! Our CNI plugins as black boxes, alone (no agent), with the distribution's IPAM plugins: every case that names them.
//! That the cases are right is proven by `kube_vectors`, where the reference plugins are.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::path::{Path, PathBuf};

use integration_tests::lab::{Lab, Options};
use integration_tests::node::REFERENCE_PLUGINS;
use integration_tests::oracle;
use integration_tests::vectors::run::{By, Case, Usual};
use integration_tests::vectors::{OURS, Vector};

#[test]
fn every_vector_holds_for_our_plugins() {
    let lab_exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    let ours = lab_exe.parent().unwrap().to_owned();
    for plugin in OURS {
        let file = ours.join(plugin);
        assert!(file.is_file(), "{} is missing: cargo build -p {plugin} with the profile of this test", file.display());
    }
    let vectors = Vector::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")).unwrap();
    let lab = Lab::start(&Options { exe: lab_exe, nodes: 1 }).unwrap();
    let node = &lab.node(1).space;
    let usual = Usual::of(node).unwrap();
    usual.restore(node).unwrap();
    let only = std::env::var("VECTOR").ok();
    let (mut ran, mut failed) = (0, Vec::new());
    for vector in vectors.iter().filter(|v| only.as_ref().is_none_or(|o| v.name.starts_with(o.as_str()))) {
        // The distribution's IPAM plugins are older than 1.1.0; `kube_vectors` has newer ones.
        if vector.needs_newest_ipam() {
            continue;
        }
        for plugin in vector.plugins().into_iter().filter(|p| OURS.contains(p)) {
            ran += 1;
            let case = Case { node, plugin, path: format!("{REFERENCE_PLUGINS}:{}", ours.display()), by: By::Exec };
            if let Err(why) = leaves_nothing(&lab, &case, vector) {
                failed.push(format!("{} with {plugin}: {why}", vector.name));
            }
            usual.restore(node).unwrap();
        }
    }
    assert!(failed.is_empty(), "{} of {ran} failed:\n{}", failed.len(), failed.join("\n"));
    println!("{ran} runs of {} vectors", vectors.len());
    assert!(ran > 0, "no vector was run");
    oracle::silent_alone(&lab, &[]).unwrap();
}

/// What the case itself put there before its calls is none of the plugin's.
fn leaves_nothing(lab: &Lab, case: &Case<'_>, vector: &Vector) -> Result<(), String> {
    case.prepare(vector)?;
    let known = oracle::said_alone(lab).map_err(|e| format!("{e:#}"))?;
    let done = case.run(vector)?;
    case.take_down(vector, &done)?;
    oracle::silent_alone(lab, &known).map_err(|e| format!("{e:#}"))
}
