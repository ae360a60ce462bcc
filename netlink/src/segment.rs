//! One interface as a way onto its segment: carrier, and frames as they are. Does not know what they say.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use model::observed::Link;
use model::{IfName, MacAddr};
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, recvfrom, sendto, socket,
};

use crate::monitor::readable;
use crate::{Errno, Error, Monitor, Socket};

/// Longer than any frame that `frame` reads; what is longer is cut.
const FRAME_BYTES_MAX: usize = 256;

/// Index and hardware address of `link`, which is `dev` as it was seen a moment ago in the calling thread's namespace, as soon as
/// it has carrier; none where it has none until `until`.
pub(crate) fn carrier(links: &Socket, mut link: Link, dev: &IfName, until: Instant) -> Result<Option<(u32, MacAddr)>, Error> {
    let has_carrier = |l: &Link| l.up && l.carrier;
    if !has_carrier(&link) {
        let look = || links.link(dev)?.ok_or_else(|| Error::NoLink(dev.to_string()));
        // Opened before the next look, so that no change falls between the two.
        let monitor = Monitor::links()?;
        link = look()?;
        while !has_carrier(&link) {
            if !monitor.wait(until)? {
                return Ok(None);
            }
            link = look()?;
        }
    }
    Ok(Some((link.index, link.mac.ok_or_else(|| Error::NotEthernet(dev.to_string()))?)))
}

/// A packet socket for one interface. Closing it waits for a grace period of RCU (`packet_release` in af_packet.c), 16 ms
/// mostly.
#[derive(Debug)]
pub(crate) struct Segment {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Segment {
    /// Hears nothing: without a protocol the kernel gives the socket no frame.
    pub fn to_tell(index: u32) -> Result<Self, Error> {
        Self::open(index, None)
    }

    pub fn to_listen(index: u32) -> Result<Self, Error> {
        Self::open(index, Some(SockProtocol::EthAll))
    }

    fn open(index: u32, protocol: Option<SockProtocol>) -> Result<Self, Error> {
        let failed = |e: Errno| Error::OpenPacket { source: e.into() };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol).map_err(failed)?;
        // The C library's list has each link's `sockaddr_ll`, which takes unsafe code to make.
        let mut links = getifaddrs().map_err(failed)?.filter_map(|i| i.address?.as_link_addr().copied());
        let link = links.find(|l| u32::try_from(l.ifindex()).is_ok_and(|i| i == index)).ok_or_else(|| failed(Errno::ENODEV))?;
        debug_assert_eq!(link.family(), Some(AddressFamily::Packet));
        Ok(Self { socket, link })
    }

    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        match sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty()) {
            // A full queue is a frame that was lost, as others are on the wire.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN) => Ok(()),
            Err(e) => Err(Error::SendFrame { source: e.into() }),
        }
    }

    /// Frames that came in by the interface, each to `heard`, until that is content or the time is over.
    pub fn listen<T>(&self, until: Instant, mut heard: impl FnMut(&[u8]) -> Option<T>) -> Result<Option<T>, Error> {
        let mut buf = [0; FRAME_BYTES_MAX];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buf) {
                Ok((n, from)) => {
                    let ours = |f: LinkAddr| f.ifindex() == self.link.ifindex() && f.pkttype() != libc::PACKET_OUTGOING;
                    if from.is_some_and(ours)
                        && let Some(found) = heard(&buf[..n])
                    {
                        return Ok(Some(found));
                    }
                    // A segment that is never silent must not hold us up.
                    if Instant::now() >= until {
                        return Ok(None);
                    }
                }
                Err(Errno::EAGAIN) => {
                    if !readable(&self.socket, until)? {
                        return Ok(None);
                    }
                }
                // Told once, when another interface of the namespace goes down.
                Err(Errno::ENETDOWN | Errno::EINTR) => {}
                Err(e) => return Err(Error::Receive { source: e.into() }),
            }
        }
    }
}
