//! The coordinator's settings for one NIC, checked. Does not know which of NAD, SpiderCoordinator and annotation a value
//! comes from: whoever fills `RawSettings` lets the nearer one win.

use std::net::IpAddr;

use model::{Cidr, IfAddr};

use crate::Refusal;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Auto,
    Underlay,
    Overlay,
    /// Nothing is done.
    Disabled,
}

/// As written. None: the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawSettings {
    pub mode: Option<String>,
    pub tune_pod_routes: Option<bool>,
    /// `podDefaultRouteNIC`, or the annotation.
    pub default_route_nic: Option<String>,
    pub hijack_cidr: Vec<String>,
    /// The SpiderCoordinator's status.
    pub overlay_pod_cidr: Vec<String>,
    pub service_cidr: Vec<String>,
    /// (dst, gw)
    pub policy_routes: Vec<(String, String)>,
    pub pod_mac_prefix: Option<String>,
    pub pod_rp_filter: Option<i64>,
    pub tx_queue_len: Option<i64>,
    pub veth_link_address: Option<String>,
    pub veth_mtu: Option<i64>,
    pub host_rule_table: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub mode: Mode,
    pub tune_pod_routes: bool,
    pub default_route_nic: Option<String>,
    pub hijack: Vec<Cidr>,
    pub pod_cidrs: Vec<Cidr>,
    pub service_cidrs: Vec<Cidr>,
    pub policy_routes: Vec<(Cidr, IpAddr)>,
    pub mac_prefix: Option<[u8; 2]>,
    /// None leaves the kernel's value.
    pub rp_filter: Option<u8>,
    pub tx_queue_len: Option<u32>,
    pub veth_link_address: Option<IpAddr>,
    pub veth_mtu: u32,
    pub host_rule_table: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            tune_pod_routes: true,
            default_route_nic: None,
            hijack: Vec::new(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            policy_routes: Vec::new(),
            mac_prefix: None,
            rp_filter: Some(0),
            tx_queue_len: None,
            veth_link_address: None,
            veth_mtu: 1500,
            host_rule_table: 500,
        }
    }
}

/// A network, or an address that stands for its /32 or /128.
pub fn parse_cidr_or_ip(field: &str, text: &str) -> Result<Cidr, Refusal> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(Cidr::host(ip)),
        Err(_) => text.parse().map_err(|e: model::AddrError| Refusal::invalid(field, text, e.to_string())),
    }
}

impl Settings {
    pub fn parse(raw: &RawSettings) -> Result<Settings, Refusal> {
        let d = Settings::default();
        let mode = match raw.mode.as_deref() {
            None | Some("" | "auto") => Mode::Auto,
            Some("underlay") => Mode::Underlay,
            Some("overlay") => Mode::Overlay,
            Some("disabled") => Mode::Disabled,
            Some(other) => return Err(Refusal::invalid("mode", other, "must be auto, underlay, overlay or disabled")),
        };
        let nets = |field: &str, list: &[String]| {
            let one = |(i, s): (usize, &String)| parse_cidr_or_ip(&format!("{field}[{i}]"), s);
            list.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
        };
        let mut policy_routes = Vec::new();
        for (i, (dst, gw)) in raw.policy_routes.iter().enumerate() {
            let dst = parse_cidr_or_ip(&format!("policyRoutes[{i}].dst"), dst)?;
            let field = format!("policyRoutes[{i}].gw");
            let ip: IpAddr = gw.parse().map_err(|_| Refusal::invalid(&field, gw, "is not an IP address"))?;
            if ip.is_ipv4() != dst.is_ipv4() {
                return Err(Refusal::invalid(&field, gw, format!("is not of the family of dst {dst}")));
            }
            policy_routes.push((dst, ip));
        }
        let number = |field: &str, v: Option<i64>, min: i64, max: i64, default: u32| match v {
            None => Ok(default),
            Some(n) if (min..=max).contains(&n) => Ok(u32::try_from(n).expect("the bounds are not negative")),
            Some(n) => Err(Refusal::invalid(field, n, format!("must be {min} to {max}"))),
        };
        let rp_filter = match raw.pod_rp_filter {
            None => d.rp_filter,
            Some(n @ 0..=2) => Some(n as u8),
            Some(n) if n < 0 => None,
            Some(n) => return Err(Refusal::invalid("podRPFilter", n, "must be 0, 1 or 2, or negative to leave the kernel's value")),
        };
        let veth_link_address = match raw.veth_link_address.as_deref() {
            None | Some("") => None,
            Some(text) => {
                let bad = |why: String| Refusal::invalid("vethLinkAddress", text, why);
                let ip: IpAddr = text.parse().map_err(|_| bad("is not an IP address".to_owned()))?;
                IfAddr::new(ip, if ip.is_ipv4() { 32 } else { 128 }).map_err(|e| bad(e.to_string()))?;
                Some(ip)
            }
        };
        let host_rule_table = number("hostRuleTable", raw.host_rule_table, 1, i64::from(u32::MAX), d.host_rule_table)?;
        if (253..=255).contains(&host_rule_table) {
            return Err(Refusal::invalid("hostRuleTable", host_rule_table, "253 to 255 are the kernel's default, main and local tables"));
        }
        Ok(Settings {
            mode,
            tune_pod_routes: raw.tune_pod_routes.unwrap_or(d.tune_pod_routes),
            default_route_nic: raw.default_route_nic.clone().filter(|s| !s.is_empty()),
            hijack: nets("hijackCIDR", &raw.hijack_cidr)?,
            pod_cidrs: nets("overlayPodCIDR", &raw.overlay_pod_cidr)?,
            service_cidrs: nets("serviceCIDR", &raw.service_cidr)?,
            policy_routes,
            mac_prefix: raw.pod_mac_prefix.as_deref().filter(|s| !s.is_empty()).map(mac_prefix).transpose()?,
            rp_filter,
            // 0 is what the API's default says for "leave it".
            tx_queue_len: Some(number("txQueueLen", raw.tx_queue_len, 0, i64::from(i32::MAX), 0)?).filter(|n| *n > 0),
            veth_link_address,
            veth_mtu: number("vethMTU", raw.veth_mtu, 68, 65535, d.veth_mtu)?,
            host_rule_table,
        })
    }

    /// Everything that goes through the node, as written, without doubles.
    pub fn cluster(&self) -> Vec<Cidr> {
        let mut out: Vec<Cidr> = self.pod_cidrs.iter().chain(&self.service_cidrs).chain(&self.hijack).copied().collect();
        out.sort();
        out.dedup();
        out
    }
}

fn mac_prefix(text: &str) -> Result<[u8; 2], Refusal> {
    let bad = |why: &str| Refusal::invalid("podMACPrefix", text, why);
    let byte = |s: &str| (s.len() == 2 && s.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u8::from_str_radix(s, 16).ok()).flatten();
    let (a, b) = text.split_once(':').and_then(|(a, b)| Some((byte(a)?, byte(b)?))).ok_or_else(|| bad("must be two hexadecimal bytes joined by ':', e.g. \"0a:1b\""))?;
    if a & 1 == 1 {
        return Err(bad("the lowest bit of the first byte makes it a group address, an interface needs an individual one"));
    }
    Ok([a, b])
}
