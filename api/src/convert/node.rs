//! What a NodeNetwork asks for, as what `planner` reckons with.

use model::desired::{self, BridgeDesired, BridgeRemoved, NodeDesired};
use model::{IfName, MacAddr, Mtu};

use super::bridge::{CheckedUplink, trunks, uplink};
use crate::invalid::Invalid;
use crate::mooring::{BondMode, BridgeOnNode, DatapathType, DeletionPolicy, FailMode, Lacp};

/// The bridges that can be read, and for each other one the field that is wrong. The controller refuses such a Bridge before;
/// an agent must not stumble over one all the same.
pub fn node(bridges: &[BridgeOnNode]) -> (NodeDesired, Vec<(String, Invalid)>) {
    let mut desired = NodeDesired::default();
    let mut wrong = Vec::new();
    for b in bridges {
        match one(b) {
            Ok(One::Keep(d)) => desired.bridges.push(*d),
            Ok(One::Remove(r)) => desired.removed.push(r),
            Err(e) => wrong.push((b.name.clone(), e)),
        }
    }
    (desired, wrong)
}

enum One {
    Keep(Box<BridgeDesired>),
    Remove(BridgeRemoved),
}

fn one(b: &BridgeOnNode) -> Result<One, Invalid> {
    let name = IfName::new(b.name.clone()).map_err(|e| Invalid::new("name", &b.name, e))?;
    if b.remove {
        let deletion_policy = match b.deletion_policy {
            DeletionPolicy::Revert => desired::DeletionPolicy::Revert,
            DeletionPolicy::Orphan => desired::DeletionPolicy::Orphan,
        };
        return Ok(One::Remove(BridgeRemoved { name, deletion_policy }));
    }
    let mtu = b.mtu.map(|m| {
        u64::try_from(m).ok().and_then(|m| Mtu::new(m).ok()).ok_or_else(|| Invalid::new("mtu", m, "is outside 68 to 65535"))
    });
    let hwaddr =
        b.hwaddr.as_deref().map(|m| m.parse::<MacAddr>().and_then(MacAddr::unicast).map_err(|e| Invalid::new("hwaddr", m, e)));
    Ok(One::Keep(Box::new(BridgeDesired {
        name,
        uplink: b.uplink.as_ref().map(|u| uplink(u).map(as_desired).map_err(|e| e.within("uplink"))).transpose()?,
        allowed_vlans: trunks("allowedVLANs", &b.allowed_vlans)?,
        mtu: mtu.transpose()?,
        fail_mode: match b.fail_mode {
            FailMode::Standalone => desired::FailMode::Standalone,
            FailMode::Secure => desired::FailMode::Secure,
        },
        mcast_snooping: b.mcast_snooping,
        hwaddr: hwaddr.transpose()?,
        datapath_type: b.datapath_type.map(|d| match d {
            DatapathType::System => desired::DatapathType::System,
            DatapathType::Netdev => desired::DatapathType::Netdev,
        }),
    })))
}

fn as_desired(u: CheckedUplink) -> desired::Uplink {
    match u {
        CheckedUplink::Interface(name) => desired::Uplink::Interface(name.to_string()),
        CheckedUplink::Mac(mac) => desired::Uplink::Mac(mac),
        CheckedUplink::DefaultRoute => desired::Uplink::DefaultRoute,
        CheckedUplink::CanReach(ip) => desired::Uplink::CanReach(ip),
        CheckedUplink::Bond { name, interfaces, mode, lacp, updelay_ms, downdelay_ms } => desired::Uplink::Bond(desired::Bond {
            name,
            interfaces,
            mode: match mode {
                BondMode::ActiveBackup => desired::BondMode::ActiveBackup,
                BondMode::BalanceSlb => desired::BondMode::BalanceSlb,
                BondMode::BalanceTcp => desired::BondMode::BalanceTcp,
            },
            lacp: match lacp {
                Lacp::Off => desired::Lacp::Off,
                Lacp::Active => desired::Lacp::Active,
                Lacp::Passive => desired::Lacp::Passive,
            },
            updelay_ms: updelay_ms.unwrap_or(0),
            downdelay_ms: downdelay_ms.unwrap_or(0),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn of(v: serde_json::Value) -> (NodeDesired, Vec<(String, Invalid)>) {
        node(&from_value::<Vec<BridgeOnNode>>(v).unwrap())
    }

    #[test]
    fn a_bond_and_its_vlans_arrive_whole() {
        let (d, wrong) = of(json!([{
            "name": "br1", "generation": 3, "allowedVLANs": ["100-101"], "mtu": 9000, "failMode": "secure", "mcastSnooping": true,
            "uplink": { "bond": { "name": "bond0", "interfaces": ["a", "b"], "mode": "balance-slb", "lacp": "active", "updelayMs": 50 } }
        }]));
        assert!(wrong.is_empty());
        let b = &d.bridges[0];
        assert_eq!(
            (b.allowed_vlans.to_string().as_str(), b.mtu.map(Mtu::get), b.fail_mode),
            ("100-101", Some(9000), desired::FailMode::Secure)
        );
        let Some(desired::Uplink::Bond(bond)) = &b.uplink else { panic!("{b:?}") };
        assert_eq!(
            (bond.interfaces.len(), bond.mode, bond.lacp, bond.updelay_ms),
            (2, desired::BondMode::BalanceSlb, desired::Lacp::Active, 50)
        );
    }

    #[test]
    fn one_wrong_bridge_does_not_hide_the_others() {
        let (d, wrong) = of(json!([
            { "name": "br1", "generation": 1, "allowedVLANs": ["4095"] },
            { "name": "br2", "generation": 1, "remove": true, "deletionPolicy": "orphan" },
            { "name": "a-name-of-16-byte", "generation": 1 },
        ]));
        assert_eq!(d.removed[0].deletion_policy, desired::DeletionPolicy::Orphan);
        assert_eq!(
            wrong.iter().map(|(n, e)| format!("{n}: {}", e.field)).collect::<Vec<_>>(),
            ["br1: allowedVLANs[0]", "a-name-of-16-byte: name"]
        );
    }
}
