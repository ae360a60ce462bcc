//! Names, hardware addresses and sizes of links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::serde_as_str;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("interface name {0:?} is empty")]
    NameEmpty(String),
    #[error("interface name {0:?} has {len} bytes, at most 15 are allowed", len = .0.len())]
    NameTooLong(String),
    #[error("interface name {0:?} must not be \".\" or \"..\" nor contain '/', ':', white space or a control character")]
    NameChars(String),
    #[error("hardware address {0:?} is not six hexadecimal bytes joined by ':' (or '-')")]
    MacSyntax(String),
    #[error("hardware address {0} is a group address, an interface needs an individual one")]
    MacGroup(MacAddr),
    #[error("hardware address {0} is all zero")]
    MacZero(MacAddr),
    #[error("mtu {0} is outside 68 to 65535")]
    Mtu(u64),
}

/// A network interface's name: 1 to 15 bytes, as `dev_valid_name` in the kernel's net/core/dev.c accepts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    pub fn new(name: impl Into<String>) -> Result<Self, LinkError> {
        let name = name.into();
        if name.is_empty() {
            return Err(LinkError::NameEmpty(name));
        }
        if name.len() > 15 {
            return Err(LinkError::NameTooLong(name));
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name == "." || name == ".." || name.contains(bad) {
            return Err(LinkError::NameChars(name));
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IfName {
    type Err = LinkError;
    fn from_str(s: &str) -> Result<Self, LinkError> {
        Self::new(s)
    }
}

impl AsRef<str> for IfName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

serde_as_str!(IfName);

/// An Open vSwitch bridge's name. It is also the name of the bridge's local port, hence an interface name.
pub type BridgeName = IfName;

/// A 48-bit hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address an interface may have: individual (bit 0 of the first byte clear) and not all zero.
    pub fn unicast(self) -> Result<Self, LinkError> {
        if self.0 == [0; 6] {
            return Err(LinkError::MacZero(self));
        }
        if self.0[0] & 1 == 1 {
            return Err(LinkError::MacGroup(self));
        }
        Ok(self)
    }

    /// The default for a NIC that has an address: `0a:58` and the four bytes of the IPv4 address (what ovs-cni does),
    /// or for IPv6 four bytes of FNV-1a over the address. The same address always has the same MAC, so neighbours
    /// that cached it stay right when the pod is made again; two addresses of one segment never share one in IPv4.
    pub fn from_ip(ip: IpAddr) -> Self {
        let tail = match ip {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => fnv1a(&v6.octets()).to_be_bytes(),
        };
        Self::with_prefix([0x0a, 0x58], tail)
    }

    /// Two given bytes and the last four of the address (`podMACPrefix` of a SpiderCoordinator).
    pub fn from_prefix_and_ip(prefix: [u8; 2], ip: IpAddr) -> Self {
        let tail = match ip {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => {
                let o = v6.octets();
                Ipv4Addr::new(o[12], o[13], o[14], o[15]).octets()
            }
        };
        Self::with_prefix(prefix, tail)
    }

    fn with_prefix(p: [u8; 2], t: [u8; 4]) -> Self {
        Self([p[0], p[1], t[0], t[1], t[2], t[3]])
    }
}

/// FNV-1a, 32 bit.
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = LinkError;
    fn from_str(s: &str) -> Result<Self, LinkError> {
        let bad = || LinkError::MacSyntax(s.to_owned());
        let sep = if s.contains('-') { '-' } else { ':' };
        let mut bytes = [0u8; 6];
        let mut parts = s.split(sep);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

serde_as_str!(MacAddr);

/// A link's MTU in bytes: 68 (the least IPv4 needs, RFC 791) to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Mtu(u32);

impl Mtu {
    pub fn new(bytes: u64) -> Result<Self, LinkError> {
        match u32::try_from(bytes) {
            Ok(n) if (68..=65535).contains(&n) => Ok(Self(n)),
            _ => Err(LinkError::Mtu(bytes)),
        }
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Mtu {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Mtu::new(u64::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "a", "veth-0123456789", "br.1", "ens192"] {
            assert_eq!(IfName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "abcdefghijklmnop", "a\n"] {
            assert!(IfName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            IfName::new("abcdefghijklmnop").unwrap_err().to_string(),
            "interface name \"abcdefghijklmnop\" has 16 bytes, at most 15 are allowed"
        );
    }

    #[test]
    fn mac_addresses_parse_strictly() {
        assert_eq!("0A:58:0a:06:d4:ca".parse::<MacAddr>().unwrap().to_string(), "0a:58:0a:06:d4:ca");
        assert_eq!("0a-58-0a-06-d4-ca".parse::<MacAddr>().unwrap().to_string(), "0a:58:0a:06:d4:ca");
        for bad in ["", "0a:58", "0a:58:0a:06:d4:ca:00", "0a:58:0a:06:d4:g1", "+a:58:0a:06:d4:ca", "a:58:0a:06:d4:ca"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
        assert!("01:00:5e:00:00:01".parse::<MacAddr>().unwrap().unicast().is_err());
        assert!("00:00:00:00:00:00".parse::<MacAddr>().unwrap().unicast().is_err());
    }

    #[test]
    fn mac_is_derived_from_the_address() {
        assert_eq!(MacAddr::from_ip("10.6.212.202".parse().unwrap()).to_string(), "0a:58:0a:06:d4:ca");
        let v6 = MacAddr::from_ip("fd00:10:6::1:10".parse().unwrap());
        assert_eq!(v6, MacAddr::from_ip("fd00:10:6::1:10".parse().unwrap()));
        assert_ne!(v6, MacAddr::from_ip("fd00:10:6::1:11".parse().unwrap()));
        assert!(v6.unicast().is_ok());
    }

    #[test]
    fn mtu_has_bounds() {
        assert!(Mtu::new(67).is_err());
        assert!(Mtu::new(65536).is_err());
        assert!(Mtu::new(u64::MAX).is_err());
        assert_eq!(Mtu::new(1500).unwrap().get(), 1500);
    }
}
