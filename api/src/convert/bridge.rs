//! Bridge as values, and what of it one node gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube::ResourceExt as _;
use model::{IfName, MacAddr, Mtu, Trunks};

use crate::invalid::Invalid;
use crate::keys::BRIDGE_LABEL_PREFIX;
use crate::mooring::{BondMode, Bridge, BridgeOnNode, Lacp, Uplink};
use crate::selector;

/// An uplink of which exactly one way is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckedUplink {
    Interface(IfName),
    Mac(MacAddr),
    DefaultRoute,
    CanReach(IpAddr),
    Bond { name: IfName, interfaces: Vec<IfName>, mode: BondMode, lacp: Lacp, updelay_ms: Option<u32>, downdelay_ms: Option<u32> },
}

/// Every rule that concerns the Bridge alone.
pub fn bridge(object: &Bridge) -> Result<(), Invalid> {
    let name = object.name_any();
    IfName::new(name.clone()).map_err(|e| Invalid::new("metadata.name", &name, e))?;
    let spec = &object.spec;
    if let Some(u) = &spec.uplink {
        uplink(u).map_err(|e| e.within("spec.uplink"))?;
    }
    let mut names = BTreeSet::new();
    for (i, c) in spec.configs.iter().enumerate() {
        let field = format!("spec.configs[{i}]");
        if c.name == "enabled" || c.name == "disabled" {
            return Err(Invalid::new(format!("{field}.name"), &c.name, "is a word of the label"));
        }
        if !names.insert(&c.name) {
            return Err(Invalid::new(format!("{field}.name"), &c.name, "is another config's name too"));
        }
        uplink(&c.uplink).map_err(|e| e.within(&format!("{field}.uplink")))?;
    }
    trunks("spec.allowedVLANs", &spec.allowed_vlans)?;
    if let Some(mtu) = spec.mtu {
        u64::try_from(mtu)
            .ok()
            .and_then(|m| Mtu::new(m).ok())
            .ok_or_else(|| Invalid::new("spec.mtu", mtu, "is outside 68 to 65535"))?;
    }
    if let Some(mac) = &spec.hwaddr {
        mac.parse::<MacAddr>().and_then(MacAddr::unicast).map_err(|e| Invalid::new("spec.hwaddr", mac, e))?;
    }
    if let Some(s) = &spec.node_selector {
        selector::matches(s, &BTreeMap::new()).map_err(|e| e.within("spec.nodeSelector"))?;
    }
    if spec.resource.capacity < 1 {
        return Err(Invalid::new("spec.resource.capacity", spec.resource.capacity, "is less than 1"));
    }
    Ok(())
}

/// What the node gets: none where neither label nor selector chooses it. `excludeNodes` and the label `disabled` go first,
/// then the label's word, then the selector.
pub fn bridge_on_node(object: &Bridge, node: &str, labels: &BTreeMap<String, String>) -> Result<Option<BridgeOnNode>, Invalid> {
    bridge(object)?;
    let spec = &object.spec;
    let name = object.name_any();
    if spec.exclude_nodes.iter().any(|n| n == node) {
        return Ok(None);
    }
    let key = format!("{BRIDGE_LABEL_PREFIX}{name}");
    let uplink = match labels.get(&key).map(String::as_str) {
        Some("disabled") => return Ok(None),
        Some("enabled") => spec.uplink.clone(),
        Some(word) => Some(named_uplink(object, &key, word)?),
        None => match &spec.node_selector {
            Some(s) if selector::matches(s, labels).map_err(|e| e.within("spec.nodeSelector"))? => spec.uplink.clone(),
            _ => return Ok(None),
        },
    };
    Ok(Some(BridgeOnNode {
        name,
        generation: object.metadata.generation.unwrap_or_default(),
        uplink,
        allowed_vlans: spec.allowed_vlans.clone(),
        mtu: spec.mtu,
        fail_mode: spec.fail_mode,
        mcast_snooping: spec.mcast_snooping,
        hwaddr: spec.hwaddr.clone(),
        datapath_type: spec.datapath_type,
        deletion_policy: spec.deletion_policy,
        remove: false,
    }))
}

/// The config of that name, else the NIC of that name.
fn named_uplink(object: &Bridge, key: &str, word: &str) -> Result<Uplink, Invalid> {
    if let Some(c) = object.spec.configs.iter().find(|c| c.name == word) {
        return Ok(c.uplink.clone());
    }
    let nic = IfName::new(word).map_err(|e| {
        let configs: Vec<&str> = object.spec.configs.iter().map(|c| c.name.as_str()).collect();
        let configs = if configs.is_empty() { "none".to_owned() } else { configs.join(", ") };
        Invalid::new(
            key,
            word,
            format!("is neither enabled, disabled nor a config of the bridge ({configs}), and no NIC can have that name: {e}"),
        )
    })?;
    Ok(Uplink { interface: Some(nic.to_string()), ..Uplink::default() })
}

/// Field names are relative to the uplink, and empty where it is the uplink itself.
pub fn uplink(u: &Uplink) -> Result<CheckedUplink, Invalid> {
    let mut ways = Vec::new();
    if let Some(i) = &u.interface {
        ways.push(("interface", CheckedUplink::Interface(if_name("interface", i)?)));
    }
    if let Some(m) = &u.mac {
        let mac = m.parse::<MacAddr>().and_then(MacAddr::unicast).map_err(|e| Invalid::new("mac", m, e))?;
        ways.push(("mac", CheckedUplink::Mac(mac)));
    }
    match u.default_route {
        Some(true) => ways.push(("defaultRoute", CheckedUplink::DefaultRoute)),
        Some(false) => return Err(Invalid::new("defaultRoute", false, "says nothing, leave it out")),
        None => {}
    }
    if let Some(ip) = &u.can_reach {
        ways.push(("canReach", CheckedUplink::CanReach(super::ip("canReach", ip)?)));
    }
    if let Some(b) = &u.bond {
        let name = if_name("bond.name", &b.name)?;
        let mut interfaces = Vec::new();
        for (i, nic) in b.interfaces.iter().enumerate() {
            let field = format!("bond.interfaces[{i}]");
            let nic = if_name(&field, nic)?;
            if interfaces.contains(&nic) || nic == name {
                return Err(Invalid::new(field, nic, "is named twice"));
            }
            interfaces.push(nic);
        }
        if interfaces.len() < 2 {
            return Err(Invalid::new("bond.interfaces", b.interfaces.join(","), "is less than two interfaces"));
        }
        if b.mode == BondMode::BalanceTcp && b.lacp == Lacp::Off {
            return Err(Invalid::new("bond.lacp", "off", "balance-tcp needs lacp active or passive"));
        }
        let delay = |field: &str, ms: Option<i64>| {
            ms.map(|v| u32::try_from(v).map_err(|_| Invalid::new(field, v, "is not a number of milliseconds"))).transpose()
        };
        ways.push((
            "bond",
            CheckedUplink::Bond {
                name,
                interfaces,
                mode: b.mode,
                lacp: b.lacp,
                updelay_ms: delay("bond.updelayMs", b.updelay_ms)?,
                downdelay_ms: delay("bond.downdelayMs", b.downdelay_ms)?,
            },
        ));
    }
    let names: Vec<&str> = ways.iter().map(|(n, _)| *n).collect();
    let names = names.join(", ");
    let mut ways = ways.into_iter();
    match (ways.next(), ways.next()) {
        (Some((_, way)), None) => Ok(way),
        _ => Err(Invalid::new("", names, "exactly one of interface, mac, defaultRoute, canReach, bond must be given")),
    }
}

/// VLANs of `allowedVLANs`; an empty list is an empty set, which means all.
pub fn trunks(field: &str, vlans: &[String]) -> Result<Trunks, Invalid> {
    let mut out = Trunks::default();
    for (i, item) in vlans.iter().enumerate() {
        let set: Trunks = item.parse().map_err(|e| Invalid::new(format!("{field}[{i}]"), item, e))?;
        out = out.iter().chain(set.iter()).collect();
    }
    Ok(out)
}

/// For the column UPLINK.
pub fn uplink_in_a_word(u: Option<&Uplink>) -> String {
    match u {
        None => "none".to_owned(),
        Some(u) => match uplink(u) {
            Ok(CheckedUplink::Interface(i)) => i.to_string(),
            Ok(CheckedUplink::Mac(m)) => m.to_string(),
            Ok(CheckedUplink::DefaultRoute) => "default route".to_owned(),
            Ok(CheckedUplink::CanReach(ip)) => format!("towards {ip}"),
            Ok(CheckedUplink::Bond { name, interfaces, .. }) => {
                let members: Vec<&str> = interfaces.iter().map(IfName::as_str).collect();
                format!("{name} ({})", members.join(","))
            }
            Err(_) => "invalid".to_owned(),
        },
    }
}

fn if_name(field: &str, name: &str) -> Result<IfName, Invalid> {
    IfName::new(name).map_err(|e| Invalid::new(field, name, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mooring::BridgeSpec;
    use serde_json::json;

    fn br(spec: serde_json::Value) -> Bridge {
        Bridge::new("br1", serde_json::from_value::<BridgeSpec>(spec).unwrap())
    }

    fn on(spec: serde_json::Value, labels: &[(&str, &str)]) -> Result<Option<String>, String> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        bridge_on_node(&br(spec), "node1", &labels)
            .map(|b| b.map(|b| uplink_in_a_word(b.uplink.as_ref())))
            .map_err(|e| e.to_string())
    }

    const LABEL: &str = "bridge.mooring.dev/br1";

    #[test]
    fn selector_and_label_choose_nodes() {
        let plain = json!({"uplink": {"interface": "ens192"}});
        assert_eq!(on(plain.clone(), &[]), Ok(None), "without selector only labelled nodes");
        assert_eq!(on(plain.clone(), &[(LABEL, "enabled")]), Ok(Some("ens192".into())));
        let all = json!({"uplink": {"interface": "ens192"}, "nodeSelector": {}});
        assert_eq!(on(all.clone(), &[]), Ok(Some("ens192".into())));
        assert_eq!(on(all, &[(LABEL, "disabled")]), Ok(None));
        let some = json!({"uplink": {"defaultRoute": true}, "nodeSelector": {"matchLabels": {"rack": "7"}}});
        assert_eq!(on(some.clone(), &[("rack", "8")]), Ok(None));
        assert_eq!(on(some.clone(), &[("rack", "7")]), Ok(Some("default route".into())));
        assert_eq!(on(some, &[("rack", "8"), (LABEL, "enabled")]), Ok(Some("default route".into())));
        assert_eq!(on(json!({"nodeSelector": {}, "excludeNodes": ["node1"]}), &[(LABEL, "enabled")]), Ok(None));
        assert_eq!(on(json!({"nodeSelector": {}}), &[]), Ok(Some("none".into())), "a bridge may have no uplink");
    }

    #[test]
    fn the_label_overrides_the_uplink() {
        let spec = json!({"uplink": {"interface": "ens192"}, "configs": [{"name": "bonded", "uplink": {"bond": {"name": "bond0", "interfaces": ["a", "b"]}}}]});
        assert_eq!(on(spec.clone(), &[(LABEL, "bonded")]), Ok(Some("bond0 (a,b)".into())));
        assert_eq!(on(spec.clone(), &[(LABEL, "ens224")]), Ok(Some("ens224".into())));
        assert_eq!(
            on(spec, &[(LABEL, "a-name-of-twenty-one-")]).unwrap_err(),
            "bridge.mooring.dev/br1: \"a-name-of-twenty-one-\": is neither enabled, disabled nor a config of the bridge (bonded), and no NIC can have that name: \
             interface name \"a-name-of-twenty-one-\" has 21 bytes, at most 15 are allowed"
        );
    }

    #[test]
    fn each_wrong_field_is_named() {
        for (spec, error) in [
            (
                json!({"uplink": {}}),
                "spec.uplink: \"\": exactly one of interface, mac, defaultRoute, canReach, bond must be given",
            ),
            (
                json!({"uplink": {"interface": "a", "canReach": "10.0.0.1"}}),
                "spec.uplink: \"interface, canReach\": exactly one of interface, mac, defaultRoute, canReach, bond must be given",
            ),
            (
                json!({"uplink": {"mac": "01:00:5e:00:00:01"}}),
                "spec.uplink.mac: \"01:00:5e:00:00:01\": hardware address 01:00:5e:00:00:01 is a group address, an interface needs an individual one",
            ),
            (json!({"uplink": {"defaultRoute": false}}), "spec.uplink.defaultRoute: \"false\": says nothing, leave it out"),
            (json!({"uplink": {"canReach": "here"}}), "spec.uplink.canReach: \"here\": is not an IP address"),
            (
                json!({"uplink": {"bond": {"name": "b", "interfaces": ["a"]}}}),
                "spec.uplink.bond.interfaces: \"a\": is less than two interfaces",
            ),
            (
                json!({"uplink": {"bond": {"name": "b", "interfaces": ["a", "a"]}}}),
                "spec.uplink.bond.interfaces[1]: \"a\": is named twice",
            ),
            (
                json!({"uplink": {"bond": {"name": "b", "interfaces": ["a", "c"], "mode": "balance-tcp"}}}),
                "spec.uplink.bond.lacp: \"off\": balance-tcp needs lacp active or passive",
            ),
            (
                json!({"configs": [{"name": "enabled", "uplink": {"interface": "a"}}]}),
                "spec.configs[0].name: \"enabled\": is a word of the label",
            ),
            (json!({"allowedVLANs": ["100", "4095"]}), "spec.allowedVLANs[1]: \"4095\": vlan 4095 is outside 1 to 4094"),
            (json!({"allowedVLANs": ["200-100"]}), "spec.allowedVLANs[0]: \"200-100\": vlan range 200-100 ends before it begins"),
            (json!({"mtu": 67}), "spec.mtu: \"67\": is outside 68 to 65535"),
        ] {
            assert_eq!(bridge(&br(spec)).unwrap_err().to_string(), error);
        }
        let long = Bridge::new("abcdefghijklmnop", BridgeSpec::default());
        assert_eq!(
            bridge(&long).unwrap_err().to_string(),
            "metadata.name: \"abcdefghijklmnop\": interface name \"abcdefghijklmnop\" has 16 bytes, at most 15 are allowed"
        );
    }
}
