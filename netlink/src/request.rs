//! What can be asked of the kernel, as values, and how each looks on the wire. Links are named by index where the kernel
//! wants one; who has only a name asks for the index first.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use model::observed::MacvlanMode;
use model::{IfAddr, IfName, MacAddr, Route, Rule, Scope};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// A link, by what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkRef {
    Name(IfName),
    Index(u32),
}

/// What is `Some` is set.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    pub up: Option<bool>,
    pub mac: Option<MacAddr>,
    pub mtu: Option<u32>,
    pub tx_queue_len: Option<u32>,
    /// The empty string takes the alias away.
    pub alias: Option<String>,
    /// Only together with `LinkRef::Index`: with a name the kernel takes the new one for the link's.
    pub rename: Option<IfName>,
    /// Moves it there.
    pub netns: Option<BorrowedFd<'a>>,
}

#[derive(Debug, Clone)]
pub enum Request<'a> {
    /// Sent in the namespace in which the link is to be. Before Linux 6.15 a link of that name where the parent is, is in its way
    /// too (EEXIST).
    AddMacvlan {
        name: IfName,
        /// Index of the parent, in the namespace that `parent_netns` names (`Socket::netns_id_of`), or else in this one.
        parent: u32,
        parent_netns: Option<i32>,
        mode: MacvlanMode,
        mac: Option<MacAddr>,
        mtu: Option<u32>,
        bc_queue_len: Option<u32>,
    },
    /// Sent in the namespace in which the end `name` is to be; the peer is born in `peer_netns`. Both are born down: the
    /// kernel refuses a peer that is to be up before it has its other end.
    AddVeth {
        name: IfName,
        mac: Option<MacAddr>,
        mtu: Option<u32>,
        peer: IfName,
        peer_mac: Option<MacAddr>,
        peer_netns: BorrowedFd<'a>,
    },
    DelLink(LinkRef),
    SetLink {
        link: LinkRef,
        change: LinkChange<'a>,
    },
    /// IPv4 gets the broadcast address of its network (RFC 919) below /31.
    AddAddr {
        index: u32,
        addr: IfAddr,
        nodad: bool,
        no_prefix_route: bool,
    },
    DelAddr {
        index: u32,
        addr: IfAddr,
    },
    /// Refused with EEXIST where the table has a route with the same destination and metric. `route.dev` is not looked at.
    AddRoute {
        index: u32,
        route: Route,
    },
    DelRoute {
        index: u32,
        route: Route,
    },
    AddRule(Rule),
    /// The kernel deletes the first rule that agrees in what is given; an absent selector agrees with everything.
    DelRule(Rule),
    /// Permanent; takes the place of a learnt one.
    AddNeighbour {
        index: u32,
        ip: IpAddr,
        mac: MacAddr,
    },
    DelNeighbour {
        index: u32,
        ip: IpAddr,
    },
}

impl Request<'_> {
    /// The message, and the flags besides `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(crate) fn message(&self) -> (RouteNetlinkMessage, u16) {
        use RouteNetlinkMessage as M;
        const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
        match self {
            Self::AddMacvlan { name, parent, parent_netns, mode, mac, mtu, bc_queue_len } => {
                let mut link = new_link(name, *mac, *mtu);
                link.attributes.push(LinkAttribute::Link(*parent));
                link.attributes.extend(parent_netns.map(LinkAttribute::LinkNetNsId));
                let mut data = vec![InfoMacVlan::Mode(macvlan_mode(*mode))];
                data.extend(bc_queue_len.map(InfoMacVlan::BcQueueLen));
                link.attributes.push(info(InfoKind::MacVlan, InfoData::MacVlan(data)));
                (M::NewLink(link), NEW)
            }
            Self::AddVeth { name, mac, mtu, peer, peer_mac, peer_netns } => {
                let mut far = with_one_queue(new_link(peer, *peer_mac, *mtu));
                far.attributes.push(LinkAttribute::NetNsFd(peer_netns.as_raw_fd()));
                let mut link = with_one_queue(new_link(name, *mac, *mtu));
                link.attributes.push(info(InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(far))));
                (M::NewLink(link), NEW)
            }
            Self::DelLink(link) => (M::DelLink(link_message(link)), 0),
            Self::SetLink { link, change } => (M::SetLink(set_link(link, change)), 0),
            Self::AddAddr { index, addr, nodad, no_prefix_route } => {
                (M::NewAddress(address(*index, *addr, *nodad, *no_prefix_route)), NEW)
            }
            Self::DelAddr { index, addr } => (M::DelAddress(address(*index, *addr, false, false)), 0),
            Self::AddRoute { index, route } => (M::NewRoute(route_message(*index, route, RouteProtocol::Static)), NEW),
            // No protocol: whoever made it, it is the one with this key.
            Self::DelRoute { index, route } => (M::DelRoute(route_message(*index, route, RouteProtocol::Unspec)), 0),
            Self::AddRule(rule) => (M::NewRule(rule_message(rule)), NEW),
            Self::DelRule(rule) => (M::DelRule(rule_message(rule)), 0),
            Self::AddNeighbour { index, ip, mac } => {
                let mut m = neighbour(*index, *ip);
                m.header.state = NeighbourState::Permanent;
                m.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
                (M::NewNeighbour(m), NLM_F_CREATE | NLM_F_REPLACE)
            }
            Self::DelNeighbour { index, ip } => (M::DelNeighbour(neighbour(*index, *ip)), 0),
        }
    }
}

pub(crate) fn family(ipv4: bool) -> AddressFamily {
    if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn macvlan_mode(mode: MacvlanMode) -> MacVlanMode {
    match mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    }
}

fn info(kind: InfoKind, data: InfoData) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])
}

fn new_link(name: &IfName, mac: Option<MacAddr>, mtu: Option<u32>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_string()));
    link.attributes.extend(mac.map(|m| LinkAttribute::Address(m.bytes().to_vec())));
    link.attributes.extend(mtu.map(LinkAttribute::Mtu));
    link
}

/// What a veth uses anyway until somebody asks for more. Unasked the kernel makes one for each processor and then takes all but
/// one back (`veth_init_queues` in drivers/net/veth.c), which waits for a grace period of RCU at each end.
fn with_one_queue(mut link: LinkMessage) -> LinkMessage {
    link.attributes.extend([LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]);
    link
}

fn link_message(link: &LinkRef) -> LinkMessage {
    let mut m = LinkMessage::default();
    match link {
        LinkRef::Name(name) => m.attributes.push(LinkAttribute::IfName(name.to_string())),
        LinkRef::Index(index) => m.header.index = *index,
    }
    m
}

/// linux/if_link.h
const IFLA_IFALIAS: u16 = 20;

fn set_link(link: &LinkRef, change: &LinkChange<'_>) -> LinkMessage {
    let mut m = link_message(link);
    if let Some(up) = change.up {
        m.header.change_mask = LinkFlags::Up;
        m.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    m.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.bytes().to_vec())));
    m.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    m.attributes.extend(change.tx_queue_len.map(LinkAttribute::TxQueueLen));
    // Without a terminating zero: the kernel takes the attribute's length for the alias's, and length 0 takes it away.
    m.attributes
        .extend(change.alias.as_ref().map(|a| LinkAttribute::Other(DefaultNla::new(IFLA_IFALIAS, a.as_bytes().to_vec()))));
    m.attributes.extend(change.rename.as_ref().map(|n| LinkAttribute::IfName(n.to_string())));
    m.attributes.extend(change.netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
    m
}

fn address(index: u32, addr: IfAddr, nodad: bool, no_prefix_route: bool) -> AddressMessage {
    let mut m = AddressMessage::default();
    m.header.family = family(addr.is_ipv4());
    m.header.prefix_len = addr.prefix_len();
    m.header.index = index;
    m.attributes.push(AddressAttribute::Local(addr.ip()));
    m.attributes.push(AddressAttribute::Address(addr.ip()));
    if let (IpAddr::V4(ip), ..=30) = (addr.ip(), addr.prefix_len()) {
        let hosts = u32::MAX.checked_shr(addr.prefix_len().into()).unwrap_or(0);
        m.attributes.push(AddressAttribute::Broadcast((ip.to_bits() | hosts).into()));
    }
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Nodad, nodad && !addr.is_ipv4());
    flags.set(AddressFlags::Noprefixroute, no_prefix_route);
    if !flags.is_empty() {
        // The header has room for the lower eight only, and the attribute, where there is one, replaces it.
        m.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits() as u8);
        m.attributes.push(AddressAttribute::Flags(flags));
    }
    m
}

fn route_message(index: u32, route: &Route, protocol: RouteProtocol) -> RouteMessage {
    let mut m = RouteMessage::default();
    m.header.address_family = family(route.dst.is_ipv4());
    m.header.destination_prefix_length = route.dst.prefix_len();
    m.header.protocol = protocol;
    m.header.kind = RouteType::Unicast;
    m.header.scope = match route.scope() {
        Scope::Universe => RouteScope::Universe,
        Scope::Link => RouteScope::Link,
    };
    match u8::try_from(route.table) {
        Ok(table) => m.header.table = table,
        // The header has eight bits for it.
        Err(_) => {
            m.header.table = RouteHeader::RT_TABLE_UNSPEC;
            m.attributes.push(RouteAttribute::Table(route.table));
        }
    }
    if route.onlink {
        m.header.flags = RouteFlags::Onlink;
    }
    if !route.dst.is_default() {
        m.attributes.push(RouteAttribute::Destination(route.dst.ip().into()));
    }
    if let Some(gw) = route.gw {
        m.attributes.push(match gw.is_ipv4() == route.dst.is_ipv4() {
            true => RouteAttribute::Gateway(gw.into()),
            // RFC 5549: an IPv4 destination by an IPv6 next hop.
            false => RouteAttribute::Via(RouteVia::from(gw)),
        });
    }
    m.attributes.push(RouteAttribute::Oif(index));
    m.attributes.extend(route.src.map(|s| RouteAttribute::PrefSource(s.into())));
    m.attributes.extend(route.metric.map(RouteAttribute::Priority));
    let metrics: Vec<_> = route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        m.attributes.push(RouteAttribute::Metrics(metrics));
    }
    m
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut m = RuleMessage::default();
    m.header.family = family(rule.ipv4);
    // Without an action the kernel takes the rule, and then every lookup that meets it fails with EINVAL.
    m.header.action = RuleAction::ToTable;
    match u8::try_from(rule.table) {
        Ok(table) => m.header.table = table,
        Err(_) => m.attributes.push(RuleAttribute::Table(rule.table)),
    }
    m.attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some(from) = rule.from {
        m.header.src_len = from.prefix_len();
        m.attributes.push(RuleAttribute::Source(from.ip()));
    }
    if let Some(to) = rule.to {
        m.header.dst_len = to.prefix_len();
        m.attributes.push(RuleAttribute::Destination(to.ip()));
    }
    m.attributes.extend(rule.iif.as_ref().map(|i| RuleAttribute::Iifname(i.to_string())));
    m.attributes.extend(rule.fwmark.map(RuleAttribute::FwMark));
    m
}

fn neighbour(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = family(ip.is_ipv4());
    m.header.ifindex = index;
    m.attributes.push(NeighbourAttribute::Destination(ip.into()));
    m
}
