//! Annotations that choose pools, addresses, routes and networks: the first line names one, the rest is its value. What is
//! refused names the annotation; what is taken, written in the long form, means the same.

use std::collections::{BTreeMap, BTreeSet};

use api::annotations::{self, NicIps, NicPools, PodPools, PoolChoice};
use api::{Invalid, keys};
use cni_meta::{MetaError, Selection, interface_names};
use model::IfName;
use serde_json::{Map, Value, json};

type Annotations = BTreeMap<String, String>;

pub fn check(data: &[u8]) {
    let Some((key, value)) = std::str::from_utf8(data).ok().and_then(|t| t.split_once('\n')) else { return };
    let a = Annotations::from([(key.to_owned(), value.to_owned())]);
    match key {
        keys::IPPOOL | keys::IPPOOLS | keys::SUBNET | keys::SUBNETS => pools(key, &a),
        keys::NAMESPACE_IPV4_POOLS | keys::NAMESPACE_IPV6_POOLS => {
            if let Some(Some(p)) = named(key, annotations::namespace_pools(&a)) {
                distinct(&p);
                assert!(if key == keys::NAMESPACE_IPV4_POOLS { p.ipv6.is_empty() } else { p.ipv4.is_empty() });
            }
        }
        keys::ROUTES => {
            if let Some(routes) = named(key, annotations::routes(&a)) {
                let long: Vec<Value> = routes.iter().map(|(dst, gw)| json!({"dst": dst, "gw": gw})).collect();
                assert!(routes.iter().all(|(dst, gw)| dst.is_ipv4() == gw.is_ipv4()));
                assert_eq!(annotations::routes(&with(key, &long)), Ok(routes));
            }
        }
        keys::DEFAULT_ROUTE_NIC => {
            if let Some(Some(name)) = named(key, annotations::default_route_nic(&a)) {
                assert_eq!(name.as_str(), value);
            }
        }
        keys::IPS => {
            if let Some(Some(nics)) = named(key, annotations::ips(&a)) {
                addresses(&nics);
            }
        }
        keys::L2_DOMAIN => {
            let valid = named(key, annotations::l2_domain(&a)).is_some();
            let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let naive = (1..=63).contains(&value.len()) && value.chars().all(ok) && value.trim_matches('-') == value;
            assert_eq!(valid, naive, "{value:?}");
        }
        keys::PAUSED => {
            let paused = named(key, annotations::paused(&a));
            assert_eq!(paused, [("true", true), ("false", false)].into_iter().find(|(w, _)| *w == value).map(|(_, p)| p));
        }
        keys::NETWORKS => networks(value),
        keys::DEFAULT_NETWORK => match Selection::parse_default_network(value) {
            Ok(one) => assert_eq!(one.is_none(), value.trim().is_empty() || Selection::parse_networks(value, "x") == Ok(vec![])),
            Err(e) => named_by(&e, key),
        },
        _ => {}
    }
}

fn with(key: &str, list: &[Value]) -> Annotations {
    Annotations::from([(key.to_owned(), Value::from(list.to_vec()).to_string())])
}

/// The value, or none and an error that begins with the annotation.
fn named<T>(key: &str, found: Result<T, Invalid>) -> Option<T> {
    found
        .inspect_err(|e| {
            assert!(e.field.starts_with(key) && !e.rule.is_empty(), "{e:?} does not name {key}");
        })
        .ok()
}

fn pools(key: &str, a: &Annotations) {
    let Some(found) = named(key, annotations::pod_pools(a)) else { return };
    let list = |p: &PoolChoice| json!({"ipv4": p.ipv4, "ipv6": p.ipv6});
    match found.as_ref().expect("the annotation is there") {
        PodPools::EachNic(p) => {
            distinct(p);
            let long = Annotations::from([(key.to_owned(), list(p).to_string())]);
            assert_eq!(annotations::pod_pools(&long), Ok(found));
        }
        PodPools::PerNic(nics) => {
            nics.iter().for_each(|n| distinct(&n.pools));
            interfaces(nics.iter().map(|n: &NicPools| n.interface.as_ref()));
            let long: Vec<Value> = nics
                .iter()
                .map(|n| {
                    json!({"interface": n.interface, "ipv4": n.pools.ipv4, "ipv6": n.pools.ipv6, "cleangateway": n.clean_gateway})
                })
                .collect();
            assert_eq!(annotations::pod_pools(&with(key, &long)), Ok(found));
        }
    }
}

fn distinct(p: &PoolChoice) {
    assert!(!(p.ipv4.is_empty() && p.ipv6.is_empty()));
    for list in [&p.ipv4, &p.ipv6] {
        assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len());
        assert!(list.iter().all(|n| !n.is_empty()));
    }
}

/// All are named or none is, and each once.
fn interfaces<'a>(of: impl Iterator<Item = Option<&'a IfName>>) {
    let all: Vec<_> = of.collect();
    let named: BTreeSet<_> = all.iter().flatten().collect();
    assert!(!all.is_empty() && (named.is_empty() || named.len() == all.len()));
}

fn addresses(nics: &[NicIps]) {
    interfaces(nics.iter().map(|n| n.interface.as_ref()));
    let all: BTreeSet<_> = nics.iter().flat_map(|n| &n.ips).map(|w| w.ip).collect();
    assert_eq!(all.len(), nics.iter().map(|n| n.ips.len()).sum::<usize>(), "an address is named twice");
    for nic in nics {
        let families: Vec<_> = nic.ips.iter().map(|w| w.ip.is_ipv4()).collect();
        assert!(matches!(families[..], [_] | [true, false]), "one of each family, IPv4 first");
        assert!(nic.ips.iter().all(|w| w.prefix_len.is_none_or(|l| l <= if w.ip.is_ipv4() { 32 } else { 128 })));
    }
    let long: Vec<Value> = nics
        .iter()
        .map(|n| {
            let ips: Vec<String> =
                n.ips.iter().map(|w| w.prefix_len.map_or(w.ip.to_string(), |l| format!("{}/{l}", w.ip))).collect();
            json!({"interface": n.interface, "ips": ips})
        })
        .collect();
    assert_eq!(annotations::ips(&with(keys::IPS, &long)), Ok(Some(nics.to_vec())));
}

fn named_by(e: &MetaError, key: &str) {
    let text = e.to_string();
    assert!(text.starts_with(&format!("annotation {key}")), "{text}");
    assert_eq!(e.to_cni().code, cni::Error::INVALID_CONFIG);
}

fn networks(value: &str) {
    match Selection::parse_networks(value, "pod-ns") {
        Err(e) => named_by(&e, keys::NETWORKS),
        Ok(list) => {
            let long: Vec<Value> = list.iter().map(element).collect();
            let again = Selection::parse_networks(&Value::from(long).to_string(), "other-ns").expect("the long form is taken");
            assert_eq!(again.len(), list.len());
            for (a, b) in list.iter().zip(&again) {
                assert!(crate::json::alike(&element(a), &element(b)), "{a:?} became {b:?}");
            }
            let primary = IfName::new("eth0").expect("a short name");
            if let Ok(names) = interface_names(&list, &primary) {
                let distinct: BTreeSet<_> = names.iter().chain([&primary]).collect();
                assert_eq!((distinct.len(), names.len()), (list.len() + 1, list.len()));
            }
        }
    }
}

/// As the standard writes a selection out.
fn element(s: &Selection) -> Value {
    let mut o = Map::from_iter([("namespace".to_owned(), json!(s.namespace)), ("name".to_owned(), json!(s.name))]);
    let mut put = |key: &str, v: Value| drop(o.insert(key.to_owned(), v));
    if let Some(i) = &s.interface {
        put("interface", json!(i));
    }
    if let Some(mac) = &s.mac {
        put("mac", json!(mac.to_string()));
    }
    if !s.ips.is_empty() {
        put("ips", json!(s.ips));
    }
    if !s.cni_args.is_empty() {
        put("cni-args", Value::Object(s.cni_args.clone()));
    }
    if !s.default_route.is_empty() {
        put("default-route", json!(s.default_route));
    }
    for (key, v) in &s.capabilities {
        put(if key == "infinibandGUID" { "infiniband-guid" } else { key }, v.clone());
    }
    for (key, v) in &s.other {
        put(key, v.clone());
    }
    Value::Object(o)
}
