//! Transmit checksum offload, over ethtool's generic netlink family (Documentation/networking/ethtool-netlink.rst). Not by
//! ioctl: that would need `unsafe`, and does not say what it left undone.
//!
//! Why anyone would turn it off: a veth's sender leaves checksums to be completed by hardware further on, and Open
//! vSwitch's userspace datapath passes such frames on as they are. Ping then works and TCP does not.

use std::sync::OnceLock;

use netlink_packet_core::NetlinkSerializable;
use netlink_sys::protocols::NETLINK_GENERIC;

use model::IfName;

use crate::wire::{attributes, string_of, u16_of};
use crate::{Errno, Error, Netns, Socket};

/// What `ethtool -K DEV tx` covers of what a pod's veth can offload (`netdev_features_strings` in net/ethtool/common.c).
const FEATURES: [&str; 3] = ["tx-checksum-ipv4", "tx-checksum-ip-generic", "tx-checksum-ipv6"];

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
// linux/ethtool_netlink.h
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// Turns it on or off, looks whether it is, and says whether it was not so before. Segmentation offload, which needs
/// it, follows by itself.
pub fn set_tx_checksum(netns: Option<&Netns>, dev: &IfName, on: bool) -> Result<bool, Error> {
    let open = || Socket::open_protocol(NETLINK_GENERIC);
    let socket = match netns {
        Some(n) => n.enter(open)??,
        None => open()?,
    };
    let family = ethtool_family(&socket)?;
    let header = nested(ETHTOOL_A_FEATURES_HEADER, &attr(ETHTOOL_A_HEADER_DEV_NAME, &zero_terminated(dev.as_str())));
    if is_on(&socket, family, &header)? == on {
        return Ok(false);
    }
    let bits: Vec<u8> = FEATURES
        .iter()
        .flat_map(|name| {
            let mut bit = attr(ETHTOOL_A_BITSET_BIT_NAME, &zero_terminated(name));
            if on {
                bit.extend(attr(ETHTOOL_A_BITSET_BIT_VALUE, &[]));
            }
            nested(ETHTOOL_A_BITSET_BITS_BIT, &bit)
        })
        .collect();
    let wanted = nested(ETHTOOL_A_FEATURES_WANTED, &nested(ETHTOOL_A_BITSET_BITS, &bits));
    socket.request(Generic { family, command: ETHTOOL_MSG_FEATURES_SET, attrs: [&header[..], &wanted].concat() }, 0)?;
    // The kernel takes a wish that the device then does not follow.
    match is_on(&socket, family, &header)? == on {
        true => Ok(true),
        false => Err(Error::ChecksumUnchanged { dev: dev.to_string(), asked_on: on }),
    }
}

/// Whether any of them is active.
fn is_on(socket: &Socket, family: u16, header: &[u8]) -> Result<bool, Error> {
    let answers = socket.request(Generic { family, command: ETHTOOL_MSG_FEATURES_GET, attrs: header.to_vec() }, 0)?;
    let active = answers
        .iter()
        .find_map(|(_, body)| find(body.get(4..)?, ETHTOOL_A_FEATURES_ACTIVE))
        .ok_or(Error::Malformed("the features of a link lack the active ones"))?;
    Ok(find(active, ETHTOOL_A_BITSET_BITS)
        .into_iter()
        .flat_map(attributes)
        .filter_map(|(_, bit)| find(bit, ETHTOOL_A_BITSET_BIT_NAME).and_then(string_of))
        .any(|name| FEATURES.contains(&name.as_str())))
}

/// Whether the kernel has a generic netlink family, loading the module that offers it where there is one.
pub fn has_family(name: &str) -> Result<bool, Error> {
    match family(&Socket::open_protocol(NETLINK_GENERIC)?, name) {
        Ok(_) => Ok(true),
        Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The kernel gives the number when it starts, one for all namespaces.
fn ethtool_family(socket: &Socket) -> Result<u16, Error> {
    static FAMILY: OnceLock<u16> = OnceLock::new();
    match FAMILY.get() {
        Some(known) => Ok(*known),
        None => family(socket, "ethtool").map(|asked| *FAMILY.get_or_init(|| asked)),
    }
}

fn family(socket: &Socket, name: &str) -> Result<u16, Error> {
    let attrs = attr(CTRL_ATTR_FAMILY_NAME, &zero_terminated(name));
    let answers = socket.request(Generic { family: GENL_ID_CTRL, command: CTRL_CMD_GETFAMILY, attrs }, 0)?;
    answers
        .iter()
        .find_map(|(_, body)| find(body.get(4..)?, CTRL_ATTR_FAMILY_ID))
        .and_then(u16_of)
        .ok_or(Error::Malformed("a generic netlink family has no number"))
}

/// `struct genlmsghdr` and attributes.
struct Generic {
    family: u16,
    command: u8,
    attrs: Vec<u8>,
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        4 + self.attrs.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..4].copy_from_slice(&[self.command, 1, 0, 0]);
        buffer[4..].copy_from_slice(&self.attrs);
    }
}

fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).expect("a few names");
    let mut out = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attr(kind | netlink_packet_core::NLA_F_NESTED, value)
}

fn zero_terminated(s: &str) -> Vec<u8> {
    [s.as_bytes(), b"\0"].concat()
}

fn find(attrs: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(attrs).find(|(kind, _)| *kind == wanted).map(|(_, v)| v)
}
