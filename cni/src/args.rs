//! `CNI_ARGS`, and the many ways to ask for a hardware address.

use std::collections::BTreeMap;

use model::{MacAddr, PodRef};
use serde_json::Value;

use crate::{Error, NetConf};

/// Keys that we, the runtimes or the IPAM plugins we execute know; any other needs `IgnoreUnknown`.
pub const KNOWN: [&str; 10] = [
    "IgnoreUnknown",
    "MAC",
    "OvnPort",
    "IP",
    "GATEWAY",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_INFRA_CONTAINER_ID",
    "K8S_POD_UID",
    "SUBNET",
];

/// `K=V;K=V`, parsed. A later key replaces an earlier one of the same name, as in libcni.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs(BTreeMap<String, String>);

impl CniArgs {
    /// Error code 4 for a pair without exactly one `=` and for an unknown key without a true `IgnoreUnknown`.
    pub fn parse(raw: &str) -> Result<Self, Error> {
        let mut map = BTreeMap::new();
        for pair in raw.split(';').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some((k, v)) if !k.is_empty() && !v.contains('=') => map.insert(k.to_owned(), v.to_owned()),
                _ => return Err(Error::env(format!("CNI_ARGS: invalid pair {pair:?}, expected KEY=VALUE"))),
            };
        }
        let ignore = match map.get("IgnoreUnknown").map(String::as_str) {
            None => false,
            // What Go's text unmarshalling of this field takes.
            Some("1") => true,
            Some("0") => false,
            Some(v) if v.eq_ignore_ascii_case("true") => true,
            Some(v) if v.eq_ignore_ascii_case("false") => false,
            Some(v) => return Err(Error::env(format!("CNI_ARGS: IgnoreUnknown {v:?} is neither 0, 1, true nor false"))),
        };
        if !ignore {
            let unknown: Vec<_> = map.keys().filter(|k| !KNOWN.contains(&k.as_str())).map(String::as_str).collect();
            if !unknown.is_empty() {
                return Err(Error::env(format!("CNI_ARGS: unknown keys {} and IgnoreUnknown is not set", unknown.join(", "))));
            }
        }
        Ok(Self(map))
    }

    /// Empty values count as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// The pod, where a kubelet's runtime called.
    pub fn pod(&self) -> Option<PodRef> {
        Some(PodRef {
            namespace: self.get("K8S_POD_NAMESPACE")?.to_owned(),
            name: self.get("K8S_POD_NAME")?.to_owned(),
            uid: self.get("K8S_POD_UID").unwrap_or_default().to_owned(),
        })
    }
}

/// The hardware address that was asked for. From weakest to strongest: `mac` of the configuration, `MAC` of `CNI_ARGS`,
/// `args.cni.mac` (in any case, as ovs-cni has it), `runtimeConfig.mac`. Each is checked, also where a stronger one wins.
pub fn wanted_mac(conf: &NetConf, args: &CniArgs) -> Result<Option<MacAddr>, Error> {
    let mut wanted = None;
    let mut take = |field: &str, value: Option<String>, code: u32| -> Result<(), Error> {
        if let Some(v) = value.filter(|v| !v.is_empty()) {
            let mac = v.parse::<MacAddr>().and_then(MacAddr::unicast).map_err(|e| Error::new(code, format!("{field}: {e}")))?;
            wanted = Some(mac);
        }
        Ok(())
    };
    take("mac", text(conf.raw().get("mac"), "mac")?, Error::INVALID_CONFIG)?;
    take("CNI_ARGS MAC", args.get("MAC").map(str::to_owned), Error::INVALID_ENV)?;
    take("args.cni.mac", text(conf.args_cni("mac"), "args.cni.mac")?, Error::INVALID_CONFIG)?;
    take("runtimeConfig.mac", text(conf.runtime("mac"), "runtimeConfig.mac")?, Error::INVALID_CONFIG)?;
    Ok(wanted)
}

fn text(v: Option<&Value>, field: &str) -> Result<Option<String>, Error> {
    match v {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(v) => Err(Error::config(format!("{field} {v}: must be a string"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBELET: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1";

    #[test]
    fn kubelet_arguments_name_the_pod() {
        let pod = CniArgs::parse(KUBELET).unwrap().pod().unwrap();
        assert_eq!((pod.to_string().as_str(), pod.uid.as_str()), ("default/a", "u1"));
        assert_eq!(CniArgs::parse("").unwrap().pod(), None);
        assert_eq!(CniArgs::parse("K8S_POD_NAME=a").unwrap().pod(), None);
    }

    #[test]
    fn unknown_keys_need_ignore_unknown() {
        assert!(CniArgs::parse("IgnoreUnknown=true;FOO=BAR").is_ok());
        let e = CniArgs::parse("FOO=BAR").unwrap_err();
        assert_eq!((e.code, e.msg.as_str()), (4, "CNI_ARGS: unknown keys FOO and IgnoreUnknown is not set"));
        assert_eq!(CniArgs::parse("IgnoreUnknown=0;FOO=BAR").unwrap_err().code, 4);
    }

    #[test]
    fn malformed_pairs_are_refused() {
        for bad in ["FOO", "=x", "A=b=c", "MAC"] {
            assert_eq!(CniArgs::parse(bad).unwrap_err().code, 4, "{bad}");
        }
        assert_eq!(
            CniArgs::parse("IgnoreUnknown=maybe").unwrap_err().msg,
            "CNI_ARGS: IgnoreUnknown \"maybe\" is neither 0, 1, true nor false"
        );
        // A trailing separator is common.
        assert!(CniArgs::parse("MAC=0a:00:00:00:00:01;").is_ok());
    }

    fn mac(conf: &str, args: &str) -> Result<Option<String>, Error> {
        let conf = NetConf::parse(serde_json::from_str(conf).unwrap())?;
        Ok(wanted_mac(&conf, &CniArgs::parse(args)?)?.map(|m| m.to_string()))
    }

    #[test]
    fn the_strongest_way_to_ask_for_a_mac_wins() {
        let base = r#""cniVersion":"1.0.0","name":"n","type":"t""#;
        let m = |rest: &str, args: &str| mac(&format!("{{{base}{rest}}}"), args).unwrap();
        assert_eq!(m("", ""), None);
        assert_eq!(m(r#","mac":"""#, ""), None);
        assert_eq!(m(r#","mac":"0a:00:00:00:00:01""#, "").unwrap(), "0a:00:00:00:00:01");
        assert_eq!(m(r#","mac":"0a:00:00:00:00:01""#, "MAC=0a:00:00:00:00:02").unwrap(), "0a:00:00:00:00:02");
        let args_cni = r#","args":{"cni":{"Mac":"0a:00:00:00:00:03"}}"#;
        assert_eq!(m(args_cni, "MAC=0a:00:00:00:00:02").unwrap(), "0a:00:00:00:00:03");
        let runtime = format!(r#"{args_cni},"runtimeConfig":{{"mac":"0a:00:00:00:00:04"}}"#);
        assert_eq!(m(&runtime, "MAC=0a:00:00:00:00:02").unwrap(), "0a:00:00:00:00:04");
    }

    #[test]
    fn a_wrong_mac_is_refused_where_it_stands() {
        let conf = |rest: &str| format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"t",{rest}}}"#);
        let e = mac(&conf(r#""runtimeConfig":{"mac":"x"}"#), "").unwrap_err();
        assert_eq!(
            (e.code, e.msg.as_str()),
            (7, "runtimeConfig.mac: hardware address \"x\" is not six hexadecimal bytes joined by ':' (or '-')")
        );
        let e = mac(&conf(r#""mac":"01:00:5e:00:00:01""#), "").unwrap_err();
        assert_eq!(e.msg, "mac: hardware address 01:00:5e:00:00:01 is a group address, an interface needs an individual one");
        let e = mac(&conf(r#""mac":5"#), "").unwrap_err();
        assert_eq!(e.msg, "mac 5: must be a string");
        assert_eq!(mac(&conf(r#""x":1"#), "MAC=zz").unwrap_err().code, 4);
    }
}
