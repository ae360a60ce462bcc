//! `k8s.v1.cni.cncf.io/network-status`.

use cni::{AddResult, Dns};
use model::IfName;
use serde::Serialize;

/// One element. Keys and their order are those that Multus writes, for programs in pods read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkStatus {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    pub dns: DnsStatus,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DnsStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl From<&Dns> for DnsStatus {
    fn from(d: &Dns) -> Self {
        Self {
            nameservers: d.nameservers.clone(),
            domain: d.domain.clone(),
            search: d.search.clone(),
            options: d.options.clone(),
        }
    }
}

impl NetworkStatus {
    /// Of one network. `reference`: `namespace/name`, or the cluster network's name. `default`: the pod's first network.
    /// `gateway` are the next hops of default routes in the result.
    pub fn of(reference: &str, ifname: &IfName, result: &AddResult, default: bool) -> Self {
        let at = result.pod_interface(ifname.as_str());
        let ips = match at {
            Some((i, _)) => result.ips_of(i).collect::<Vec<_>>(),
            None => result.ips.iter().collect(),
        };
        Self {
            name: reference.to_owned(),
            interface: ifname.to_string(),
            ips: ips.iter().map(|ip| ip.address.ip().to_string()).collect(),
            mac: at.map(|(_, i)| i.mac.clone()).unwrap_or_default(),
            mtu: at.and_then(|(_, i)| i.mtu),
            default,
            dns: (&result.dns).into(),
            gateway: result
                .routes
                .iter()
                .filter(|r| r.dst.is_default())
                // A route without a next hop goes by the gateway of its family (what `ptp` means); Multus prints "<nil>".
                .filter_map(|r| {
                    r.gw.or_else(|| ips.iter().filter(|ip| ip.address.is_ipv4() == r.dst.is_ipv4()).find_map(|ip| ip.gateway))
                })
                .map(|g| g.to_string())
                .collect(),
        }
    }
}

/// The annotation's text: pretty, as people read it with kubectl.
pub fn annotation(list: &[NetworkStatus]) -> String {
    serde_json::to_string_pretty(list).expect("strings, numbers and lists always serialise")
}
