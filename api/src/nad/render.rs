//! SpiderMultusConfig to NetworkAttachmentDefinition. Order in the list: ifacer, main plugin, further plugins, coordinator
//! (sriov: rdma behind the main plugin, tuning at the end). Knows the text of configurations, not what plugins do with it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt as _;
use model::{IfName, Tag};
use serde_json::{Map, Value, json};

use super::{NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec};
use crate::convert;
use crate::invalid::Invalid;
use crate::keys;
use crate::spider::{
    Bond, CniType, IbSriovConfig, IpoibConfig, MacvlanConfig, OvsConfig, PoolNames, SpiderCoordinator, SpiderMultusConfig,
    SriovConfig, VlanConfig, VlanMode,
};

const DEFAULT_CNI_VERSION: &str = "0.3.1";
/// What our plugins speak and a configuration list can say.
const CNI_VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// kubectl's record of what was applied; of no meaning on another object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Plugins around the main one, and the resource that a pod of this network needs.
struct Parts {
    before: Option<Value>,
    main: Value,
    behind: Vec<Value>,
    last: Option<Value>,
    resource: Option<String>,
}

impl Parts {
    fn of(main: Value) -> Self {
        Self { before: None, main, behind: Vec::new(), last: None, resource: None }
    }
}

/// The NAD of a network. Settings of the coordinator that the network does not name are the SpiderCoordinator's.
pub fn render(smc: &SpiderMultusConfig, cr: Option<&SpiderCoordinator>) -> Result<NetworkAttachmentDefinition, Invalid> {
    let spec = &smc.spec;
    only_block(smc)?;
    let name = name(smc)?;
    let version = cni_version(smc)?;
    let mut annotations: BTreeMap<String, String> =
        smc.annotations().iter().filter(|(k, _)| *k != LAST_APPLIED).map(|(k, v)| (k.clone(), v.clone())).collect();
    let ipam = !spec.disable_ipam;
    let parts = match spec.cni_type {
        CniType::Custom => None,
        CniType::Macvlan => Some(macvlan("macvlan", block("macvlan", spec.macvlan.as_ref())?, ipam)?),
        CniType::Ipvlan => Some(macvlan("ipvlan", block("ipvlan", spec.ipvlan.as_ref())?, ipam)?),
        CniType::Vlan => Some(vlan(block("vlan", spec.vlan.as_ref())?, ipam)?),
        CniType::Sriov => Some(sriov(block("sriov", spec.sriov.as_ref())?, ipam)?),
        CniType::Ovs => Some(ovs(block("ovs", spec.ovs.as_ref())?, ipam)?),
        CniType::IbSriov => Some(ib_sriov(block("ibsriov", spec.ibsriov.as_ref())?, ipam)?),
        CniType::Ipoib => Some(ipoib(block("ipoib", spec.ipoib.as_ref())?, ipam)?),
    };
    let config = match parts {
        None => custom(smc)?,
        Some(parts) => {
            let mut plugins: Vec<Value> = parts.before.into_iter().collect();
            plugins.push(parts.main);
            plugins.extend(parts.behind);
            for (i, text) in spec.chain_cni_json_data.iter().enumerate() {
                plugins.push(chained(&format!("spec.chainCNIJsonData[{i}]"), text)?);
            }
            if spec.enable_coordinator {
                plugins.push(coordinator(smc, cr)?);
            }
            plugins.extend(parts.last);
            if let Some(resource) = parts.resource {
                annotations.insert(keys::RESOURCE_NAME.to_owned(), resource);
            }
            Some(json!({"cniVersion": version, "name": name, "plugins": plugins}).to_string())
        }
    };
    Ok(NetworkAttachmentDefinition {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: smc.namespace(),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: owner(smc).map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: NetworkAttachmentDefinitionSpec { config },
        ..NetworkAttachmentDefinition::default()
    })
}

/// None before the API server has given the object its uid.
fn owner(smc: &SpiderMultusConfig) -> Option<OwnerReference> {
    use kube::Resource as _;
    smc.controller_owner_ref(&()).map(|o| OwnerReference { block_owner_deletion: Some(true), ..o })
}

/// A DNS subdomain, because it names an object.
fn name(smc: &SpiderMultusConfig) -> Result<String, Invalid> {
    let Some(name) = smc.annotations().get(keys::CR_NAME) else { return Ok(smc.name_any()) };
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(Invalid::new(keys::CR_NAME, name, "is not the name of an object: a DNS subdomain"));
    }
    Ok(name.clone())
}

fn cni_version(smc: &SpiderMultusConfig) -> Result<&str, Invalid> {
    match smc.annotations().get(keys::CNI_VERSION) {
        None => Ok(DEFAULT_CNI_VERSION),
        Some(v) if CNI_VERSIONS.contains(&v.as_str()) => Ok(v),
        Some(v) => Err(Invalid::new(keys::CNI_VERSION, v, format!("is not one of {}", CNI_VERSIONS.join(", ")))),
    }
}

fn block<'a, T>(name: &str, value: Option<&'a T>) -> Result<&'a T, Invalid> {
    value.ok_or_else(|| Invalid::new(format!("spec.{name}"), "", "must be given with this cniType"))
}

/// No block but that of `cniType`.
fn only_block(smc: &SpiderMultusConfig) -> Result<(), Invalid> {
    let s = &smc.spec;
    let given = [
        ("macvlan", CniType::Macvlan, s.macvlan.is_some()),
        ("ipvlan", CniType::Ipvlan, s.ipvlan.is_some()),
        ("vlan", CniType::Vlan, s.vlan.is_some()),
        ("sriov", CniType::Sriov, s.sriov.is_some()),
        ("ovs", CniType::Ovs, s.ovs.is_some()),
        ("ibsriov", CniType::IbSriov, s.ibsriov.is_some()),
        ("ipoib", CniType::Ipoib, s.ipoib.is_some()),
        ("customCNI", CniType::Custom, s.custom_cni.as_ref().is_some_and(|c| !c.is_empty())),
    ];
    match given.into_iter().find(|(_, t, is)| *is && *t != s.cni_type) {
        Some((name, _, _)) => {
            let is = serde_json::to_value(s.cni_type).unwrap_or_default();
            Err(Invalid::new("spec.cniType", is.as_str().unwrap_or_default(), format!("does not go with the block {name}")))
        }
        None => Ok(()),
    }
}

fn set(plugin: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = plugin {
        map.insert(key.to_owned(), value.into());
    }
}

fn with_ipam(plugin: &mut Value, ipam: bool, pools: Option<&PoolNames>) {
    if !ipam {
        return;
    }
    let mut conf = json!({"type": "spiderpool"});
    if let Some(p) = pools {
        for (key, names) in [("default_ipv4_ippool", &p.ipv4), ("default_ipv6_ippool", &p.ipv6)] {
            if !names.is_empty() {
                set(&mut conf, key, names.clone());
            }
        }
        if p.match_master_subnet {
            set(&mut conf, "match_master_subnet", true);
        }
    }
    set(plugin, "ipam", conf);
}

fn no_match_master(field: &str, pools: Option<&PoolNames>) -> Result<(), Invalid> {
    if pools.is_some_and(|p| p.match_master_subnet) {
        return Err(Invalid::new(format!("{field}.ippools.matchMasterSubnet"), true, "is for sriov only"));
    }
    Ok(())
}

fn mtu(field: &str, mtu: i32) -> Result<i32, Invalid> {
    if !(0..=65535).contains(&mtu) {
        return Err(Invalid::new(format!("{field}.mtu"), mtu, "is outside 0 to 65535"));
    }
    Ok(mtu)
}

/// 0 and absent are no VLAN.
fn vlan_id(field: &str, vlan: Option<i32>) -> Result<Option<i32>, Invalid> {
    if let Some(v) = vlan {
        Tag::new(v.into()).map_err(|e| Invalid::new(format!("{field}.vlanID"), v, e))?;
    }
    Ok(vlan.filter(|v| *v != 0))
}

/// The parent's name without VLAN, and its bond where it is one.
fn parent<'a>(field: &str, masters: &'a [String], bond: Option<&'a Bond>) -> Result<(&'a str, Option<&'a Bond>), Invalid> {
    for (i, m) in masters.iter().enumerate() {
        IfName::new(m.clone()).map_err(|e| Invalid::new(format!("{field}.master[{i}]"), m, e))?;
    }
    match (masters, bond) {
        ([], _) => Err(Invalid::new(format!("{field}.master"), "", "must name an interface")),
        ([one], None) => Ok((one, None)),
        ([one], Some(_)) => Err(Invalid::new(format!("{field}.bond"), one, "joins two or more masters, there is one")),
        (many, None) => Err(Invalid::new(format!("{field}.bond"), many.join(","), "must be given with two or more masters")),
        (_, Some(b)) => {
            IfName::new(b.name.clone()).map_err(|e| Invalid::new(format!("{field}.bond.name"), &b.name, e))?;
            if !(0..=6).contains(&b.mode) {
                return Err(Invalid::new(format!("{field}.bond.mode"), b.mode, "is outside 0 to 6"));
            }
            Ok((&b.name, Some(b)))
        }
    }
}

fn ifacer(masters: &[String], bond: Option<&Bond>, vlan: Option<i32>) -> Option<Value> {
    if bond.is_none() && vlan.is_none() {
        return None;
    }
    let mut conf = json!({"type": "ifacer", "interfaces": masters});
    if let Some(v) = vlan {
        set(&mut conf, "vlanID", v);
    }
    if let Some(b) = bond {
        set(&mut conf, "bond", json!({"name": b.name, "mode": b.mode, "options": b.options.as_deref().unwrap_or_default()}));
    }
    Some(conf)
}

/// What a pod's network selection may ask of our plugins: a runtime passes `mac` and `ips` on only where they are declared
/// (CNI conventions, "Dynamic Plugin specific fields").
fn capabilities(ipam: bool) -> Value {
    if ipam { json!({"mac": true, "ips": true}) } else { json!({"mac": true}) }
}

/// Macvlan and ipvlan.
fn macvlan(field: &str, c: &MacvlanConfig, ipam: bool) -> Result<Parts, Invalid> {
    let at = format!("spec.{field}");
    no_match_master(&at, c.ippools.as_ref())?;
    let vlan = vlan_id(&at, c.vlan_id)?;
    let (parent, bond) = parent(&at, &c.master, c.bond.as_ref())?;
    let master = match vlan {
        Some(v) => format!("{parent}.{v}"),
        None => parent.to_owned(),
    };
    // The VLAN link's name is made of both and must be a name of an interface too.
    IfName::new(master.clone()).map_err(|e| Invalid::new(format!("{at}.vlanID"), &master, e))?;
    let mut main = json!({"master": master, "mtu": mtu(&at, c.mtu)?});
    if field == "macvlan" {
        set(&mut main, "type", "cni-macvlan");
        set(&mut main, "mode", "bridge");
        set(&mut main, "capabilities", capabilities(ipam));
    } else {
        set(&mut main, "type", field);
    }
    with_ipam(&mut main, ipam, c.ippools.as_ref());
    Ok(Parts { before: ifacer(&c.master, bond, vlan), ..Parts::of(main) })
}

fn vlan(c: &VlanConfig, ipam: bool) -> Result<Parts, Invalid> {
    let at = "spec.vlan";
    no_match_master(at, c.ippools.as_ref())?;
    let (master, bond) = parent(at, &c.master, c.bond.as_ref())?;
    let mut main = json!({"type": "vlan", "master": master, "mtu": mtu(at, c.mtu)?});
    match (c.vlan_mode, vlan_id(at, c.vlan_id)?) {
        (VlanMode::Manual, Some(v)) => {
            set(&mut main, "vlanMode", "manual");
            set(&mut main, "vlanId", v);
        }
        (VlanMode::Manual, None) => {
            return Err(Invalid::new(format!("{at}.vlanID"), "", "must be 1 to 4094 with vlanMode manual"));
        }
        (VlanMode::Auto, None) if c.vlan_id.is_none() => set(&mut main, "vlanMode", "auto"),
        (VlanMode::Auto, _) => {
            return Err(Invalid::new(
                format!("{at}.vlanID"),
                c.vlan_id.unwrap_or_default(),
                "must not be given with vlanMode auto",
            ));
        }
    }
    with_ipam(&mut main, ipam, c.ippools.as_ref());
    Ok(Parts { before: ifacer(&c.master, bond, None), ..Parts::of(main) })
}

fn ovs(c: &OvsConfig, ipam: bool) -> Result<Parts, Invalid> {
    let at = "spec.ovs";
    no_match_master(at, c.ippools.as_ref())?;
    IfName::new(c.bridge.clone()).map_err(|e| Invalid::new(format!("{at}.bridge"), &c.bridge, e))?;
    let mut main = json!({"type": "cni-ovs", "bridge": c.bridge});
    if let Some(v) = c.vlan {
        Tag::new(v.into()).map_err(|e| Invalid::new(format!("{at}.vlan"), v, e))?;
        set(&mut main, "vlan", v);
    }
    let mut trunk = Vec::new();
    for (i, t) in c.trunk.iter().enumerate() {
        let field = format!("{at}.trunk[{i}]");
        let mut entry = Map::new();
        for (key, value) in [("minID", t.min_id), ("maxID", t.max_id), ("id", t.id)] {
            if let Some(v) = value {
                Tag::new(v).map_err(|e| Invalid::new(format!("{field}.{key}"), v, e))?;
                entry.insert(key.to_owned(), v.into());
            }
        }
        match (t.min_id, t.max_id, t.id) {
            (Some(min), Some(max), _) if min > max => {
                return Err(Invalid::new(field, format!("{min}-{max}"), "ends before it begins"));
            }
            (Some(_), None, _) | (None, Some(_), _) => {
                return Err(Invalid::new(field, Value::Object(entry), "minID and maxID must be given together"));
            }
            (None, None, None) => return Err(Invalid::new(field, "", "must have id, or minID and maxID")),
            _ => trunk.push(Value::Object(entry)),
        }
    }
    if !trunk.is_empty() {
        set(&mut main, "trunk", trunk);
    }
    set(&mut main, "capabilities", capabilities(ipam));
    with_ipam(&mut main, ipam, c.ippools.as_ref());
    let mut parts = Parts::of(main);
    if let Some(device) = c.device_id.as_deref().filter(|d| !d.is_empty()) {
        set(&mut parts.main, "deviceID", device);
        parts.resource = Some(format!("{}{}", keys::BRIDGE_RESOURCE_PREFIX, c.bridge));
    }
    Ok(parts)
}

fn resource(at: &str, name: Option<&str>) -> Result<Option<String>, Invalid> {
    match name {
        Some(n) if !n.is_empty() => Ok(Some(n.to_owned())),
        _ => Err(Invalid::new(format!("{at}.resourceName"), "", "must be given")),
    }
}

fn sriov(c: &SriovConfig, ipam: bool) -> Result<Parts, Invalid> {
    let at = "spec.sriov";
    let mut main = json!({"type": "sriov"});
    if let Some(v) = vlan_id(at, c.vlan_id)? {
        set(&mut main, "vlan", v);
    }
    if let (Some(min), Some(max)) = (c.min_tx_rate_mbps, c.max_tx_rate_mbps)
        && min > max
    {
        return Err(Invalid::new(format!("{at}.minTxRateMbps"), min, format!("is above maxTxRateMbps {max}")));
    }
    for (key, rate) in [("min_tx_rate", c.min_tx_rate_mbps), ("max_tx_rate", c.max_tx_rate_mbps)] {
        if let Some(r) = rate {
            set(&mut main, key, r);
        }
    }
    with_ipam(&mut main, ipam, c.ippools.as_ref());
    let mtu = mtu(at, c.mtu)?;
    Ok(Parts {
        behind: if c.rdma_isolation { vec![json!({"type": "rdma"})] } else { Vec::new() },
        last: (mtu > 0).then(|| json!({"type": "tuning", "mtu": mtu})),
        resource: resource(at, c.resource_name.as_deref())?,
        ..Parts::of(main)
    })
}

fn ib_sriov(c: &IbSriovConfig, ipam: bool) -> Result<Parts, Invalid> {
    let at = "spec.ibsriov";
    no_match_master(at, c.ippools.as_ref())?;
    let pkey = c.pkey.as_deref().unwrap_or_default();
    // InfiniBand Architecture Specification: a partition key has 16 bits.
    let digits = pkey.strip_prefix("0x").unwrap_or(pkey);
    let key = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if !pkey.is_empty() && !key {
        return Err(Invalid::new(format!("{at}.pkey"), pkey, "is not a partition key of up to four hexadecimal digits"));
    }
    let mut main = json!({
        "type": "ib-sriov", "pkey": pkey, "link_state": c.link_state, "rdmaIsolation": c.rdma_isolation, "ibKubernetesEnabled": c.enable_ib_kubernetes,
    });
    with_ipam(&mut main, ipam, c.ippools.as_ref());
    Ok(Parts { resource: resource(at, c.resource_name.as_deref())?, ..Parts::of(main) })
}

fn ipoib(c: &IpoibConfig, ipam: bool) -> Result<Parts, Invalid> {
    let at = "spec.ipoib";
    no_match_master(at, c.ippools.as_ref())?;
    let master = c.master.as_deref().unwrap_or_default();
    IfName::new(master).map_err(|e| Invalid::new(format!("{at}.master"), master, e))?;
    let mut main = json!({"type": "ipoib", "master": master});
    with_ipam(&mut main, ipam, c.ippools.as_ref());
    Ok(Parts::of(main))
}

fn object(field: &str, text: &str) -> Result<Map<String, Value>, Invalid> {
    serde_json::from_str(text).map_err(|e| Invalid::new(field, text, format!("is not a JSON object: {e}")))
}

fn has_type(map: &Map<String, Value>) -> bool {
    map.get("type").and_then(Value::as_str).is_some_and(|t| !t.is_empty())
}

fn chained(field: &str, text: &str) -> Result<Value, Invalid> {
    let map = object(field, text)?;
    if !has_type(&map) {
        return Err(Invalid::new(field, text, "has no type"));
    }
    Ok(Value::Object(map))
}

/// As it was written, or nothing.
fn custom(smc: &SpiderMultusConfig) -> Result<Option<String>, Invalid> {
    if let Some(first) = smc.spec.chain_cni_json_data.first() {
        return Err(Invalid::new(
            "spec.chainCNIJsonData[0]",
            first,
            "does not go with cniType custom, name the plugin in customCNI",
        ));
    }
    let Some(text) = smc.spec.custom_cni.as_deref().filter(|t| !t.is_empty()) else { return Ok(None) };
    let field = "spec.customCNI";
    let map = object(field, text)?;
    match map.get("plugins") {
        None if has_type(&map) => {}
        None => return Err(Invalid::new(field, text, "has neither type nor plugins")),
        Some(plugins) => {
            let list = plugins
                .as_array()
                .filter(|l| !l.is_empty())
                .ok_or_else(|| Invalid::new(field, text, "plugins is not a list of plugins"))?;
            if let Some(i) = list.iter().position(|p| !p.as_object().is_some_and(has_type)) {
                return Err(Invalid::new(field, text, format!("plugins[{i}] has no type")));
            }
        }
    }
    Ok(Some(text.to_owned()))
}

/// Every setting that is not silent, so that a NAD says what its pods get; mode, tuning and queue length always, as programs
/// that read NADs expect them.
fn coordinator(smc: &SpiderMultusConfig, cr: Option<&SpiderCoordinator>) -> Result<Value, Invalid> {
    let own = smc.spec.coordinator.clone().unwrap_or_default();
    // The network's own mistake is told as the network's; the SpiderCoordinator has a condition of its own.
    convert::coordinator(&own, None).map_err(|e| e.within("spec.coordinator"))?;
    convert::coordinator(&own, cr).map_err(|e| e.within("SpiderCoordinator.spec"))?;
    let s = convert::merged(&own, cr);
    let mut conf = json!({
        "type": "coordinator",
        "mode": s.mode.unwrap_or_default(),
        "tunePodRoutes": s.tune_pod_routes.unwrap_or(true),
        "txQueueLen": s.tx_queue_len.unwrap_or(0),
    });
    for (key, text) in [
        ("podMACPrefix", s.pod_mac_prefix),
        ("podDefaultRouteNic", s.pod_default_route_nic),
        ("vethLinkAddress", s.veth_link_address),
    ] {
        if let Some(t) = text {
            set(&mut conf, key, t);
        }
    }
    for (key, number) in [
        ("vethMTU", s.veth_mtu),
        ("podRPFilter", s.pod_rp_filter),
        ("hostRuleTable", s.host_rule_table),
        ("hostRPFilter", s.host_rp_filter),
    ] {
        if let Some(n) = number {
            set(&mut conf, key, n);
        }
    }
    for (key, is) in [("detectGateway", s.detect_gateway), ("detectIPConflict", s.detect_ip_conflict)] {
        if let Some(is) = is {
            set(&mut conf, key, is);
        }
    }
    // An empty list is said too: it goes before the SpiderCoordinator's.
    if let Some(list) = s.hijack_cidr {
        set(&mut conf, "hijackCIDR", list);
    }
    if let Some(list) = s.policy_routes {
        set(&mut conf, "policyRoutes", list.iter().map(|r| json!({"dst": r.dst, "gw": r.gw})).collect::<Vec<_>>());
    }
    Ok(conf)
}
