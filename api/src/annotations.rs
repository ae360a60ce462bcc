//! Annotations as values. A wrong one is an error that names it, never a default: a pod that asked for something gets that
//! or a reason. The networks' annotations are `cni-meta`'s to parse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{Cidr, IfAddr, IfName};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::invalid::Invalid;
use crate::keys;
use crate::spider::PoolRoute;

type Map = BTreeMap<String, String>;

/// Pools for one NIC, in the order of preference. Names may have the wildcards `*`, `?`, `[..]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolChoice {
    #[serde(default)]
    pub ipv4: Vec<String>,
    #[serde(default)]
    pub ipv6: Vec<String>,
}

/// One entry of `ippools`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicPools {
    /// None in all entries or in none: entries without map by position to eth0 and then the networks in their order.
    pub interface: Option<IfName>,
    pub pools: PoolChoice,
    /// No default route from this NIC.
    pub clean_gateway: bool,
}

/// What a pod says about pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodPools {
    /// `ippool`: for whichever NIC is being made.
    EachNic(PoolChoice),
    /// `ippools`.
    PerNic(Vec<NicPools>),
}

/// An address that a pod names for a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedIp {
    pub ip: IpAddr,
    /// Where it was written with a length; the pool's subnet says the same or the request is wrong.
    pub prefix_len: Option<u8>,
}

/// One entry of `mooring.dev/ips`: at most one address of each family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicIps {
    /// None: the pod's only NIC of ours.
    pub interface: Option<IfName>,
    pub ips: Vec<WantedIp>,
}

fn json<T: DeserializeOwned>(key: &str, value: &str, form: &str) -> Result<T, Invalid> {
    serde_json::from_str(value).map_err(|e| Invalid::new(key, value, format!("is not {form}: {e}")))
}

fn checked(key: &str, value: &str, pools: PoolChoice) -> Result<PoolChoice, Invalid> {
    if pools.ipv4.is_empty() && pools.ipv6.is_empty() {
        return Err(Invalid::new(key, value, "names no pool"));
    }
    for list in [&pools.ipv4, &pools.ipv6] {
        let mut seen = BTreeSet::new();
        for name in list {
            if name.is_empty() {
                return Err(Invalid::new(key, value, "names a pool with an empty name"));
            }
            if !seen.insert(name) {
                return Err(Invalid::new(key, value, format!("names pool {name} twice")));
            }
        }
    }
    Ok(pools)
}

/// `subnets` and `subnet` are refused, `ippools` goes before `ippool`.
pub fn pod_pools(a: &Map) -> Result<Option<PodPools>, Invalid> {
    for key in [keys::SUBNETS, keys::SUBNET] {
        if let Some(value) = a.get(key) {
            return Err(Invalid::new(
                key,
                value,
                "pools made from a SpiderSubnet are not implemented, name a pool with ipam.spidernet.io/ippool",
            ));
        }
    }
    if let Some(pools) = ippools(a)? {
        return Ok(Some(PodPools::PerNic(pools)));
    }
    Ok(ippool(a)?.map(PodPools::EachNic))
}

/// `{"ipv4":["p1","p2"],"ipv6":["p6"]}`
pub fn ippool(a: &Map) -> Result<Option<PoolChoice>, Invalid> {
    let Some(value) = a.get(keys::IPPOOL) else { return Ok(None) };
    let pools = json(keys::IPPOOL, value, r#"an object like {"ipv4":["pool"]}"#)?;
    checked(keys::IPPOOL, value, pools).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNicPools {
    interface: Option<String>,
    #[serde(default)]
    ipv4: Vec<String>,
    #[serde(default)]
    ipv6: Vec<String>,
    #[serde(default)]
    cleangateway: bool,
}

/// `[{"interface":"eth0","ipv4":["p1"]},{"interface":"net1","ipv4":["p2"],"cleangateway":true}]`
pub fn ippools(a: &Map) -> Result<Option<Vec<NicPools>>, Invalid> {
    let key = keys::IPPOOLS;
    let Some(value) = a.get(key) else { return Ok(None) };
    let raw: Vec<RawNicPools> = json(key, value, r#"a list like [{"interface":"eth0","ipv4":["pool"]}]"#)?;
    let mut out: Vec<NicPools> = Vec::with_capacity(raw.len());
    for r in raw {
        let interface =
            r.interface.filter(|i| !i.is_empty()).map(|i| IfName::new(i).map_err(|e| Invalid::new(key, value, e))).transpose()?;
        let pools = checked(key, value, PoolChoice { ipv4: r.ipv4, ipv6: r.ipv6 })?;
        out.push(NicPools { interface, pools, clean_gateway: r.cleangateway });
    }
    interfaces_agree(key, value, out.iter().map(|p| p.interface.as_ref()))?;
    Ok(Some(out))
}

/// At least one entry; all or none name an interface; none twice.
fn interfaces_agree<'a>(key: &str, value: &str, interfaces: impl Iterator<Item = Option<&'a IfName>>) -> Result<(), Invalid> {
    let (mut named, mut unnamed, mut seen) = (0, 0, BTreeSet::new());
    for i in interfaces {
        match i {
            Some(i) if !seen.insert(i) => return Err(Invalid::new(key, value, format!("names interface {i} twice"))),
            Some(_) => named += 1,
            None => unnamed += 1,
        }
    }
    match (named, unnamed) {
        (0, 0) => Err(Invalid::new(key, value, "is an empty list")),
        (0, _) | (_, 0) => Ok(()),
        _ => Err(Invalid::new(key, value, "names an interface in some entries and not in others")),
    }
}

/// Pools of a Namespace: JSON lists of names.
pub fn namespace_pools(a: &Map) -> Result<Option<PoolChoice>, Invalid> {
    let list = |key: &str| -> Result<Vec<String>, Invalid> {
        let Some(value) = a.get(key) else { return Ok(Vec::new()) };
        let names: Vec<String> = json(key, value, r#"a list like ["pool"]"#)?;
        checked(key, value, PoolChoice { ipv4: names, ipv6: Vec::new() }).map(|p| p.ipv4)
    };
    let pools = PoolChoice { ipv4: list(keys::NAMESPACE_IPV4_POOLS)?, ipv6: list(keys::NAMESPACE_IPV6_POOLS)? };
    Ok((pools != PoolChoice::default()).then_some(pools))
}

/// `[{"dst":"172.20.0.0/16","gw":"10.6.0.1"}]`; each goes to the NIC whose subnet holds the gateway.
pub fn routes(a: &Map) -> Result<Vec<(Cidr, IpAddr)>, Invalid> {
    let key = keys::ROUTES;
    let Some(value) = a.get(key) else { return Ok(Vec::new()) };
    let raw: Vec<PoolRoute> = json(key, value, r#"a list like [{"dst":"172.20.0.0/16","gw":"10.6.0.1"}]"#)?;
    raw.iter().enumerate().map(|(i, r)| crate::convert::route(&format!("{key}[{i}]"), r)).collect()
}

/// The NIC that keeps the default route. Whether the pod has it is known only to who makes its NICs.
pub fn default_route_nic(a: &Map) -> Result<Option<IfName>, Invalid> {
    let key = keys::DEFAULT_ROUTE_NIC;
    a.get(key).map(|v| IfName::new(v.clone()).map_err(|e| Invalid::new(key, v, e))).transpose()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNicIps {
    interface: Option<String>,
    ips: Vec<String>,
}

/// The addresses that a pod wants. For its only NIC `10.6.1.5` or, in both families, `10.6.1.5,fd00::5`; for several
/// `[{"interface":"net1","ips":["10.6.1.5"]}]`. Each with or without prefix length.
pub fn ips(a: &Map) -> Result<Option<Vec<NicIps>>, Invalid> {
    let key = keys::IPS;
    let Some(value) = a.get(key) else { return Ok(None) };
    let raw = if value.trim_start().starts_with('[') {
        json(key, value, r#"a list like [{"interface":"net1","ips":["10.6.1.5"]}]"#)?
    } else {
        vec![RawNicIps { interface: None, ips: value.split(',').map(|s| s.trim().to_owned()).collect() }]
    };
    let mut out = Vec::with_capacity(raw.len());
    let mut all = BTreeSet::new();
    for r in raw {
        let interface = r.interface.map(|i| IfName::new(i).map_err(|e| Invalid::new(key, value, e))).transpose()?;
        let mut ips: Vec<WantedIp> = Vec::new();
        for text in &r.ips {
            let wanted = wanted_ip(text).map_err(|rule| Invalid::new(key, value, rule))?;
            if !all.insert(wanted.ip) {
                return Err(Invalid::new(key, value, format!("names {} twice", wanted.ip)));
            }
            if ips.iter().any(|o| o.ip.is_ipv4() == wanted.ip.is_ipv4()) {
                return Err(Invalid::new(key, value, "names two addresses of one family for one interface"));
            }
            ips.push(wanted);
        }
        if ips.is_empty() {
            return Err(Invalid::new(key, value, "has an entry without an address"));
        }
        // IPv4 first, always.
        ips.sort_by_key(|w| !w.ip.is_ipv4());
        out.push(NicIps { interface, ips });
    }
    interfaces_agree(key, value, out.iter().map(|n| n.interface.as_ref()))?;
    if out.len() > 1 && out[0].interface.is_none() {
        return Err(Invalid::new(key, value, "needs interfaces where it has several entries"));
    }
    Ok(Some(out))
}

/// An address that an interface may have, with or without prefix length.
fn wanted_ip(text: &str) -> Result<WantedIp, String> {
    if text.contains('/') {
        let a: IfAddr = text.parse().map_err(|e: model::AddrError| e.to_string())?;
        return Ok(WantedIp { ip: a.ip(), prefix_len: Some(a.prefix_len()) });
    }
    let ip: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    IfAddr::new(ip, if ip.is_ipv4() { 32 } else { 128 }).map_err(|e| e.to_string())?;
    Ok(WantedIp { ip, prefix_len: None })
}

/// The L2 domain of a pool: a DNS label, because leases are named by it.
pub fn l2_domain(a: &Map) -> Result<String, Invalid> {
    let key = keys::L2_DOMAIN;
    let Some(value) = a.get(key) else { return Ok(keys::DEFAULT_L2_DOMAIN.to_owned()) };
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = !value.is_empty()
        && value.len() <= 63
        && value.bytes().all(|b| inner(b) || b == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-');
    if !label {
        return Err(Invalid::new(
            key,
            value,
            "is not a DNS label: at most 63 of a-z, 0-9 and '-', which is neither first nor last",
        ));
    }
    Ok(value.clone())
}

/// What a pool says about probes; none leaves it to the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Detect {
    pub conflict: Option<bool>,
    pub gateway: Option<bool>,
}

pub fn detect(a: &Map) -> Result<Detect, Invalid> {
    Ok(Detect { conflict: flag(a, keys::DETECT_CONFLICT)?, gateway: flag(a, keys::DETECT_GATEWAY)? })
}

/// Repair of a Bridge or Node is stopped.
pub fn paused(a: &Map) -> Result<bool, Invalid> {
    Ok(flag(a, keys::PAUSED)?.unwrap_or(false))
}

fn flag(a: &Map, key: &str) -> Result<Option<bool>, Invalid> {
    match a.get(key).map(String::as_str) {
        None => Ok(None),
        Some("false") => Ok(Some(false)),
        Some("true") => Ok(Some(true)),
        Some(other) => Err(Invalid::new(key, other, "is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(key: &str, value: &str) -> Map {
        Map::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn pools_of_a_pod() {
        assert_eq!(pod_pools(&Map::new()).unwrap(), None);
        let one = pod_pools(&a(keys::IPPOOL, r#"{"ipv4":["p1","p2"]}"#)).unwrap();
        assert_eq!(one, Some(PodPools::EachNic(PoolChoice { ipv4: vec!["p1".into(), "p2".into()], ipv6: vec![] })));
        let mut both = a(keys::IPPOOL, r#"{"ipv4":["p1"]}"#);
        both.extend(a(keys::IPPOOLS, r#"[{"interface":"eth0","ipv4":["p"],"cleangateway":true}]"#));
        let Some(PodPools::PerNic(nics)) = pod_pools(&both).unwrap() else { panic!("ippools goes first") };
        assert!(nics[0].clean_gateway);
    }

    #[test]
    fn wrong_annotations_name_themselves() {
        let err = |key: &str, value: &str| pod_pools(&a(key, value)).unwrap_err().to_string();
        assert!(
            err(keys::IPPOOL, "p1")
                .starts_with("ipam.spidernet.io/ippool: \"p1\": is not an object like {\"ipv4\":[\"pool\"]}: expected value")
        );
        assert!(err(keys::IPPOOL, r#"{"ipv5":["p"]}"#).contains("unknown field `ipv5`"));
        assert_eq!(err(keys::IPPOOL, "{}"), "ipam.spidernet.io/ippool: \"{}\": names no pool");
        assert!(err(keys::IPPOOL, r#"{"ipv4":["p","p"]}"#).ends_with("names pool p twice"));
        assert!(err(keys::IPPOOLS, "[]").ends_with("is an empty list"));
        assert!(
            err(keys::IPPOOLS, r#"[{"interface":"eth0","ipv4":["p"]},{"ipv4":["p"]}]"#)
                .ends_with("names an interface in some entries and not in others")
        );
        assert!(
            err(keys::IPPOOLS, r#"[{"interface":"eth0","ipv4":["p"]},{"interface":"eth0","ipv4":["q"]}]"#)
                .ends_with("names interface eth0 twice")
        );
        assert!(err(keys::SUBNET, r#"{"ipv4":["s"]}"#).contains("are not implemented"));
        assert!(err(keys::SUBNETS, "[]").contains("are not implemented"));
    }

    #[test]
    fn pools_of_a_namespace() {
        let p = namespace_pools(&a(keys::NAMESPACE_IPV6_POOLS, r#"["p6*"]"#)).unwrap().unwrap();
        assert_eq!((p.ipv4.len(), p.ipv6[0].as_str()), (0, "p6*"));
        assert_eq!(namespace_pools(&Map::new()).unwrap(), None);
        assert!(
            namespace_pools(&a(keys::NAMESPACE_IPV4_POOLS, "p"))
                .unwrap_err()
                .to_string()
                .starts_with("ipam.spidernet.io/default-ipv4-ippool: \"p\": is not a list")
        );
    }

    #[test]
    fn routes_and_the_default_route_nic() {
        assert_eq!(routes(&a(keys::ROUTES, r#"[{"dst":"172.20.0.0/16","gw":"10.6.0.1"}]"#)).unwrap().len(), 1);
        assert_eq!(
            routes(&a(keys::ROUTES, r#"[{"dst":"172.20.0.1/16","gw":"10.6.0.1"}]"#)).unwrap_err().field,
            "ipam.spidernet.io/routes[0].dst"
        );
        assert_eq!(default_route_nic(&a(keys::DEFAULT_ROUTE_NIC, "net1")).unwrap().unwrap().as_str(), "net1");
        assert!(default_route_nic(&a(keys::DEFAULT_ROUTE_NIC, "")).is_err());
    }

    #[test]
    fn addresses_of_a_pod() {
        let one = ips(&a(keys::IPS, "fd00::5/64, 10.6.1.5")).unwrap().unwrap();
        assert_eq!(
            (one.len(), one[0].ips[0].ip.to_string(), one[0].ips[1].prefix_len),
            (1, "10.6.1.5".to_owned(), Some(64)),
            "IPv4 comes first"
        );
        let two = ips(&a(keys::IPS, r#"[{"interface":"eth0","ips":["10.6.1.5"]},{"interface":"net1","ips":["10.7.1.5"]}]"#))
            .unwrap()
            .unwrap();
        assert_eq!(two[1].interface.as_ref().unwrap().as_str(), "net1");
        for (bad, rule) in [
            ("", "\"\" is not an IP address"),
            ("10.6.1.05", "is not an IP address"),
            ("224.0.0.1", "224.0.0.1/32 is not usable as an interface's address: it is a multicast address"),
            ("10.6.1.5,10.6.1.6", "names two addresses of one family for one interface"),
            (r#"[{"ips":[]}]"#, "has an entry without an address"),
            (r#"[{"ips":["10.0.0.1"]},{"ips":["10.0.0.2"]}]"#, "needs interfaces where it has several entries"),
            (r#"[{"interface":"a","ips":["10.0.0.1"]},{"interface":"b","ips":["10.0.0.1"]}]"#, "names 10.0.0.1 twice"),
        ] {
            assert!(ips(&a(keys::IPS, bad)).unwrap_err().to_string().ends_with(rule), "{bad}");
        }
    }

    #[test]
    fn domain_and_pause() {
        assert_eq!(l2_domain(&Map::new()).unwrap(), "default");
        assert_eq!(l2_domain(&a(keys::L2_DOMAIN, "rack-7")).unwrap(), "rack-7");
        for bad in ["", "Rack", "a.b", "-a", "a-", &"a".repeat(64)] {
            assert!(l2_domain(&a(keys::L2_DOMAIN, bad)).is_err(), "{bad}");
        }
        assert!(paused(&a(keys::PAUSED, "true")).unwrap());
        assert!(paused(&a(keys::PAUSED, "yes")).is_err());
        assert_eq!(detect(&Map::new()).unwrap(), Detect::default());
        assert_eq!(detect(&a(keys::DETECT_CONFLICT, "false")).unwrap(), Detect { conflict: Some(false), gateway: None });
        assert_eq!(detect(&a(keys::DETECT_GATEWAY, "true")).unwrap(), Detect { conflict: None, gateway: Some(true) });
        assert_eq!(
            detect(&a(keys::DETECT_GATEWAY, "1")).unwrap_err().to_string(),
            "mooring.dev/detect-gateway: \"1\": is neither true nor false"
        );
    }
}
