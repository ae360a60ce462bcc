//! SpiderMultusConfig -> NetworkAttachmentDefinition: made, kept as it should be, taken away when its name changes. A NAD that
//! another SpiderMultusConfig owns is left alone. A SpiderMultusConfig that cannot be used leaves its NAD as it is: pods that
//! start go on to start. It has no status, so the reason goes into an Event.

use std::collections::BTreeMap;

use api::{NetworkAttachmentDefinition, SpiderMultusConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::Stamp;
use crate::state::{State, key};
use crate::write::{Kind, Op, Write, guard};

pub fn decide(state: &State, now: &Stamp) -> Vec<Write> {
    let coordinator = state.coordinators.get("default").or_else(|| state.coordinators.values().next());
    let mut out = Vec::new();
    // NAD key -> uid of the SpiderMultusConfig that has it.
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for smc in oldest_first(state) {
        if smc.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let uid = smc.uid().unwrap_or_default();
        match api::nad::render(smc, coordinator) {
            Err(invalid) => out.push(event(smc, "Invalid", &invalid.to_string(), now)),
            Ok(want) => {
                let k = key(&want);
                match owner(state, &k, &uid).or_else(|| taken.get(&k).cloned()) {
                    Some(other) => {
                        out.push(event(smc, "NameTaken", &format!("NetworkAttachmentDefinition {k} belongs to {other}"), now))
                    }
                    None => {
                        taken.insert(k.clone(), smc.name_any());
                        out.extend(nad(smc, &want, state.nads.get(&k)));
                    }
                }
                out.extend(renamed(state, &uid, &k));
            }
        }
    }
    out
}

/// Of two that want one name, the older has it.
fn oldest_first(state: &State) -> Vec<&SpiderMultusConfig> {
    let mut all: Vec<_> = state.multus_configs.values().collect();
    all.sort_by_key(|s| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), key(*s)));
    all
}

/// Name of another living SpiderMultusConfig that owns the NAD.
fn owner(state: &State, nad: &str, uid: &str) -> Option<String> {
    let refs = state.nads.get(nad)?.owner_references();
    let other = refs.iter().find(|r| r.kind == "SpiderMultusConfig" && r.uid != uid)?;
    state.multus_configs.values().any(|s| s.uid().as_deref() == Some(&other.uid)).then(|| other.name.clone())
}

fn owner_reference(smc: &SpiderMultusConfig) -> OwnerReference {
    OwnerReference {
        api_version: SpiderMultusConfig::api_version(&()).into_owned(),
        kind: SpiderMultusConfig::kind(&()).into_owned(),
        name: smc.name_any(),
        uid: smc.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn nad(
    smc: &SpiderMultusConfig,
    want: &NetworkAttachmentDefinition,
    have: Option<&NetworkAttachmentDefinition>,
) -> Option<Write> {
    let op = match have {
        None => {
            let mut v = json!(want);
            v["apiVersion"] = NetworkAttachmentDefinition::api_version(&()).into();
            v["kind"] = NetworkAttachmentDefinition::kind(&()).into();
            v["metadata"]["ownerReferences"] = json!([owner_reference(smc)]);
            Op::Create(v)
        }
        Some(have) => Op::Patch(difference(smc, want, have)?),
    };
    Some(Write { kind: Kind::Nad, namespace: want.namespace(), name: want.name_any(), op })
}

/// None where it is as it should be. Labels and annotations of others stay.
fn difference(smc: &SpiderMultusConfig, want: &NetworkAttachmentDefinition, have: &NetworkAttachmentDefinition) -> Option<Value> {
    let mine = owner_reference(smc);
    let owned = have.owner_references().iter().any(|r| r.uid == mine.uid && r.controller == Some(true));
    let annotations: BTreeMap<_, _> = want.annotations().iter().filter(|(k, v)| have.annotations().get(*k) != Some(v)).collect();
    let same_config = same_json(want.config(), have.config());
    if owned && annotations.is_empty() && same_config {
        return None;
    }
    let mut patch = json!({ "metadata": guard(have), "spec": { "config": want.config() } });
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = json!(annotations);
    }
    if !owned {
        // References to owners that are gone go too, and there may be one controller only.
        let mut refs: Vec<_> = have.owner_references().iter().filter(|r| r.kind != mine.kind).cloned().collect();
        refs.iter_mut().for_each(|r| r.controller = None);
        refs.push(mine);
        patch["metadata"]["ownerReferences"] = json!(refs);
    }
    Some(patch)
}

/// White space and the order of keys in a hand-edited config are not a difference.
fn same_json(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) if a != b => {
            let parse = |s: &str| serde_json::from_str::<Value>(s).ok();
            parse(a).is_some_and(|a| Some(a) == parse(b))
        }
        (a, b) => a == b,
    }
}

/// NADs that this SpiderMultusConfig made under another name (its annotation cr-name changed).
fn renamed(state: &State, uid: &str, keep: &str) -> Vec<Write> {
    state
        .nads
        .iter()
        .filter(|(k, n)| k.as_str() != keep && n.owner_references().iter().any(|r| r.uid == uid && r.controller == Some(true)))
        .map(|(_, n)| Write {
            kind: Kind::Nad,
            namespace: n.namespace(),
            name: n.name_any(),
            op: Op::Delete { uid: n.uid(), resource_version: None },
        })
        .collect()
}

/// One Event for each reason of each generation: its name says so, and "exists already" is success.
fn event(smc: &SpiderMultusConfig, reason: &str, message: &str, now: &Stamp) -> Write {
    let namespace = smc.namespace().unwrap_or_default();
    let name = format!("{}.{}.{}", smc.name_any(), smc.metadata.generation.unwrap_or_default(), reason.to_lowercase());
    Write {
        kind: Kind::Event,
        namespace: Some(namespace.clone()),
        name: name.clone(),
        op: Op::Create(json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": namespace },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "involvedObject": {
                "apiVersion": SpiderMultusConfig::api_version(&()),
                "kind": SpiderMultusConfig::kind(&()),
                "namespace": namespace,
                "name": smc.name_any(),
                "uid": smc.uid(),
                "resourceVersion": smc.resource_version(),
            },
            "source": { "component": "mooring-controller" },
            "firstTimestamp": now.0.to_string(),
            "lastTimestamp": now.0.to_string(),
            "count": 1,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Change;
    use kube::runtime::watcher::Event;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn now() -> Stamp {
        Stamp(NOW.parse().unwrap())
    }

    fn smc(name: &str, uid: &str, spec: Value) -> SpiderMultusConfig {
        let mut s = SpiderMultusConfig::new(name, serde_json::from_value(spec).unwrap());
        s.metadata.namespace = Some("default".into());
        s.metadata.uid = Some(uid.into());
        s.metadata.generation = Some(1);
        s
    }

    fn macvlan(name: &str, uid: &str) -> SpiderMultusConfig {
        smc(name, uid, json!({ "cniType": "macvlan", "macvlan": { "master": ["ens192"], "ippools": { "ipv4": ["10-6-v4"] } } }))
    }

    fn world(smcs: Vec<SpiderMultusConfig>, nads: Vec<NetworkAttachmentDefinition>) -> State {
        let mut s = State::default();
        let mut d = Default::default();
        for x in smcs {
            s.apply(Change::MultusConfig(Event::Apply(x)), &mut d);
        }
        for x in nads {
            s.apply(Change::Nad(Event::Apply(x)), &mut d);
        }
        s
    }

    fn created(w: &Write) -> NetworkAttachmentDefinition {
        match &w.op {
            Op::Create(v) => serde_json::from_value(v.clone()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_nad_is_made_once_and_owned() {
        let w = decide(&world(vec![macvlan("m", "u1")], vec![]), &now());
        assert_eq!(w.len(), 1);
        let nad = created(&w[0]);
        assert_eq!(nad.owner_references()[0].uid, "u1");
        assert!(nad.config().unwrap().contains("\"cni-macvlan\""));
        assert_eq!(decide(&world(vec![macvlan("m", "u1")], vec![nad]), &now()), vec![]);
    }

    #[test]
    fn drift_is_repaired_and_foreign_labels_stay() {
        let mut nad = created(&decide(&world(vec![macvlan("m", "u1")], vec![]), &now())[0]);
        nad.spec.config = Some("{}".into());
        nad.metadata.labels = Some(BTreeMap::from([("a".into(), "b".into())]));
        let w = decide(&world(vec![macvlan("m", "u1")], vec![nad]), &now());
        let Op::Patch(p) = &w[0].op else { panic!("{w:?}") };
        assert!(p["spec"]["config"].as_str().unwrap().contains("ens192"));
        assert!(p["metadata"].get("labels").is_none());
    }

    #[test]
    fn a_reordered_config_is_no_drift() {
        let mut nad = created(&decide(&world(vec![macvlan("m", "u1")], vec![]), &now())[0]);
        let v: Value = serde_json::from_str(nad.config().unwrap()).unwrap();
        nad.spec.config = Some(serde_json::to_string_pretty(&v).unwrap());
        assert_eq!(decide(&world(vec![macvlan("m", "u1")], vec![nad]), &now()), vec![]);
    }

    #[test]
    fn a_nad_of_another_config_is_left_alone_and_the_event_says_so() {
        let nad = created(&decide(&world(vec![macvlan("m", "u1")], vec![]), &now())[0]);
        let mut second = macvlan("second", "u2");
        second.annotations_mut().insert(api::keys::CR_NAME.into(), "m".into());
        let w = decide(&world(vec![macvlan("m", "u1"), second], vec![nad]), &now());
        assert_eq!(w.len(), 1, "{w:?}");
        let Op::Create(e) = &w[0].op else { panic!("{w:?}") };
        assert_eq!(e["message"], "NetworkAttachmentDefinition default/m belongs to m");
    }

    #[test]
    fn a_nad_that_was_there_first_is_adopted() {
        let mut nad = NetworkAttachmentDefinition::default();
        nad.metadata.name = Some("m".into());
        nad.metadata.namespace = Some("default".into());
        let w = decide(&world(vec![macvlan("m", "u1")], vec![nad]), &now());
        let Op::Patch(p) = &w[0].op else { panic!("{w:?}") };
        assert_eq!(p["metadata"]["ownerReferences"][0]["uid"], "u1");
    }

    #[test]
    fn a_changed_name_takes_the_old_nad_away() {
        let old = {
            let mut n = created(&decide(&world(vec![macvlan("m", "u1")], vec![]), &now())[0]);
            n.metadata.uid = Some("n1".into());
            n
        };
        let mut s = macvlan("m", "u1");
        s.annotations_mut().insert(api::keys::CR_NAME.into(), "other".into());
        let w = decide(&world(vec![s], vec![old]), &now());
        assert_eq!(w.len(), 2);
        assert_eq!(created(&w[0]).name_any(), "other");
        assert_eq!(w[1].op, Op::Delete { uid: Some("n1".into()), resource_version: None });
    }

    #[test]
    fn a_config_that_cannot_be_used_says_why_and_breaks_nothing() {
        let bad = smc("m", "u1", json!({ "cniType": "macvlan" }));
        let nad = created(&decide(&world(vec![macvlan("m", "u1")], vec![]), &now())[0]);
        let w = decide(&world(vec![bad], vec![nad]), &now());
        assert_eq!(w.len(), 1);
        assert_eq!(w[0].kind, Kind::Event);
    }
}
