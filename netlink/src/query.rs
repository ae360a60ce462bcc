//! Questions to the kernel: one link, all of a namespace, the way to an address.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use model::observed::{Addr, Link, NetnsState};
use model::{Cidr, IfName, Route, Rule};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage as Ask;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;

use crate::read::{self, Names};
use crate::request::family;
use crate::wire::{attributes, i32_of, ip_of, u32_of};
use crate::{Errno, Error, Socket};

/// By which link and next hop the kernel would send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteLookup {
    pub link: u32,
    pub gw: Option<IpAddr>,
    /// The source address it would choose.
    pub src: Option<IpAddr>,
}

const IFLA_ALT_IFNAME: u16 = 53;
/// linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNSID: u16 = 88;
/// linux/net_namespace.h
const NETNSA_NSID: u16 = 1;

impl Socket {
    /// By its name, or by an alternative one: the kernel tells no difference. So the answer's name may be another.
    pub fn link(&self, name: &IfName) -> Result<Option<Link>, Error> {
        self.link_named(name.as_str())
    }

    /// The same for alternative names, which may have up to 127 bytes.
    pub fn link_named(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut ask = LinkMessage::default();
        ask.attributes.push(match name.len() {
            ..=15 => LinkAttribute::IfName(name.to_owned()),
            _ => LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), b"\0"].concat())),
        });
        self.one_link(ask)
    }

    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut ask = LinkMessage::default();
        ask.header.index = index;
        self.one_link(ask)
    }

    fn one_link(&self, mut ask: LinkMessage) -> Result<Option<Link>, Error> {
        // Counters are most of the answer, and nobody here reads them.
        ask.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.request(Ask::GetLink(ask), 0) {
            Ok(answers) => Ok(answers.iter().find_map(|(_, body)| read::link(body))),
            Err(Error::Refused(k)) if k.errno == Errno::ENODEV => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let mut ask = LinkMessage::default();
        ask.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        Ok(self.dump(Ask::GetLink(ask))?.iter().filter_map(|(_, body)| read::link(body)).collect())
    }

    /// Everything that `NetnsState` has a word for. Five dumps one after the other: what changes in between may be in one
    /// and not in another; addresses and routes of a link that is not in `links` are left out.
    pub fn state(&self) -> Result<NetnsState, Error> {
        let links = self.links()?;
        let names = names(&links);
        let addrs = self.dump(Ask::GetAddress(AddressMessage::default()))?;
        let routes = self.routes(&names)?;
        let neighbours = self.dump(Ask::GetNeighbour(NeighbourMessage::default()))?;
        Ok(NetnsState {
            links,
            addrs: addrs.iter().filter_map(|(_, body)| read::addr(body, &names)).collect(),
            routes,
            rules: self.rules()?,
            neighbours: neighbours.iter().filter_map(|(_, body)| read::neighbour(body, &names)).collect(),
        })
    }

    /// All links, and the routes by them.
    pub fn links_and_routes(&self) -> Result<NetnsState, Error> {
        let links = self.links()?;
        let routes = self.routes(&names(&links))?;
        Ok(NetnsState { links, routes, ..NetnsState::default() })
    }

    fn routes(&self, names: &Names) -> Result<Vec<Route>, Error> {
        let routes = self.dump(Ask::GetRoute(RouteMessage::default()))?;
        Ok(routes.iter().filter_map(|(_, body)| read::routes(body, names)).flatten().collect())
    }

    /// Of both families.
    pub fn addresses_of(&self, link: &Link) -> Result<Vec<Addr>, Error> {
        let names: Names = [(link.index, link.name.clone())].into();
        // The kernel's own filter by link is a matter of versions; a namespace that this is used in has a few addresses.
        let all = self.dump(Ask::GetAddress(AddressMessage::default()))?;
        Ok(all.iter().filter_map(|(_, body)| read::addr(body, &names)).collect())
    }

    /// Of both families, without those that `Rule` has no words for.
    pub fn rules(&self) -> Result<Vec<Rule>, Error> {
        let mut out = Vec::new();
        for ipv4 in [true, false] {
            let mut ask = RuleMessage::default();
            ask.header.family = family(ipv4);
            match self.dump(Ask::GetRule(ask)) {
                Ok(rules) => out.extend(rules.iter().filter_map(|(_, body)| read::rule(body))),
                // A kernel without IPv6, or booted with ipv6.disable=1.
                Err(Error::Refused(k)) if !ipv4 && matches!(k.errno, Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// None where there is no way.
    pub fn route_get(&self, to: IpAddr) -> Result<Option<RouteLookup>, Error> {
        let host = Cidr::host(to);
        let mut ask = RouteMessage::default();
        ask.header.address_family = family(to.is_ipv4());
        ask.header.destination_prefix_length = host.prefix_len();
        ask.attributes.push(RouteAttribute::Destination(to.into()));
        let answers = match self.request(Ask::GetRoute(ask), 0) {
            Ok(answers) => answers,
            Err(Error::Refused(k)) if matches!(k.errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let Some((_, body)) = answers.iter().find(|(kind, _)| *kind == RTM_NEWROUTE) else { return Ok(None) };
        let attr = |wanted: u16| attributes(body.get(12..).unwrap_or_default()).find(|(k, _)| *k == wanted).map(|(_, v)| v);
        let Some(link) = attr(4).and_then(u32_of) else { return Ok(None) };
        let via = || attr(18).and_then(|v| v.get(2..)).and_then(ip_of);
        Ok(Some(RouteLookup { link, gw: attr(5).and_then(ip_of).or_else(via), src: attr(7).and_then(ip_of) }))
    }

    /// The number by which this socket's namespace knows the other one; given to it now if it had none. (The kernel
    /// itself gives one as soon as a link here has its parent or peer there.)
    pub fn netns_id_of(&self, other: impl AsFd) -> Result<i32, Error> {
        let fd = other.as_fd().as_raw_fd().cast_unsigned();
        let ask = |id: Option<i32>| {
            let mut m = NsidMessage::default();
            m.attributes.push(NsidAttribute::Fd(fd));
            m.attributes.extend(id.map(NsidAttribute::Id));
            m
        };
        // -1: the kernel chooses. Refused with EEXIST where there is one already.
        match self.request(Ask::NewNsId(ask(Some(-1))), 0) {
            Ok(_) => {}
            Err(Error::Refused(k)) if k.errno == Errno::EEXIST => {}
            Err(e) => return Err(e),
        }
        let answers = self.request(Ask::GetNsId(ask(None)), 0)?;
        answers
            .iter()
            .filter(|(kind, _)| *kind == RTM_NEWNSID)
            // `struct rtgenmsg` is one byte, aligned to four.
            .flat_map(|(_, body)| attributes(body.get(4..).unwrap_or_default()))
            .find(|(k, _)| *k == NETNSA_NSID)
            .and_then(|(_, v)| i32_of(v))
            .filter(|id| *id >= 0)
            .ok_or(Error::Malformed("a namespace has no number although it was just given one"))
    }
}

fn names(links: &[Link]) -> Names {
    links.iter().map(|l| (l.index, l.name.clone())).collect()
}
