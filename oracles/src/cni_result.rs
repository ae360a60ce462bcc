//! Results of CNI plugins (`prevResult`, what a delegate prints) and lists of plugins: JSON in, the same JSON for each.

use cni::conf::NetConfList;
use cni::{AddResult, Error, NetConf, Version};
use cni_meta::NetworkStatus;
use model::IfName;
use serde_json::{Map, Value};

pub fn check(data: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(data) else { return };
    if let Ok(list) = NetConfList::from_value(json.clone()) {
        each_plugin(&list, &json);
    } else if let Err(e) = NetConfList::from_value(json.clone()) {
        let known = [Error::INCOMPATIBLE_VERSION, Error::DECODE_FAILURE, Error::INVALID_CONFIG];
        assert!(known.contains(&e.code) && !e.msg.is_empty(), "{e:?}");
    }
    match AddResult::from_value(&json) {
        Ok(result) => every_version(&result),
        Err(e) => {
            let key = e.field.split(['.', '[']).next().unwrap_or_default();
            assert!(["result", "interfaces", "ips", "routes", "dns"].contains(&key), "{e:?}");
            assert!(key == "result" || json.get(key).is_some(), "{e:?} names a key that is not there");
            assert!(!e.rule.is_empty() && !e.value.is_empty());
        }
    }
}

fn every_version(result: &AddResult) {
    for version in Version::ALL {
        let printed = result.to_value(version);
        assert_eq!(printed["cniVersion"], version.as_str());
        let again = AddResult::from_value(&printed).expect("what we print is a result");
        assert_eq!(again.to_value(version), printed, "{version}: printed once more");
        assert_eq!((&again.ips, &again.dns), (&result.ips, &result.dns), "{version}");
        assert_eq!(again.routes.len(), result.routes.len());
        if version == Version::V1_1_0 {
            assert_eq!(&again, result, "1.1.0 has room for everything");
        }
    }
    let name = IfName::new("eth0").expect("a short name");
    let status = NetworkStatus::of("a/b", &name, result, true);
    if let Some((at, interface)) = result.pod_interface("eth0") {
        assert_eq!(status.ips.len(), result.ips_of(at).count());
        assert_eq!(status.mac, interface.mac);
    }
    assert!(status.gateway.iter().chain(&status.ips).all(|ip| ip.parse::<std::net::IpAddr>().is_ok()));
}

fn each_plugin(list: &NetConfList, json: &Value) {
    let given = [("mac", "0a:00:00:00:00:01"), ("ips", "x")];
    let runtime = Map::from_iter(given.map(|(k, v)| (k.to_owned(), Value::from(v))));
    let prev = json.get("prevResult").and_then(|p| AddResult::from_value(p).ok());
    assert!(!list.plugins.is_empty() && !list.name.is_empty());
    for i in 0..list.plugins.len() {
        let conf = list.plugin_conf(i, prev.as_ref(), &runtime);
        assert_eq!((&conf["name"], &conf["cniVersion"]), (&list.name.as_str().into(), &list.version.as_str().into()));
        assert_eq!(conf["type"], list.kind(i));
        let given = conf.get("runtimeConfig").and_then(Value::as_object);
        // Only what the plugin has declared is given, and all of that.
        for (key, value) in &runtime {
            let declared = conf.get("capabilities").and_then(|c| c.get(key)) == Some(&Value::Bool(true));
            if declared {
                assert_eq!(given.and_then(|g| g.get(key)), Some(value));
                assert!(list.has_capability(key));
            }
        }
        if let (Some(prev), Value::Object(o)) = (&prev, &conf)
            && let Ok(parsed) = NetConf::parse(o.clone())
        {
            assert_eq!(parsed.prev_result.map(|p| p.to_value(list.version)), Some(prev.to_value(list.version)));
        }
    }
}
