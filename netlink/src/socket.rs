//! One netlink socket: requests with their acknowledgements, batches, dumps. Knows how the protocol is spoken (RFC 3549,
//! Documentation/userspace-api/netlink/intro.rst), not what is asked.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::wire::{Answer, messages};
use crate::{BatchError, Errno, Error, Netns, Outcome, Request};

/// Acknowledgements wait in the receive buffer until the whole datagram was worked off; each is charged some 800 bytes
/// there, and the buffer has 208 KiB by default. Above that they are lost (ENOBUFS). 64 keeps far away from it.
const REQUESTS_PER_SEND: usize = 64;

/// The kernel answers inside `send`; only an answer lost to ENOBUFS would be waited for. So this never runs out unless
/// the answer is really lost.
const ANSWER_S_MAX: i64 = 5;

/// A dump goes on from `recv` to `recv` and is inconsistent when something changed in between. On a host with much
/// going on a few tries are normal.
const DUMP_TRIES: u32 = 8;

/// `nlmsg_seq` in `struct nlmsghdr` (linux/netlink.h).
const NLMSG_SEQ: std::ops::Range<usize> = 8..12;

/// The kernel builds dumps in datagrams of at most 32 KiB (`max_recvmsg_len` in af_netlink.c), and a single link without
/// its virtual functions is below 4 KiB.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

/// A `NETLINK_ROUTE` socket (or, inside this crate, one of another protocol) in the namespace where it was opened. Calls
/// from several threads take turns.
#[derive(Debug)]
pub struct Socket {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    socket: netlink_sys::Socket,
    seq: u32,
    /// What came last. It stays, for most calls receive several.
    datagram: Vec<u8>,
}

/// (message type, payload) of one answer.
pub(crate) type Message = (u16, Vec<u8>);

impl Socket {
    /// In the calling thread's namespace.
    pub fn open() -> Result<Self, Error> {
        Self::open_protocol(NETLINK_ROUTE)
    }

    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.enter(Self::open)?
    }

    pub(crate) fn open_protocol(protocol: isize) -> Result<Self, Error> {
        let open = |source| Error::Open { source };
        let mut socket = netlink_sys::Socket::new(protocol).map_err(open)?;
        socket.bind_auto().map_err(open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(open)?;
        // Sentences besides numbers, and no copy of the request in each refusal.
        socket.set_ext_ack(true).map_err(open)?;
        socket.set_cap_ack(true).map_err(open)?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_S_MAX)).map_err(|e| open(e.into()))?;
        Ok(Self { state: Mutex::new(State { socket, seq: 0, datagram: Vec::new() }) })
    }

    /// Carries the requests out in order, in as few datagrams as possible. The kernel does not stop at a refusal, so requests
    /// behind a refused one of the same datagram are tried too: whoever takes a failed batch back takes back what
    /// `BatchError::outcomes` says was done.
    pub fn batch(&self, requests: &[Request<'_>]) -> Result<(), BatchError> {
        let mut state = self.lock();
        let mut outcomes = vec![Outcome::NotTried; requests.len()];
        for (chunk, at) in requests.chunks(REQUESTS_PER_SEND).zip((0..).step_by(REQUESTS_PER_SEND)) {
            let seq = state.reserve(chunk.len());
            let mut datagram = Vec::new();
            for (request, seq) in chunk.iter().zip(seq..) {
                let (message, flags) = request.message();
                encode(message, flags | NLM_F_ACK, seq, &mut datagram);
            }
            let sent = &mut outcomes[at..at + chunk.len()];
            if let Err(broken) = state.settle(&datagram, seq, sent) {
                return Err(BatchError { outcomes, broken: Some(broken) });
            }
            if sent.iter().any(|o| *o != Outcome::Done) {
                return Err(BatchError { outcomes, broken: None });
            }
        }
        Ok(())
    }

    /// One request for which the kernel answers with messages of its own, none of them a dump.
    pub(crate) fn request<M: NetlinkSerializable>(&self, message: M, flags: u16) -> Result<Vec<Message>, Error> {
        let mut state = self.lock();
        let seq = state.reserve(1);
        let mut datagram = Vec::new();
        encode(message, flags | NLM_F_ACK, seq, &mut datagram);
        state.send(&datagram)?;
        let (answers, _) = state.collect(seq)?;
        Ok(answers)
    }

    /// Everything of a kind; begun again when it was inconsistent.
    pub(crate) fn dump(&self, message: RouteNetlinkMessage) -> Result<Vec<Message>, Error> {
        let mut state = self.lock();
        let mut datagram = Vec::new();
        encode(message, NLM_F_DUMP, 0, &mut datagram);
        for _ in 0..DUMP_TRIES {
            let seq = state.reserve(1);
            datagram[NLMSG_SEQ].copy_from_slice(&seq.to_ne_bytes());
            state.send(&datagram)?;
            match state.collect(seq) {
                Ok((answers, false)) => return Ok(answers),
                Ok((_, true)) => {}
                // What some dumps say instead of marking themselves inconsistent.
                Err(Error::Refused(k)) if k.errno == Errno::EINTR => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::Interrupted(DUMP_TRIES))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while it was held leaves at worst stale answers, which are told by their sequence numbers.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first of `n` sequence numbers in a row, none of them used before (up to the wrap).
    fn reserve(&mut self, n: usize) -> u32 {
        let n = u32::try_from(n).expect("at most REQUESTS_PER_SEND");
        // Zero marks what the kernel sends unasked.
        let first = if self.seq > u32::MAX - n { 1 } else { self.seq + 1 };
        self.seq = first + n - 1;
        first
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Error> {
        self.socket.send(datagram, 0).map(drop).map_err(|source| Error::Send { source })
    }

    /// Into `datagram`.
    fn receive(&mut self) -> Result<(), Error> {
        let datagram = &mut self.datagram;
        datagram.clear();
        datagram.reserve(DATAGRAM_BYTES_MAX);
        loop {
            return match self.socket.recv(datagram, nix::libc::MSG_TRUNC) {
                Ok(n) if n > datagram.len() => Err(Error::Malformed("a datagram is larger than any that the kernel should make")),
                Ok(_) => Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => Err(Error::Receive { source }),
            };
        }
    }

    /// Sends a batch and fills in what became of each request; the first has sequence number `first`.
    fn settle(&mut self, datagram: &[u8], first: u32, outcomes: &mut [Outcome]) -> Result<(), Error> {
        self.send(datagram)?;
        outcomes.fill(Outcome::Unknown);
        let mut open = outcomes.len();
        while open > 0 {
            self.receive()?;
            for received in messages(&self.datagram)? {
                let Answer::End(verdict) = received.answer else { continue };
                let Some(outcome) = received.seq.checked_sub(first).and_then(|i| outcomes.get_mut(i as usize)) else { continue };
                if *outcome == Outcome::Unknown {
                    *outcome = match verdict {
                        Ok(()) => Outcome::Done,
                        Err(k) => Outcome::Refused(k),
                    };
                    open -= 1;
                }
            }
        }
        Ok(())
    }

    /// The messages that answer `seq`, up to its end, and whether they were marked inconsistent.
    fn collect(&mut self, seq: u32) -> Result<(Vec<Message>, bool), Error> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            self.receive()?;
            for received in messages(&self.datagram)? {
                if received.seq != seq {
                    continue;
                }
                interrupted |= received.interrupted;
                match received.answer {
                    Answer::Message { kind, body } => answers.push((kind, body.to_vec())),
                    Answer::End(verdict) => return Ok(verdict.map(|()| (answers, interrupted))?),
                }
            }
        }
    }
}

fn encode<M: NetlinkSerializable>(message: M, flags: u16, seq: u32, datagram: &mut Vec<u8>) {
    let mut header = NetlinkHeader::default();
    header.flags = flags | NLM_F_REQUEST;
    header.sequence_number = seq;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let at = datagram.len();
    datagram.resize((at + message.buffer_len()).next_multiple_of(4), 0);
    message.serialize(&mut datagram[at..]);
}
