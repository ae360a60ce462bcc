//! What a node should have: bridges with their uplinks, checked.

use crate::{BridgeName, IfName, MacAddr, Mtu, Trunks};
use std::net::IpAddr;

/// All bridges that one node should have, and those it should give up.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodeDesired {
    pub bridges: Vec<BridgeDesired>,
    /// Bridges that no longer select this node.
    pub removed: Vec<BridgeRemoved>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BridgeDesired {
    pub name: BridgeName,
    /// None: a bridge without an uplink, for pods of one node.
    pub uplink: Option<Uplink>,
    /// What the uplink port may carry; empty means all (`Port.trunks` is left empty).
    pub allowed_vlans: Trunks,
    pub mtu: Option<Mtu>,
    pub fail_mode: FailMode,
    pub mcast_snooping: bool,
    /// `other_config:hwaddr`.
    pub hwaddr: Option<MacAddr>,
    /// None: `system` where the switch offers it, else `netdev`.
    pub datapath_type: Option<DatapathType>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BridgeRemoved {
    pub name: BridgeName,
    pub deletion_policy: DeletionPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum Uplink {
    /// By name or by one of the kernel's alternative names.
    Interface(String),
    Mac(MacAddr),
    /// The NIC of the IPv4 default route with the lowest metric, else of the IPv6 one.
    DefaultRoute,
    /// The NIC by which the kernel would send to this address.
    CanReach(IpAddr),
    Bond(Bond),
}

/// A bond made by Open vSwitch: one port with several interfaces.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Bond {
    pub name: IfName,
    pub interfaces: Vec<IfName>,
    pub mode: BondMode,
    pub lacp: Lacp,
    /// Milliseconds.
    pub updelay_ms: u32,
    pub downdelay_ms: u32,
}

macro_rules! words {
    ($(#[$m:meta])* $t:ident { $($v:ident = $s:literal),+ $(,)? } default $d:ident) => {
        $(#[$m])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $t { $(#[serde(rename = $s)] $v),+ }
        impl $t {
            pub const fn as_str(self) -> &'static str { match self { $($t::$v => $s),+ } }
        }
        impl Default for $t { fn default() -> Self { $t::$d } }
        impl std::fmt::Display for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

words!(
    /// `Port.bond_mode`.
    BondMode { ActiveBackup = "active-backup", BalanceSlb = "balance-slb", BalanceTcp = "balance-tcp" } default ActiveBackup
);
words!(
    /// `Port.lacp`.
    Lacp { Off = "off", Active = "active", Passive = "passive" } default Off
);
words!(
    /// `Bridge.fail_mode`.
    FailMode { Standalone = "standalone", Secure = "secure" } default Standalone
);
words!(
    /// `Bridge.datapath_type`.
    DatapathType { System = "system", Netdev = "netdev" } default System
);
words!(
    /// What is done with a bridge that is no longer wanted: take our additions back, or leave it as it is.
    DeletionPolicy { Revert = "revert", Orphan = "orphan" } default Revert
);
