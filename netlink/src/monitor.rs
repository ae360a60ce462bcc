//! "Something changed": the kernel's notifications about links, addresses and routes. It tells that, not what; whoever is
//! told looks again, so a lost notification costs nothing once the loss itself is told.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Error, Netns};

/// linux/rtnetlink.h, `enum rtnetlink_groups`
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// Readable when something changed. Never blocks but in `wait`.
#[derive(Debug)]
pub struct Monitor {
    socket: netlink_sys::Socket,
}

impl Monitor {
    /// Links, addresses and routes of the calling thread's namespace.
    pub fn open() -> Result<Self, Error> {
        Self::of(&[RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE])
    }

    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.enter(Self::open)?
    }

    /// Links only.
    pub(crate) fn links() -> Result<Self, Error> {
        Self::of(&[RTNLGRP_LINK])
    }

    fn of(groups: &[u32]) -> Result<Self, Error> {
        let open = |source| Error::Open { source };
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(open)?;
        socket.bind_auto().map_err(open)?;
        for group in groups {
            socket.add_membership(*group).map_err(open)?;
        }
        socket.set_non_blocking(true).map_err(open)?;
        Ok(Self { socket })
    }

    /// Reads away what has come, and says whether anything had.
    pub fn changed(&self) -> Result<bool, Error> {
        let mut changed = false;
        let mut datagram = Vec::with_capacity(8);
        loop {
            datagram.clear();
            // Contents do not matter; what does not fit is dropped.
            match self.socket.recv(&mut datagram, libc::MSG_TRUNC) {
                Ok(_) => changed = true,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Receive { source }),
            }
        }
    }

    /// True as soon as something changes, false when the time is over.
    pub fn wait(&self, until: Instant) -> Result<bool, Error> {
        while readable(&self.socket, until)? {
            if self.changed()? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Waits until there is something to read; false when the time is over.
pub(crate) fn readable(socket: &impl AsFd, until: Instant) -> Result<bool, Error> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, else it would spin through the last millisecond.
        let left_ms = left.saturating_add(Duration::from_micros(999)).as_millis();
        let timeout = PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::Receive { source: e.into() }),
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
