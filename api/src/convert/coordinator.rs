//! Coordinator settings: a network's over the SpiderCoordinator's over the defaults, as values.

use std::net::IpAddr;

use model::{Cidr, IfName, Mtu};

use crate::invalid::Invalid;
use crate::spider::{CoordinatorMode, CoordinatorSettings, SpiderCoordinator};

/// How the NICs of a pod share routes, every default applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator {
    pub mode: CoordinatorMode,
    /// What a pod reaches through its node besides `cidrs`.
    pub hijack: Vec<Cidr>,
    pub policy_routes: Vec<(Cidr, IpAddr)>,
    /// First two bytes of the NIC's hardware address.
    pub mac_prefix: Option<[u8; 2]>,
    pub tune_pod_routes: bool,
    pub default_route_nic: Option<IfName>,
    /// Table of the host for the routes to pods.
    pub host_rule_table: u32,
    /// 0, 1, 2; none leaves the kernel's.
    pub pod_rp_filter: Option<u8>,
    /// None leaves the kernel's.
    pub tx_queue_len: Option<u32>,
    pub veth_link_address: Option<IpAddr>,
    pub veth_mtu: Option<Mtu>,
    /// Pod and service CIDRs, from the SpiderCoordinator's status.
    pub cidrs: Vec<Cidr>,
    pub detect_gateway: bool,
    pub detect_ip_conflict: bool,
    /// 0, 1, 2; none leaves the host's.
    pub host_rp_filter: Option<u8>,
}

/// `settings`, and where they are silent, the SpiderCoordinator's. An empty text is silent (Spiderpool's webhook wrote them
/// into every object), an empty list is not.
pub fn merged(settings: &CoordinatorSettings, cr: Option<&SpiderCoordinator>) -> CoordinatorSettings {
    let mut out = spoken(settings);
    let Some(cr) = cr.map(|c| spoken(&c.spec)) else { return out };
    macro_rules! fall_back {
        ($($field:ident),*) => { $( if out.$field.is_none() { out.$field = cr.$field; } )* };
    }
    fall_back!(
        mode,
        pod_cidr_type,
        hijack_cidr,
        policy_routes,
        pod_mac_prefix,
        tune_pod_routes,
        pod_default_route_nic,
        host_rule_table,
        pod_rp_filter,
        tx_queue_len,
        veth_link_address,
        veth_mtu,
        detect_gateway,
        detect_ip_conflict,
        host_rp_filter
    );
    out
}

fn spoken(settings: &CoordinatorSettings) -> CoordinatorSettings {
    let mut out = settings.clone();
    for text in [&mut out.pod_mac_prefix, &mut out.pod_default_route_nic, &mut out.veth_link_address] {
        if text.as_ref().is_some_and(String::is_empty) {
            *text = None;
        }
    }
    out
}

/// Merged and checked. Field names are relative to the settings.
pub fn coordinator(settings: &CoordinatorSettings, cr: Option<&SpiderCoordinator>) -> Result<Coordinator, Invalid> {
    let s = merged(settings, cr);
    let mut hijack = Vec::new();
    for (i, item) in s.hijack_cidr.iter().flatten().enumerate() {
        hijack.push(super::cidr_or_ip(&format!("hijackCIDR[{i}]"), item)?);
    }
    let mut policy_routes = Vec::new();
    for (i, r) in s.policy_routes.iter().flatten().enumerate() {
        policy_routes.push(super::route(&format!("policyRoutes[{i}]"), r)?);
    }
    let mac_prefix = s.pod_mac_prefix.as_deref().map(mac_prefix).transpose()?;
    let default_route_nic = s
        .pod_default_route_nic
        .as_deref()
        .map(|n| IfName::new(n).map_err(|e| Invalid::new("podDefaultRouteNIC", n, e)))
        .transpose()?;
    let host_rule_table = s.host_rule_table.unwrap_or(500);
    let host_rule_table =
        u32::try_from(host_rule_table).ok().filter(|t| *t != 0 && !(253..=255).contains(t)).ok_or_else(|| {
            Invalid::new("hostRuleTable", host_rule_table, "is no table of ours: 0 is none, 253 to 255 are the kernel's")
        })?;
    let tx_queue_len = s.tx_queue_len.unwrap_or(0);
    let tx_queue_len = u32::try_from(tx_queue_len).map_err(|_| Invalid::new("txQueueLen", tx_queue_len, "is not a length"))?;
    let veth_link_address = s.veth_link_address.as_deref().map(|a| super::ip("vethLinkAddress", a)).transpose()?;
    let veth_mtu = s
        .veth_mtu
        .map(|m| {
            u64::try_from(m)
                .ok()
                .and_then(|m| Mtu::new(m).ok())
                .ok_or_else(|| Invalid::new("vethMTU", m, "is outside 68 to 65535"))
        })
        .transpose()?;
    let mut cidrs = Vec::new();
    if let Some(status) = cr.and_then(|c| c.status.as_ref()) {
        for (name, list) in [("overlayPodCIDR", &status.overlay_pod_cidr), ("serviceCIDR", &status.service_cidr)] {
            for (i, item) in list.iter().enumerate() {
                cidrs.push(super::cidr_or_ip(&format!("status.{name}[{i}]"), item)?);
            }
        }
    }
    Ok(Coordinator {
        mode: s.mode.unwrap_or_default(),
        hijack,
        policy_routes,
        mac_prefix,
        tune_pod_routes: s.tune_pod_routes.unwrap_or(true),
        default_route_nic,
        host_rule_table,
        pod_rp_filter: rp_filter("podRPFilter", s.pod_rp_filter.unwrap_or(0))?,
        tx_queue_len: (tx_queue_len != 0).then_some(tx_queue_len),
        veth_link_address,
        veth_mtu,
        cidrs,
        detect_gateway: s.detect_gateway.unwrap_or(false),
        detect_ip_conflict: s.detect_ip_conflict.unwrap_or(false),
        host_rp_filter: rp_filter("hostRPFilter", s.host_rp_filter.unwrap_or(-1))?,
    })
}

/// Documentation/networking/ip-sysctl.rst: 0, 1, 2; negative is "leave it" here.
fn rp_filter(field: &str, value: i64) -> Result<Option<u8>, Invalid> {
    match value {
        i64::MIN..0 => Ok(None),
        0 => Ok(Some(0)),
        1 => Ok(Some(1)),
        2 => Ok(Some(2)),
        _ => Err(Invalid::new(field, value, "is not 0, 1, 2 or negative")),
    }
}

fn mac_prefix(text: &str) -> Result<[u8; 2], Invalid> {
    let bad = |rule: &str| Invalid::new("podMACPrefix", text, rule);
    let byte = |t: &str| {
        if t.len() == 2 && t.bytes().all(|b| b.is_ascii_hexdigit()) { u8::from_str_radix(t, 16).ok() } else { None }
    };
    let two = text.split_once(':').and_then(|(a, b)| Some([byte(a)?, byte(b)?]));
    let two = two.ok_or_else(|| bad("is not two hexadecimal bytes joined by ':'"))?;
    if two[0] & 1 == 1 {
        return Err(bad("begins a group address, an interface needs an individual one"));
    }
    Ok(two)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(v: serde_json::Value) -> CoordinatorSettings {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn a_network_goes_before_the_cluster_and_that_before_the_default() {
        let mut cr = SpiderCoordinator::new(
            "default",
            settings(json!({"mode": "overlay", "tunePodRoutes": false, "hijackCIDR": ["169.254.0.0/16", "10.100.0.10"]})),
        );
        cr.status = serde_json::from_value(
            json!({"phase": "Synced", "overlayPodCIDR": ["10.233.64.0/18"], "serviceCIDR": ["10.233.0.0/18"]}),
        )
        .unwrap();
        let c = coordinator(&settings(json!({"mode": "underlay", "podMACPrefix": "0a:1B"})), Some(&cr)).unwrap();
        assert_eq!(
            (c.mode, c.tune_pod_routes, c.mac_prefix, c.host_rule_table),
            (CoordinatorMode::Underlay, false, Some([0x0a, 0x1b]), 500)
        );
        assert_eq!(c.hijack, ["169.254.0.0/16".parse().unwrap(), "10.100.0.10/32".parse().unwrap()], "an address is its /32");
        assert_eq!(c.cidrs.len(), 2);
        let own = settings(json!({"hijackCIDR": [], "podMACPrefix": ""}));
        cr.spec.pod_mac_prefix = Some("0a:1b".into());
        let c = coordinator(&own, Some(&cr)).unwrap();
        assert_eq!((c.hijack.len(), c.mac_prefix), (0, Some([0x0a, 0x1b])), "an empty list is said, an empty text is not");
        let d = coordinator(&CoordinatorSettings::default(), None).unwrap();
        assert_eq!(
            (d.mode, d.tune_pod_routes, d.pod_rp_filter, d.host_rp_filter, d.tx_queue_len),
            (CoordinatorMode::Auto, true, Some(0), None, None)
        );
    }

    #[test]
    fn each_wrong_field_is_named() {
        for (s, error) in [
            (
                json!({"podMACPrefix": "01:1b"}),
                "podMACPrefix: \"01:1b\": begins a group address, an interface needs an individual one",
            ),
            (json!({"podMACPrefix": "0a"}), "podMACPrefix: \"0a\": is not two hexadecimal bytes joined by ':'"),
            (json!({"podMACPrefix": "0a:1b:2c"}), "podMACPrefix: \"0a:1b:2c\": is not two hexadecimal bytes joined by ':'"),
            (json!({"vethLinkAddress": "x"}), "vethLinkAddress: \"x\": is not an IP address"),
            (json!({"txQueueLen": -1}), "txQueueLen: \"-1\": is not a length"),
            (json!({"podRPFilter": 5}), "podRPFilter: \"5\": is not 0, 1, 2 or negative"),
            (json!({"hostRuleTable": -5}), "hostRuleTable: \"-5\": is no table of ours: 0 is none, 253 to 255 are the kernel's"),
            (
                json!({"hostRuleTable": 254}),
                "hostRuleTable: \"254\": is no table of ours: 0 is none, 253 to 255 are the kernel's",
            ),
            (json!({"vethMTU": 1}), "vethMTU: \"1\": is outside 68 to 65535"),
            (
                json!({"podDefaultRouteNIC": "a b"}),
                "podDefaultRouteNIC: \"a b\": interface name \"a b\" must not be \".\" or \"..\" nor contain '/', ':', white space or a control character",
            ),
            (
                json!({"hijackCIDR": ["10.0.0.1/8"]}),
                "hijackCIDR[0]: \"10.0.0.1/8\": has host bits set, the network is 10.0.0.0/8",
            ),
            (
                json!({"policyRoutes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]}),
                "policyRoutes[0].gw: \"fd00::1\": is not of the family of its destination 10.0.0.0/8",
            ),
        ] {
            assert_eq!(coordinator(&settings(s), None).unwrap_err().to_string(), error);
        }
        assert_eq!(coordinator(&settings(json!({"podRPFilter": -1})), None).unwrap().pod_rp_filter, None);
    }

    #[test]
    fn a_rendered_network_names_the_default_nic_by_its_own_spelling() {
        let own: CoordinatorSettings = serde_json::from_value(json!({"podDefaultRouteNic": "net1"})).unwrap();
        assert_eq!(coordinator(&own, None).unwrap().default_route_nic, Some(IfName::new("net1").unwrap()));
    }
}
