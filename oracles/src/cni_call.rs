//! A CNI call: lines `KEY=VALUE` of the environment, an empty line, standard input, and after a byte 0 the flat file of
//! cni-ovs. What is accepted survives the agent's socket; what is refused says which key.

use std::collections::BTreeMap;

use cni::request::RawCall;
use cni::wire::{self, Call, ToAgent};
use cni::{Error, NetConf, Request, Verb};
use serde_json::Value;

use crate::json::alike;

pub fn check(data: &[u8]) {
    let (env, rest) = split(data, b"\n\n");
    let (stdin, flat) = split(rest, b"\0");
    let env: BTreeMap<String, String> = String::from_utf8_lossy(env)
        .lines()
        .filter_map(|l| l.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let get = |key: &str| env.get(key).cloned();
    let _ = cni::version::reply(stdin);
    match Request::from_env(&get, stdin) {
        Err(e) => refused(&e, stdin),
        Ok(request) => accepted(&request, &RawCall::from_env(&get), stdin, std::str::from_utf8(flat).ok()),
    }
}

/// What is before the first such mark, and what is after it.
fn split<'a>(data: &'a [u8], mark: &[u8]) -> (&'a [u8], &'a [u8]) {
    match data.windows(mark.len()).position(|w| w == mark) {
        Some(at) => (&data[..at], &data[at + mark.len()..]),
        None => (data, &[]),
    }
}

fn refused(e: &Error, stdin: &[u8]) {
    let known = [Error::INCOMPATIBLE_VERSION, Error::INVALID_ENV, Error::DECODE_FAILURE, Error::INVALID_CONFIG];
    assert!(known.contains(&e.code) && !e.msg.is_empty(), "{e:?}");
    let printed = e.to_value(&cni::request::version_text(stdin)).to_string();
    assert_eq!(Error::from_stdout(&printed).as_ref(), Some(e), "a printed error is read as another");
    // Which of the five strings, or which key of the configuration.
    let named = match e.code {
        Error::INVALID_ENV => e.msg.contains("CNI_"),
        Error::INCOMPATIBLE_VERSION => e.msg.contains("version"),
        // A key that stands there, or one that is missing.
        _ => {
            let keys = serde_json::from_slice::<serde_json::Map<String, Value>>(stdin).unwrap_or_default();
            keys.keys().any(|k| !k.is_empty() && e.msg.starts_with(k.as_str()))
                || ["network configuration", "missing network name", "prevResult is missing"].iter().any(|w| e.msg.contains(w))
        }
    };
    assert!(named, "{e:?} does not say what is wrong");
}

fn accepted(request: &Request, raw: &RawCall, stdin: &[u8], flat: Option<&str>) {
    if request.verb == Verb::Version {
        return;
    }
    let conf = Value::Object(request.conf.raw().clone());
    assert_eq!(NetConf::parse(request.conf.raw().clone()).as_ref(), Ok(&request.conf));
    let read: Value = serde_json::from_slice(stdin).expect("it was read a moment ago");
    assert_eq!(conf, read, "the configuration is kept as it came");

    let call = Call::new(raw, request, String::new());
    let frame = wire::encode(&ToAgent::Call(call)).expect("a call fits into a frame");
    let len = wire::body_len([frame[0], frame[1], frame[2], frame[3]]).expect("the frame says its own length");
    assert_eq!(len, frame.len() - 4);
    let ToAgent::Call(back) = wire::decode(&frame[4..]).expect("what was encoded") else {
        panic!("a call became something else")
    };
    let again = back.request().expect("the agent accepts what its client accepted");
    assert!(alike(&Value::Object(again.conf.raw().clone()), &conf));
    assert_eq!(
        (&again.container_id, &again.netns, &again.ifname, &again.args),
        (&request.container_id, &request.netns, &request.ifname, &request.args)
    );

    let flat = flat.filter(|f| !f.is_empty());
    plugins(request, flat);
}

/// Both main plugins: they take it, or refuse it by a key that is there.
fn plugins(request: &Request, flat: Option<&str>) {
    let mac = cni::args::wanted_mac(&request.conf, &request.args);
    if let Err(e) = &mac {
        assert!(e.msg.to_ascii_lowercase().contains("mac"), "{e:?}");
    }
    if let Ok(Some(mac)) = mac {
        assert!(mac.unicast().is_ok());
    }
    let macvlan = cni_macvlan::Conf::parse(request);
    let ovs = cni_ovs::Conf::parse(request, flat);
    if request.verb == Verb::Del {
        assert!(macvlan.is_ok() && ovs.is_ok(), "DEL is never refused");
    }
    if let Err(r) = &macvlan {
        named(r, &["master", "mode", "mtu", "bcqueuelen", "linkInContainer"], request.conf.raw());
    }
    if let Ok(c) = &macvlan {
        assert!(c.mtu.is_none_or(|m| m.get() >= 68));
    }
    let flat: Option<serde_json::Map<String, Value>> = flat.and_then(|f| serde_json::from_str(f).ok());
    if let Err(r) = &ovs {
        // A missing bridge is refused, and so is a flat file that is no JSON object.
        let absent = ["bridge", "configuration_path"].contains(&r.field.as_str());
        let mut keys = request.conf.raw().clone();
        keys.extend(flat.unwrap_or_default());
        if !absent {
            let known = [
                "bridge",
                "vlan",
                "vlan_mode",
                "trunk",
                "mtu",
                "deviceID",
                "ofport_request",
                "interface_type",
                "socket_file",
                "args",
                "link_state_check_retries",
                "link_state_check_interval",
            ];
            named(r, &known, &keys);
        }
    }
    if let Ok(c) = &ovs {
        assert!(c.ofport_request.is_none_or(|p| (1..=65279).contains(&p)));
        assert!(c.socket_file.as_ref().is_none_or(|s| s.starts_with('/')));
        let (tag, trunks) = c.vlans.columns();
        assert!(tag.is_none_or(|t| t.get() < 4095));
        // The short form has no word for "all", nor for priority-tagged frames.
        if trunks.iter().all(|t| t.get() != 0) && !trunks.is_empty() {
            assert_eq!(trunks.to_string().parse(), Ok(trunks), "trunks that are not read as they are written");
        }
    }
}

fn named(r: &planner::Refusal, known: &[&str], keys: &serde_json::Map<String, Value>) {
    let key = r.field.split(['.', '[']).next().unwrap_or_default();
    assert!(known.contains(&key), "{r:?} names no key of the plugin");
    assert!(keys.contains_key(key), "{r:?} names a key that is not there");
    assert!(!r.rule.is_empty());
}
