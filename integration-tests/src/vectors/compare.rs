//! What two plugins made of the same calls, as values that can be compared. Knows what is ours on purpose.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Vector;
use super::run::Done;
use crate::space::Space;

/// The sysctls of an interface that either plugin has an opinion on.
const SYSCTLS: &str =
    "ipv4/conf/*/arp_notify ipv6/conf/*/ndisc_notify ipv6/conf/*/disable_ipv6 ipv4/conf/*/rp_filter ipv4/ip_forward";

/// Links, addresses, routes and sysctls of the pod, the host's links, and the files of host-local.
///
/// # Errors
/// A tool fails.
pub fn state(node: &Space) -> Result<Value, String> {
    let script = format!(
        "json() {{ out=$(\"$@\"); echo \"${{out:-[]}}\"; }}
        if [ -e /run/netns/pod ]; then
            for o in '-d addr' '-4 route show table all' '-6 route show table all' '-4 rule' '-6 rule'; do json ip -n pod -j $o; done
            nsenter --net=/run/netns/pod sh -c 'cd /proc/sys/net; for f in {SYSCTLS}; do [ ! -e $f ] || echo \"$f=$(cat $f)\"; done' | tr '\\n' ' '; echo
        else
            echo null; echo null; echo null; echo null; echo null; echo
        fi
        json ip -j link
        find /var/lib/cni/networks -type f 2>/dev/null | sort | tr '\\n' ' '; echo"
    );
    let out = node.run("sh", &["-ec", &script]).map_err(|e| e.to_string())?;
    let lines: Vec<&str> = out.lines().collect();
    let [links, v4, v6, rules4, rules6, sysctls, host, files] = lines[..] else {
        return Err(format!("the state of a node in {} lines: {out}", lines.len()));
    };
    let read = |line: &str| serde_json::from_str::<Value>(line).map_err(|e| format!("{e}: {line}"));
    Ok(json!({
        "links": each(read(links)?, link),
        "routes": [each(read(v4)?, route), each(read(v6)?, route)],
        "rules": [read(rules4)?, read(rules6)?],
        "sysctls": sysctls.split_whitespace().filter_map(|s| s.split_once('=')).collect::<BTreeMap<_, _>>(),
        "host": each(read(host)?, host_link),
        "ipam": files.split_whitespace().collect::<Vec<_>>(),
    }))
}

/// Null stays null; what is left out goes, and the order is no matter.
fn each(list: Value, f: impl Fn(&Map<String, Value>) -> Option<Value>) -> Value {
    let Value::Array(list) = list else { return Value::Null };
    let mut out: Vec<Value> = list.iter().filter_map(Value::as_object).filter_map(f).collect();
    // By name first: a random hardware address must not decide.
    out.sort_by_key(|v| (v["ifname"].to_string(), v["dst"].to_string(), v.to_string()));
    Value::Array(out)
}

fn pick(o: &Map<String, Value>, keys: &[&str]) -> Map<String, Value> {
    keys.iter().filter_map(|k| Some(((*k).to_owned(), o.get(*k)?.clone()))).collect()
}

fn link(o: &Map<String, Value>) -> Option<Value> {
    // iproute2 of Debian 12 prints an empty object for what it leaves out.
    o.get("ifname")?;
    let mut out = pick(o, &["ifname", "flags", "mtu", "link", "link_type", "address", "linkinfo"]);
    if let Some(info) = out.get_mut("linkinfo").and_then(Value::as_object_mut) {
        *info = pick(info, &["info_kind", "info_data"]);
    }
    let addrs = each(o.get("addr_info").cloned().unwrap_or(json!([])), |a| {
        // Made by the kernel out of the hardware address.
        let own = a.get("local").and_then(Value::as_str).is_some_and(|l| l.starts_with("fe80:"));
        let kept = pick(a, &["family", "local", "prefixlen", "scope", "broadcast", "dadfailed"]);
        (!own && !kept.is_empty()).then_some(Value::Object(kept))
    });
    out.insert("addrs".to_owned(), addrs);
    Some(Value::Object(out))
}

fn route(o: &Map<String, Value>) -> Option<Value> {
    let dst = o.get("dst").and_then(Value::as_str)?;
    // What the kernel makes of addresses by itself, some of it only when they are no longer tentative.
    if dst.starts_with("fe80:") || dst.starts_with("ff00:") || o.get("table").is_some_and(|t| t == "local") {
        return None;
    }
    Some(Value::Object(pick(o, &["dst", "type", "gateway", "dev", "table", "scope", "metric", "prefsrc", "flags", "metrics"])))
}

/// Indices and the pairs' own addresses differ from run to run.
fn host_link(o: &Map<String, Value>) -> Option<Value> {
    Some(Value::Object(pick(o, &["ifname", "flags", "mtu", "master"]))).filter(|l| l["ifname"].is_string())
}

/// Whether ours did as theirs. Where ours is better on purpose in every case, that is taken out of both here, with the reason:
/// - `code`: 999 (theirs for nearly everything) tells a runtime nothing, ours has a code for the cause; and a text of ours
///   names field, value and rule.
/// - a hardware address nobody asked for is random with theirs, and made of the address with ours.
/// - `accept_ra` and `tentative` are not looked at: ours takes no addresses from routers on the wire beside those it was given,
///   and an address that an IPAM gave out is usable at once. Each has a case of its own.
/// - `arp_notify` and `ndisc_notify` are set for the family of an address; theirs sets both.
/// - in results, ours repeats the MTU it was asked for (1.1.0), and the next hop that a route was given by the gateway.
///
/// # Errors
/// The first difference.
pub fn same(vector: &Vector, theirs: &[Done], ours: &[Done]) -> Result<(), String> {
    if theirs.len() != ours.len() {
        return Err(format!("{} calls with theirs, {} with ours", theirs.len(), ours.len()));
    }
    let asked = vector.asks_for_mac();
    for (i, (t, o)) in theirs.iter().zip(ours).enumerate() {
        let at = |why: String| format!("call {i}: {why}");
        if t.exit != o.exit {
            return Err(at(format!("exit {} with theirs {}, {} with ours {}", t.exit, t.stdout, o.exit, o.stdout)));
        }
        if t.exit == 0 {
            let (t, o) = (result(&t.stdout, &t.stdout, asked), result(&o.stdout, &t.stdout, asked));
            equal("result", &t, &o).map_err(at)?;
        } else if t.stdout["code"] != o.stdout["code"] && t.stdout["code"] != 999 {
            return Err(at(format!("error {} with theirs, {} with ours", t.stdout, o.stdout)));
        }
        equal("state", &settled(&t.state, asked), &settled(&o.state, asked)).map_err(at)?;
    }
    Ok(())
}

fn equal(at: &str, theirs: &Value, ours: &Value) -> Result<(), String> {
    match (theirs, ours) {
        (Value::Object(t), Value::Object(o)) => {
            for key in t.keys().chain(o.keys()) {
                equal(&format!("{at}.{key}"), t.get(key).unwrap_or(&Value::Null), o.get(key).unwrap_or(&Value::Null))?;
            }
            Ok(())
        }
        (Value::Array(t), Value::Array(o)) if t.len() == o.len() => {
            t.iter().zip(o).enumerate().try_for_each(|(i, (t, o))| equal(&format!("{at}[{i}]"), t, o))
        }
        _ if theirs == ours => Ok(()),
        _ => Err(format!("{at}: {theirs} with theirs, {ours} with ours")),
    }
}

/// A result without what `same` says; `theirs` is the reference's.
fn result(printed: &Value, theirs: &Value, asked: bool) -> Value {
    let mut r = printed.clone();
    for (i, interface) in r["interfaces"].as_array_mut().into_iter().flatten().enumerate() {
        let Some(o) = interface.as_object_mut() else { continue };
        if !asked {
            o.remove("mac");
        }
        if theirs["interfaces"][i].get("mtu").is_none() {
            o.remove("mtu");
        }
    }
    for (i, route) in r["routes"].as_array_mut().into_iter().flatten().enumerate() {
        if theirs["routes"][i].get("gw").is_none()
            && let Some(o) = route.as_object_mut()
        {
            o.remove("gw");
        }
    }
    // Up to 0.4.0 an empty one may be there or not.
    if r["dns"].as_object().is_some_and(Map::is_empty)
        && let Some(o) = r.as_object_mut()
    {
        o.remove("dns");
    }
    r
}

/// A state without what `same` says.
fn settled(state: &Value, asked: bool) -> Value {
    let mut state = state.clone();
    let mut idle = Vec::new();
    for link in state["links"].as_array_mut().into_iter().flatten() {
        let has = |family: &str| link["addrs"].as_array().into_iter().flatten().any(|a| a["family"] == family);
        let name = link["ifname"].as_str().unwrap_or_default();
        if !has("inet") {
            idle.push(format!("ipv4/conf/{name}/arp_notify"));
        }
        if !has("inet6") {
            idle.push(format!("ipv6/conf/{name}/ndisc_notify"));
        }
        if !asked && let Some(o) = link.as_object_mut() {
            o.remove("address");
        }
    }
    if let Some(o) = state["sysctls"].as_object_mut() {
        o.retain(|key, _| !idle.contains(key));
    }
    state
}
