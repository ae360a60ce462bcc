//! What the real ovs-cni accepted, refused and left in OVSDB, against what we plan for the same input.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cni::request::RawCall;
use cni::{NetConfList, Request};
use model::observed::{Observed, Ovs, OvsBridge, OvsInterface, OvsPort};
use model::{RunBy, Tag, Trunks};
use planner::{MainPlugin, Nic, Step};
use serde_json::{Map, Value};

/// Where we answer otherwise, and why.
const DIFFERENCES: [(&str, &str); 1] = [(
    "trunk-4095",
    "802.1Q reserves 4095 and Open vSwitch's own manual ends the range at 4094 for tags; ovs-cni's CHECK of this port panics",
)];

fn fixtures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    std::env::var_os("MOORING_FIXTURES").map(PathBuf::from).into_iter().chain([beside]).find(|p| p.is_dir())
}

/// A line of meta.txt.
fn meta<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(": ")).unwrap_or_default()
}

/// OVSDB's JSON for maps and sets.
fn map(v: &Value) -> BTreeMap<String, String> {
    let pairs = v.get(1).and_then(Value::as_array).cloned().unwrap_or_default();
    pairs.iter().map(|p| (p[0].as_str().unwrap().to_owned(), p[1].as_str().unwrap().to_owned())).collect()
}

fn set(v: &Value) -> Vec<u64> {
    match v {
        Value::Null => Vec::new(),
        Value::Number(n) => vec![n.as_u64().unwrap()],
        v => v[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect(),
    }
}

fn seen(has_ovs: bool) -> Observed {
    let port = |name: &str, kind: &str| OvsPort {
        name: name.into(),
        interfaces: vec![OvsInterface { name: name.into(), kind: kind.into(), mtu: Some(1500), ..OvsInterface::default() }],
        ..OvsPort::default()
    };
    let br1 = OvsBridge {
        name: "br1".into(),
        datapath_type: "netdev".into(),
        ports: vec![port("br1", "internal"), port("ens256", "")],
        ..OvsBridge::default()
    };
    Observed { ovs: has_ovs.then(|| Ovs { bridges: vec![br1], ..Ovs::default() }), ..Observed::default() }
}

#[test]
fn every_recorded_input_has_the_same_verdict_and_the_same_rows() {
    let Some(dir) = fixtures().map(|f| f.join("ovs-cni")) else {
        println!("skipped: fixtures absent");
        return;
    };
    let (mut compared, mut different) = (0, Vec::new());
    let mut cases: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("meta.txt").is_file()).collect();
    cases.sort();
    for case in cases {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(case.join("meta.txt")).unwrap();
        let list = NetConfList::parse(&std::fs::read_to_string(case.join("input.conflist.json")).unwrap()).unwrap();
        if list.kind(0) != "ovs" {
            continue;
        }
        let netns = meta(&text, "netns");
        let call = RawCall {
            command: "ADD".into(),
            container_id: meta(&text, "containerID").into(),
            netns: netns.into(),
            ifname: meta(&text, "ifname").into(),
            args: meta(&text, "CNI_ARGS").into(),
            path: "/opt/cni/bin".into(),
        };
        let request = Request::from_value(&call, list.plugin_conf(0, None, &Map::new())).unwrap();
        let planned = cni_ovs::Conf::parse(&request, None).and_then(|conf| {
            let attach = cni_plugin::attach_of(&request, Nic::default(), RunBy::Alone).unwrap();
            let mac = conf.mac(&attach);
            // The recording's only other socket is the one that is missing.
            conf.plan_add(&attach, &seen(conf.socket_file.is_none())).map(|plan| (plan, mac))
        });
        let accepted = meta(&text, "ADD exit code") == "0" || case.join("cni-add.json").is_file();
        if planned.is_ok() != accepted {
            different.push(name);
            continue;
        }
        compared += 1;
        let Ok((plan, mac)) = planned else { continue };
        let rows: Value = serde_json::from_str(&std::fs::read_to_string(case.join("after-add.ovsdb.json")).unwrap()).unwrap();
        let theirs = rows["Port"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| map(&p["external_ids"]).get("contNetns").is_some_and(|n| n == netns));
        let theirs = theirs.unwrap_or_else(|| panic!("{name}: no port of {netns} in the recording"));
        let ours =
            plan.steps.iter().find_map(|s| if let Step::AddPort { bridge, port } = s { Some((bridge, port)) } else { None });
        let (bridge, ours) = ours.unwrap();
        assert_eq!(bridge.as_str(), "br1", "{name}");
        assert_eq!(ours.set.tag.flatten().map(Tag::get).map(u64::from), theirs.get("tag").and_then(Value::as_u64), "{name}: tag");
        let trunks: Vec<_> = ours.set.trunks.iter().flat_map(Trunks::iter).map(|t| u64::from(t.get())).collect();
        assert_eq!(trunks, set(&theirs["trunks"]), "{name}: trunks");
        assert_eq!(ours.set.vlan_mode.clone().flatten().as_deref(), theirs["vlan_mode"].as_str(), "{name}: vlan_mode");
        // Theirs are all there but for `owner`, which names each project; ours has marks besides.
        for (key, value) in map(&theirs["external_ids"]).into_iter().filter(|(k, _)| k != "owner") {
            assert_eq!(ours.set.external_ids.get(&key), Some(&Some(value)), "{name}: external_ids {key}");
        }
        let of_port = theirs["interfaces"][1].as_str();
        let iface = rows["Interface"].as_array().unwrap().iter().find(|i| i["_uuid"][1].as_str() == of_port).unwrap();
        assert_eq!(ours.interfaces[0].kind, iface["type"].as_str().unwrap_or_default(), "{name}: type");
        assert_eq!(
            ours.interfaces[0].ofport_request.map(u64::from),
            iface.get("ofport_request").and_then(Value::as_u64),
            "{name}: ofport_request"
        );
        assert_eq!(ours.interfaces[0].external_ids, map(&iface["external_ids"]), "{name}: Interface.external_ids");
        if name == "args-cni-mac" {
            let result: Value = serde_json::from_str(&std::fs::read_to_string(case.join("cni-add.json")).unwrap()).unwrap();
            assert_eq!(mac.unwrap().to_string(), result["interfaces"][1]["mac"].as_str().unwrap(), "{name}: mac");
        }
    }
    assert_eq!(different, DIFFERENCES.map(|(name, _)| name), "verdicts that differ must be exactly the listed ones");
    assert!(compared >= 18, "only {compared} recordings were compared");
}
