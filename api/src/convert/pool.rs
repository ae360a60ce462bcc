//! SpiderIPPool and SpiderReservedIP as the values of crate `ipam`, where the arithmetic of addresses is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipam::{Family, Pool, PoolError, PoolSpec, Pools, Ranges};
use kube::ResourceExt as _;

use crate::annotations;
use crate::invalid::Invalid;
use crate::spider::{SpiderIPPool, SpiderReservedIP};

/// The rules of a pool that concern one object.
pub fn pool(object: &SpiderIPPool) -> Result<Pool, Invalid> {
    let spec = &object.spec;
    for (i, n) in spec.multus_name.iter().enumerate() {
        let parts: Vec<&str> = n.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|p| p.is_empty()) {
            return Err(Invalid::new(format!("spec.multusName[{i}]"), n, "is neither name nor namespace/name"));
        }
    }
    annotations::detect(object.annotations())?;
    // Set and not acted on: nothing may be given out that the user meant for others.
    let unimplemented = [
        ("podAffinity", spec.pod_affinity.is_some()),
        ("namespaceAffinity", spec.namespace_affinity.is_some()),
        ("nodeAffinity", spec.node_affinity.is_some()),
    ];
    Pool::parse(PoolSpec {
        name: object.name_any(),
        ip_version: spec.ip_version,
        subnet: spec.subnet.clone(),
        ips: spec.ips.clone(),
        exclude_ips: spec.exclude_ips.clone(),
        gateway: spec.gateway.clone().filter(|g| !g.is_empty()),
        routes: spec.routes.iter().map(|r| (r.dst.clone(), r.gw.clone())).collect(),
        default: spec.default,
        disable: spec.disable,
        terminating: object.metadata.deletion_timestamp.is_some(),
        domain: annotations::l2_domain(object.annotations())?,
        node_names: spec.node_name.clone(),
        namespace_names: spec.namespace_name.clone(),
        multus_names: spec.multus_name.clone(),
        unimplemented: unimplemented.iter().filter(|(_, set)| *set).map(|(name, _)| format!("spec.{name}")).collect(),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
    })
    .map_err(|e| invalid(object, e))
}

/// The field and what it holds, for an error of `ipam`.
fn invalid(object: &SpiderIPPool, e: PoolError) -> Invalid {
    let spec = &object.spec;
    let route = |i: usize, part: &str| {
        (format!("spec.routes[{i}].{part}"), spec.routes.get(i).map(|r| if part == "dst" { r.dst.clone() } else { r.gw.clone() }))
    };
    match e {
        PoolError::Subnet(e) => Invalid::new("spec.subnet", &spec.subnet, e),
        PoolError::Version(v, subnet) => Invalid::new("spec.ipVersion", v, format!("is not the version of subnet {subnet}")),
        PoolError::Range(field, i, e) => {
            let items = if field == "ips" { &spec.ips } else { &spec.exclude_ips };
            Invalid::new(format!("spec.{field}[{i}]"), items.get(i).map_or("", String::as_str), e)
        }
        PoolError::Gateway(g, subnet) => Invalid::new("spec.gateway", g, format!("is not an address of subnet {subnet}")),
        PoolError::GatewayAllocatable(g) => {
            Invalid::new("spec.gateway", g, "is one of ips, name it in excludeIPs or take it out of ips")
        }
        PoolError::RouteDst(i, _) => {
            let (field, value) = route(i, "dst");
            Invalid::new(field, value.unwrap_or_default(), "is not a network of the pool's family without host bits")
        }
        PoolError::RouteDefault(i, _) => {
            let (field, value) = route(i, "dst");
            Invalid::new(field, value.unwrap_or_default(), "is the default route, that is gateway")
        }
        PoolError::RouteTwice(i, _) => {
            let (field, value) = route(i, "dst");
            Invalid::new(field, value.unwrap_or_default(), "has a route already")
        }
        PoolError::RouteGw(i, _, subnet) => {
            let (field, value) = route(i, "gw");
            Invalid::new(field, value.unwrap_or_default(), format!("is not an address of subnet {subnet}"))
        }
    }
}

/// Addresses that no pool gives out, all of one family: that of `ipVersion`, else that of the first.
pub fn reserved(object: &SpiderReservedIP) -> Result<Ranges, Invalid> {
    let spec = &object.spec;
    let family = match spec.ip_version {
        Some(4) => Family::V4,
        Some(6) => Family::V6,
        Some(v) => return Err(Invalid::new("spec.ipVersion", v, "is neither 4 nor 6")),
        None => {
            let first = spec.ips.first().and_then(|i| i.split('-').next()).and_then(|a| a.parse::<IpAddr>().ok());
            first.map_or(Family::V4, Family::of)
        }
    };
    let mut all = Ranges::empty(family);
    for (i, item) in spec.ips.iter().enumerate() {
        all = all.union(
            &Ranges::parse(std::slice::from_ref(item), family, None)
                .map_err(|e| Invalid::new(format!("spec.ips[{i}]"), item, e))?,
        );
    }
    Ok(all)
}

/// All pools as they may be used beside each other, and the objects that cannot be read.
#[derive(Debug, Default)]
pub struct Checked {
    pub pools: Pools,
    /// By name of the pool.
    pub invalid: BTreeMap<String, Invalid>,
    /// By name of the SpiderReservedIP. What such a one means to reserve is not known, so it reserves nothing.
    pub reserved_invalid: BTreeMap<String, Invalid>,
}

pub fn pools<'a>(
    objects: impl IntoIterator<Item = &'a SpiderIPPool>,
    reservations: impl IntoIterator<Item = &'a SpiderReservedIP>,
) -> Checked {
    let mut out = Checked::default();
    let mut good = Vec::new();
    for p in objects {
        match pool(p) {
            Ok(p) => good.push(p),
            Err(e) => drop(out.invalid.insert(p.name_any(), e)),
        }
    }
    let mut ranges = Vec::new();
    for r in reservations {
        match reserved(r) {
            Ok(r) => ranges.push(r),
            Err(e) => drop(out.reserved_invalid.insert(r.name_any(), e)),
        }
    }
    out.pools = Pools::new(good, &ranges);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spider::{SpiderIPPoolSpec, SpiderReservedIPSpec};
    use serde_json::json;

    fn of(spec: serde_json::Value) -> Result<Pool, String> {
        let spec: SpiderIPPoolSpec = serde_json::from_value(spec).unwrap();
        pool(&SpiderIPPool::new("p", spec)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_pool_of_the_quick_starts_is_read() {
        let p = of(json!({"subnet": "10.6.0.0/16", "ips": ["10.6.212.200-10.6.212.209"], "gateway": "10.6.0.1", "multusName": ["kube-system/ovs-conf"]})).unwrap();
        assert_eq!((p.family(), p.domain.as_str(), p.unimplemented.len()), (Family::V4, "default", 0));
        assert_eq!(p.ranges.to_string(), "10.6.212.200-10.6.212.209");
    }

    #[test]
    fn each_wrong_field_is_named() {
        let base = json!({"subnet": "10.24.0.0/16", "ips": ["10.24.0.1-10.24.0.10"]});
        let with = |patch: serde_json::Value| {
            let mut spec = base.clone();
            spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            of(spec).unwrap_err()
        };
        for (patch, error) in [
            (json!({"subnet": "10.24.0.1/16"}), "spec.subnet: \"10.24.0.1/16\": has host bits set, the network is 10.24.0.0/16"),
            (
                json!({"subnet": "010.24.0.0/16"}),
                "spec.subnet: \"010.24.0.0/16\": is not an IP network in the form address/prefix-length",
            ),
            (json!({"ipVersion": 6}), "spec.ipVersion: \"6\": is not the version of subnet 10.24.0.0/16"),
            (json!({"ips": ["10.24.0.20-10.24.0.10"]}), "spec.ips[0]: \"10.24.0.20-10.24.0.10\": ends before it begins"),
            (
                json!({"ips": ["10.24.0.9", "10.24.0.010"]}),
                "spec.ips[1]: \"10.24.0.010\": is neither an address nor a range \"first-last\" without spaces",
            ),
            (
                json!({"ips": ["10.24.0.10 - 10.24.0.20"]}),
                "spec.ips[0]: \"10.24.0.10 - 10.24.0.20\": is neither an address nor a range \"first-last\" without spaces",
            ),
            (json!({"ips": ["10.25.0.1"]}), "spec.ips[0]: \"10.25.0.1\": is not inside the subnet 10.24.0.0/16"),
            (json!({"excludeIPs": ["fd00::1"]}), "spec.excludeIPs[0]: \"fd00::1\": is not an IPv4 address"),
            (json!({"gateway": "10.25.0.1"}), "spec.gateway: \"10.25.0.1\": is not an address of subnet 10.24.0.0/16"),
            (
                json!({"gateway": "10.24.0.1"}),
                "spec.gateway: \"10.24.0.1\": is one of ips, name it in excludeIPs or take it out of ips",
            ),
            (
                json!({"routes": [{"dst": "0.0.0.0/0", "gw": "10.24.0.1"}]}),
                "spec.routes[0].dst: \"0.0.0.0/0\": is the default route, that is gateway",
            ),
            (
                json!({"routes": [{"dst": "1.0.0.0/8", "gw": "10.24.0.1"}, {"dst": "1.0.0.0/8", "gw": "10.24.0.2"}]}),
                "spec.routes[1].dst: \"1.0.0.0/8\": has a route already",
            ),
            (
                json!({"routes": [{"dst": "1.0.0.0/8", "gw": "10.25.0.1"}]}),
                "spec.routes[0].gw: \"10.25.0.1\": is not an address of subnet 10.24.0.0/16",
            ),
            (
                json!({"routes": [{"dst": "1.0.0.0/8", "gw": "fd00::1"}]}),
                "spec.routes[0].gw: \"fd00::1\": is not an address of subnet 10.24.0.0/16",
            ),
            (json!({"multusName": ["a/b/c"]}), "spec.multusName[0]: \"a/b/c\": is neither name nor namespace/name"),
        ] {
            assert_eq!(with(patch), error);
        }
    }

    #[test]
    fn an_excluded_gateway_is_right() {
        assert!(of(json!({"subnet": "10.26.0.0/16", "ips": ["10.26.0.1-10.26.0.10"], "excludeIPs": ["10.26.0.1"], "gateway": "10.26.0.1"})).is_ok());
    }

    #[test]
    fn fields_that_are_not_implemented_are_named() {
        let p = of(json!({"subnet": "10.26.0.0/16", "podAffinity": {"matchLabels": {"a": "b"}}, "nodeAffinity": {}})).unwrap();
        assert_eq!(p.unimplemented, ["spec.podAffinity", "spec.nodeAffinity"]);
    }

    #[test]
    fn reserved_addresses_are_of_one_family() {
        let r = |spec: serde_json::Value| {
            reserved(&SpiderReservedIP::new("r", serde_json::from_value::<SpiderReservedIPSpec>(spec).unwrap()))
                .map_err(|e| e.to_string())
        };
        assert_eq!(r(json!({"ips": ["10.0.0.1-10.0.0.2", "10.0.0.3"]})).unwrap().to_string(), "10.0.0.1-10.0.0.3");
        assert_eq!(r(json!({"ips": ["10.0.0.1", "fd00::1"]})).unwrap_err(), "spec.ips[1]: \"fd00::1\": is not an IPv4 address");
        assert_eq!(
            r(json!({"ipVersion": 6, "ips": ["10.0.0.1"]})).unwrap_err(),
            "spec.ips[0]: \"10.0.0.1\": is not an IPv6 address"
        );
        assert!(r(json!({})).unwrap().is_empty());
    }
}
