//! Whether `vectors/` has a case for every verb, version and configuration key that our CNI plugins take, by the lists of the
//! plugins' own crates, which ask for no key outside of them.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::collections::BTreeSet;
use std::path::Path;

use cni::{Verb, Version};
use integration_tests::vectors::{OURS, Touch, VERBS, VERSIONS, Vector};

fn vectors() -> Vec<Vector> {
    Vector::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")).unwrap()
}

/// What a plugin takes with a verb.
fn keys(plugin: &str, verb: Verb) -> Vec<String> {
    if verb == Verb::Version {
        return vec!["cniVersion".to_owned()];
    }
    let ovs = plugin == "cni-ovs";
    let own = if ovs { cni_ovs::KEYS } else { cni_macvlan::KEYS };
    let mut keys: Vec<String> = own.iter().map(|k| (*k).to_owned()).collect();
    let common = cni::conf::KEYS.iter().filter(|k| match **k {
        "cni.dev/valid-attachments" | "cni.dev/attachments" => verb == Verb::Gc,
        "prevResult" => verb.has_attachment(),
        _ => true,
    });
    keys.extend(common.map(|k| (*k).to_owned()));
    let mine = |key: &str| ovs || !key.eq_ignore_ascii_case("ovnPort");
    keys.extend(cni::conf::RUNTIME_KEYS.iter().map(|k| format!("runtimeConfig.{k}")));
    keys.extend(cni::conf::ARGS_KEYS.iter().filter(|k| mine(k)).map(|k| format!("args.cni.{k}")));
    if verb.has_attachment() {
        keys.extend(cni::args::KNOWN.iter().filter(|k| mine(k)).map(|k| format!("CNI_ARGS.{k}")));
    }
    if ovs {
        keys.push("configuration_path".to_owned());
        keys.extend(cni_ovs::TRUNK_KEYS.iter().map(|k| format!("trunk.{k}")));
        keys.extend(own.iter().map(|k| format!("flat.{k}")));
    }
    keys
}

/// Keys that make a call fail wherever they stand, so that a case which expects that is all there can be: `deviceID` means
/// hardware that is not supported, and `socket` an agent that no black box has.
fn always_refused(key: &str) -> bool {
    ["deviceID", "flat.deviceID", "socket"].contains(&key)
}

#[test]
fn every_verb_version_and_key_has_a_case() {
    let (mut taken, mut refused) = (BTreeSet::<Touch>::new(), BTreeSet::<Touch>::new());
    for vector in vectors() {
        let (t, r) = vector.touched();
        taken.extend(t);
        refused.extend(r);
    }
    let mut missing = Vec::new();
    let mut all = 0;
    for plugin in OURS {
        for verb in Verb::ALL {
            for version in Version::ALL.into_iter().filter(|v| *v >= verb.since()) {
                for key in keys(plugin, verb) {
                    all += 1;
                    let touch = (plugin.to_owned(), verb.to_string(), version.to_string(), key.clone());
                    let has_case = taken.contains(&touch) || always_refused(&key) && refused.contains(&touch);
                    if !has_case {
                        missing.push(format!("{plugin} {verb} {version} {key}"));
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "{} of {all} have no case:\n{}", missing.len(), missing.join("\n"));
    println!("{all} of verb, version and key");
}

#[test]
fn a_case_that_goes_is_missed() {
    let without: Vec<Vector> = vectors().into_iter().filter(|v| !v.name.starts_with("life-")).collect();
    let taken: BTreeSet<Touch> = without.iter().flat_map(|v| v.touched().0).collect();
    let touch = |key: &str| ("cni-macvlan".to_owned(), "CHECK".to_owned(), "0.4.0".to_owned(), key.to_owned());
    assert!(!taken.contains(&touch("bcqueuelen")));
}

#[test]
fn verbs_and_versions_are_those_of_the_specification() {
    assert_eq!(Version::ALL.map(|v| v.as_str()), VERSIONS);
    let ours: BTreeSet<(&str, &str)> = Verb::ALL.iter().map(|v| (v.as_str(), v.since().as_str())).collect();
    assert_eq!(ours, BTreeSet::from(VERBS));
}
