//! Addresses, routes and rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

use crate::link::IfName;
use crate::serde_as_str;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    #[error("{0:?} is not an IP network in the form address/prefix-length")]
    Syntax(String),
    #[error("{0} has host bits set, the network is {1}")]
    HostBits(String, String),
    #[error("{0:?} is not an IP address")]
    Ip(String),
    #[error("{0} is not usable as an interface's address: it is {1}")]
    Unusable(String, &'static str),
}

/// Splits `a/n` without the leniencies of the parsers: the prefix length must be there, decimal, without leading zeros.
fn split(s: &str) -> Result<(IpAddr, u8), AddrError> {
    let bad = || AddrError::Syntax(s.to_owned());
    let (ip, len) = s.split_once('/').ok_or_else(bad)?;
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) || (len.len() > 1 && len.starts_with('0')) {
        return Err(bad());
    }
    let len: u8 = len.parse().map_err(|_| bad())?;
    if len > width(ip) {
        return Err(bad());
    }
    Ok((ip, len))
}

const fn width(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A network: no host bits set. `10.6.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNetwork);

impl Cidr {
    pub fn new(ip: IpAddr, prefix_len: u8) -> Result<Self, AddrError> {
        let n = IpNetwork::new(ip, prefix_len).map_err(|_| AddrError::Syntax(format!("{ip}/{prefix_len}")))?;
        if n.network() != ip {
            return Err(AddrError::HostBits(n.to_string(), format!("{}/{prefix_len}", n.network())));
        }
        Ok(Self(n))
    }

    /// The network that an address of this length lies in.
    pub fn containing(ip: IpAddr, prefix_len: u8) -> Result<Self, AddrError> {
        let n = IpNetwork::new(ip, prefix_len).map_err(|_| AddrError::Syntax(format!("{ip}/{prefix_len}")))?;
        Self::new(n.network(), prefix_len)
    }

    /// `/32` or `/128` of one address.
    pub fn host(ip: IpAddr) -> Self {
        Self(IpNetwork::from(ip))
    }

    pub fn default_v4() -> Self {
        Self::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).expect("0.0.0.0/0 is a network")
    }

    pub fn default_v6() -> Self {
        Self::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0).expect("::/0 is a network")
    }

    pub fn default_for(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::default_v4() } else { Self::default_v6() }
    }

    pub fn is_default(&self) -> bool {
        self.0.prefix() == 0
    }

    pub fn ip(&self) -> IpAddr {
        self.0.network()
    }

    pub fn prefix_len(&self) -> u8 {
        self.0.prefix()
    }

    pub fn is_ipv4(&self) -> bool {
        self.0.is_ipv4()
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(ip)
    }

    pub fn contains_net(&self, other: &Cidr) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.prefix_len() <= other.prefix_len() && self.contains(other.ip())
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains_net(other) || other.contains_net(self)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.network(), self.0.prefix())
    }
}

impl FromStr for Cidr {
    type Err = AddrError;
    fn from_str(s: &str) -> Result<Self, AddrError> {
        let (ip, len) = split(s)?;
        Self::new(ip, len)
    }
}

serde_as_str!(Cidr);

/// An address in its network, as an interface has it: `10.6.212.202/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfAddr {
    ip: IpAddr,
    prefix_len: u8,
}

impl IfAddr {
    pub fn new(ip: IpAddr, prefix_len: u8) -> Result<Self, AddrError> {
        let unusable = |why| Err(AddrError::Unusable(format!("{ip}/{prefix_len}"), why));
        if prefix_len > width(ip) {
            return Err(AddrError::Syntax(format!("{ip}/{prefix_len}")));
        }
        if ip.is_unspecified() {
            return unusable("the unspecified address");
        }
        if ip.is_multicast() {
            return unusable("a multicast address");
        }
        if let IpAddr::V4(v4) = ip
            && v4.is_broadcast()
        {
            return unusable("the broadcast address");
        }
        Ok(Self { ip, prefix_len })
    }

    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    pub fn is_ipv4(&self) -> bool {
        self.ip.is_ipv4()
    }

    pub fn network(&self) -> Cidr {
        Cidr::containing(self.ip, self.prefix_len).expect("the length was checked when it was made")
    }
}

impl fmt::Display for IfAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

impl FromStr for IfAddr {
    type Err = AddrError;
    fn from_str(s: &str) -> Result<Self, AddrError> {
        let (ip, len) = split(s)?;
        Self::new(ip, len)
    }
}

serde_as_str!(IfAddr);

/// `enum rt_scope_t` of linux/rtnetlink.h, the two that a route to elsewhere can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Universe,
    Link,
}

/// Main table, `RT_TABLE_MAIN`.
pub const TABLE_MAIN: u32 = 254;

/// A unicast route, by name of its interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Route {
    pub dst: Cidr,
    /// Next hop; none means that the destination is on the link.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gw: Option<IpAddr>,
    pub dev: IfName,
    /// Preferred source address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub src: Option<IpAddr>,
    /// Table number; 254 is main.
    pub table: u32,
    /// Priority; none leaves it to the kernel (0 for IPv4, 1024 for IPv6).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub metric: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub advmss: Option<u32>,
    /// Next hop is on the link although no address of the interface says so (`RTNH_F_ONLINK`).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub onlink: bool,
}

impl Route {
    /// In the main table, nothing else set.
    pub fn new(dst: Cidr, gw: Option<IpAddr>, dev: IfName) -> Self {
        Self { dst, gw, dev, src: None, table: TABLE_MAIN, metric: None, mtu: None, advmss: None, onlink: false }
    }

    pub fn scope(&self) -> Scope {
        if self.gw.is_some() { Scope::Universe } else { Scope::Link }
    }

    pub fn in_table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dst.is_default() {
            write!(f, "default")?;
        } else {
            write!(f, "{}", self.dst)?;
        }
        if let Some(gw) = self.gw {
            write!(f, " via {gw}")?;
        }
        write!(f, " dev {}", self.dev)?;
        if let Some(src) = self.src {
            write!(f, " src {src}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        if let Some(m) = self.metric {
            write!(f, " metric {m}")?;
        }
        if self.onlink {
            write!(f, " onlink")?;
        }
        Ok(())
    }
}

/// A policy rule that looks a table up (`FR_ACT_TO_TBL`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Rule {
    /// Preference: lower goes first.
    pub priority: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<Cidr>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<Cidr>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub iif: Option<IfName>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fwmark: Option<u32>,
    pub table: u32,
    /// The family, needed where neither `from` nor `to` tells it.
    pub ipv4: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match &self.from {
            Some(c) if c.prefix_len() == if c.is_ipv4() { 32 } else { 128 } => write!(f, "{}", c.ip())?,
            Some(c) => write!(f, "{c}")?,
            None => write!(f, "all")?,
        }
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(m) = self.fwmark {
            write!(f, " fwmark {m:#x}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_no_host_bits() {
        assert_eq!("10.6.0.0/16".parse::<Cidr>().unwrap().to_string(), "10.6.0.0/16");
        assert_eq!(
            "10.6.0.1/16".parse::<Cidr>().unwrap_err().to_string(),
            "10.6.0.1/16 has host bits set, the network is 10.6.0.0/16"
        );
        for bad in [
            "10.6.0.0",
            "010.0.0.0/8",
            "10.6.0.0/255.255.0.0",
            "10.6.0.0/33",
            "10.6.0.0/",
            "10.6.0.0/016",
            "fd00::/129",
            "10.6/16",
            "",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_interface_address_keeps_its_host_bits() {
        let a: IfAddr = "10.6.212.202/16".parse().unwrap();
        assert_eq!(a.to_string(), "10.6.212.202/16");
        assert_eq!(a.network().to_string(), "10.6.0.0/16");
        for bad in ["0.0.0.0/0", "224.0.0.1/4", "255.255.255.255/32", "ff02::1/128", "::/64"] {
            assert!(bad.parse::<IfAddr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn overlap_is_containment_either_way() {
        let c = |s: &str| s.parse::<Cidr>().unwrap();
        assert!(c("10.0.0.0/8").overlaps(&c("10.6.0.0/16")));
        assert!(c("10.6.0.0/16").overlaps(&c("10.0.0.0/8")));
        assert!(!c("10.6.0.0/16").overlaps(&c("10.7.0.0/16")));
        assert!(!c("0.0.0.0/0").overlaps(&c("::/0")));
    }

    #[test]
    fn routes_and_rules_print_as_iproute2_does() {
        let r = Route::new(Cidr::default_v4(), Some("10.6.0.1".parse().unwrap()), IfName::new("net1").unwrap()).in_table(101);
        assert_eq!(r.to_string(), "default via 10.6.0.1 dev net1 table 101");
        let rule = Rule {
            priority: 32765,
            from: Some(Cidr::host("10.6.1.10".parse().unwrap())),
            to: None,
            iif: None,
            fwmark: None,
            table: 101,
            ipv4: true,
        };
        assert_eq!(rule.to_string(), "32765: from 10.6.1.10 lookup 101");
    }
}
