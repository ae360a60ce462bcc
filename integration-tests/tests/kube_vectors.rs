//! The cases of `vectors/` judged by containernetworking's own programs, of the versions that `tools/` pins: first each case
//! on the reference plugin, which proves the case; then on ours, whose result, error code, links, addresses, routes and sysctls
//! must be the reference's. Both executed as a runtime does, and called by libcni through cnitool.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use integration_tests::kube::tool;
use integration_tests::lab::{Lab, Options};
use integration_tests::space::Space;
use integration_tests::vectors::run::{By, Case, Done, Usual};
use integration_tests::vectors::{OURS, Reference, Vector, compare};

struct Judge<'a> {
    node: &'a Space,
    usual: Usual,
    path: String,
}

impl Judge<'_> {
    fn run(&self, vector: &Vector, plugin: &str, by: &By, judged: bool) -> Result<Vec<Done>, String> {
        let case = Case { node: self.node, plugin, path: self.path.clone(), by: by.clone() };
        let done = case.prepare(vector).and_then(|()| if judged { case.run(vector) } else { case.look(vector) });
        self.usual.restore(self.node).unwrap();
        done.map_err(|e| format!("{plugin}: {e}"))
    }

    fn judge(&self, vector: &Vector, by: &By) -> Result<(), String> {
        let (ours, theirs): (Vec<_>, Vec<_>) = vector.plugins().into_iter().partition(|p| OURS.contains(p));
        let same = vector.reference == Reference::Same;
        let mut reference = Vec::new();
        for plugin in theirs {
            reference = self.run(vector, plugin, by, same)?;
        }
        for plugin in ours {
            let done = self.run(vector, plugin, by, true)?;
            let compared = compare::same(vector, &reference, &done);
            match &vector.reference {
                Reference::Same => compared.map_err(|e| format!("{plugin}: {e}"))?,
                Reference::Differs(why) if compared.is_ok() => {
                    return Err(format!("{plugin} does as the reference, though the case says: {why}"));
                }
                Reference::Differs(_) | Reference::None(_) => {}
            }
        }
        Ok(())
    }
}

#[test]
fn every_vector_is_what_the_reference_does_or_says_why_not() {
    let lab_exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    let ours = lab_exe.parent().unwrap().to_owned();
    let (go, cnitool) = (tool("macvlan").unwrap(), tool("cnitool").unwrap());
    let vectors = Vector::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")).unwrap();
    let lab = Lab::start(&Options { exe: lab_exe, nodes: 1 }).unwrap();
    let node = &lab.node(1).space;
    let path = format!("{}:{}", go.parent().unwrap().display(), ours.display());
    let judge = Judge { node, usual: Usual::of(node).unwrap(), path };
    judge.usual.restore(node).unwrap();
    let only = std::env::var("VECTOR").ok();
    let (mut ran, mut failed) = (BTreeMap::<&str, u32>::new(), Vec::new());
    for vector in vectors.iter().filter(|v| only.as_ref().is_none_or(|o| v.name.starts_with(o.as_str()))) {
        let mut ways = vec![("executed", By::Exec)];
        if vector.is_for_cnitool() {
            ways.push(("by cnitool", By::Cnitool(cnitool.clone())));
        }
        for (way, by) in ways {
            *ran.entry(way).or_default() += 1;
            if let Err(why) = judge.judge(vector, &by) {
                failed.push(format!("{} {way}: {why}", vector.name));
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    println!("{ran:?} of {} vectors", vectors.len());
    assert!(!ran.is_empty(), "no vector was run");
}
