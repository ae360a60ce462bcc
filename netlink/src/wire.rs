//! Reading what comes off a netlink socket: messages, acknowledgements, attributes. Attributes that are not known are
//! passed over: a newer kernel, or a kind of link that we never heard of, must not make a whole dump unreadable.

use std::net::IpAddr;

use netlink_packet_core::{NLA_TYPE_MASK, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use nix::errno::Errno;

use crate::{Error, KernelError};

/// One message off the socket.
#[derive(Debug)]
pub(crate) enum Answer<'a> {
    /// End of a request (`NLMSG_ERROR`) or of a dump (`NLMSG_DONE`).
    End(Result<(), KernelError>),
    Message {
        kind: u16,
        body: &'a [u8],
    },
}

#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub seq: u32,
    /// `NLM_F_DUMP_INTR`: the dump is inconsistent.
    pub interrupted: bool,
    pub answer: Answer<'a>,
}

/// The messages of one datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> Result<Vec<Received<'_>>, Error> {
    let mut out = Vec::new();
    while !datagram.is_empty() {
        let message =
            NetlinkBuffer::new_checked(datagram).map_err(|_| Error::Malformed("a message is shorter than its header says"))?;
        let body = message.payload();
        let answer = match message.message_type() {
            NLMSG_ERROR => Answer::End(verdict(body, message.flags(), 20)?),
            // A dump may end with a number as well, and then without the header of the request.
            NLMSG_DONE if body.is_empty() => Answer::End(Ok(())),
            NLMSG_DONE => Answer::End(verdict(body, message.flags(), 4)?),
            kind => Answer::Message { kind, body },
        };
        out.push(Received { seq: message.sequence_number(), interrupted: message.flags() & NLM_F_DUMP_INTR != 0, answer });
        let len = (message.length() as usize).next_multiple_of(4);
        datagram = datagram.get(len..).unwrap_or_default();
    }
    Ok(out)
}

/// `struct nlmsgerr`: the negative errno, and attributes that begin at `tlvs` because `NETLINK_CAP_ACK` keeps the
/// request's payload out.
fn verdict(body: &[u8], flags: u16, tlvs: usize) -> Result<Result<(), KernelError>, Error> {
    let code = i32_of(body).ok_or(Error::Malformed("an acknowledgement has no error number"))?;
    let text = (flags & NLM_F_ACK_TLVS != 0)
        .then(|| body.get(tlvs..))
        .flatten()
        .and_then(|tlvs| attributes(tlvs).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .and_then(|(_, text)| string_of(text));
    if code == 0 {
        if let Some(text) = text {
            tracing::debug!(text, "the kernel has a remark");
        }
        return Ok(Ok(()));
    }
    Ok(Err(KernelError { errno: Errno::from_raw(code.wrapping_neg()), text }))
}

const NLMSGERR_ATTR_MSG: u16 = 1;

/// (type, value) of each attribute, up to the first that is malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_of(bytes)?);
        let kind = u16_of(bytes.get(2..)?)? & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn u8_of(v: &[u8]) -> Option<u8> {
    v.first().copied()
}

pub(crate) fn u16_of(v: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(v.get(..2)?.try_into().ok()?))
}

pub(crate) fn u32_of(v: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(v.get(..4)?.try_into().ok()?))
}

pub(crate) fn i32_of(v: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(v.get(..4)?.try_into().ok()?))
}

/// Up to the terminating zero byte, if there is one.
pub(crate) fn string_of(v: &[u8]) -> Option<String> {
    let end = v.iter().position(|b| *b == 0).unwrap_or(v.len());
    Some(String::from_utf8_lossy(&v[..end]).into_owned())
}

pub(crate) fn ip_of(v: &[u8]) -> Option<IpAddr> {
    match v.len() {
        4 => Some(<[u8; 4]>::try_from(v).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(v).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut m = Vec::new();
        m.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        m.extend(kind.to_ne_bytes());
        m.extend(flags.to_ne_bytes());
        m.extend(7u32.to_ne_bytes());
        m.extend(0u32.to_ne_bytes());
        m.extend(body);
        m.resize(m.len().next_multiple_of(4), 0);
        m
    }

    fn refusal(tlvs: &[u8]) -> Vec<u8> {
        let mut body = (-101i32).to_ne_bytes().to_vec();
        body.extend([0; 16]);
        body.extend(tlvs);
        message(NLMSG_ERROR, NLM_F_ACK_TLVS, &body)
    }

    #[test]
    fn the_kernels_sentence_is_found() {
        let mut tlvs = vec![8, 0, 2, 0, 1, 2, 3, 4];
        tlvs.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        let datagram = refusal(&tlvs);
        let got = messages(&datagram).unwrap();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].seq, 7);
        match &got[0].answer {
            Answer::End(Err(k)) => {
                assert_eq!(k.errno, Errno::ENETUNREACH);
                assert_eq!(k.text.as_deref(), Some("no"));
                assert_eq!(k.to_string(), "Network is unreachable (ENETUNREACH): no");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn malformed_attributes_end_the_list_without_harm() {
        for tlvs in [&[0u8, 0, 1, 0][..], &[200, 0, 1, 0], &[3, 0], &[4, 0, 1, 0, 2, 0, 0, 0]] {
            let datagram = refusal(tlvs);
            let got = messages(&datagram).unwrap();
            assert!(
                matches!(&got[0].answer, Answer::End(Err(k)) if k.text.as_deref().unwrap_or_default().is_empty()),
                "{tlvs:?}"
            );
        }
    }

    #[test]
    fn a_cut_message_is_an_error() {
        let mut datagram = message(16, 0, &[1, 2, 3, 4]);
        datagram.truncate(18);
        assert!(matches!(messages(&datagram), Err(Error::Malformed(_))));
        assert!(matches!(messages(&[1, 2, 3]), Err(Error::Malformed(_))));
    }

    #[test]
    fn several_messages_of_a_datagram_are_told_apart() {
        let mut datagram = message(16, 2, &[1, 2, 3, 4, 5]);
        datagram.extend(message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, &[0, 0, 0, 0]));
        let got = messages(&datagram).unwrap();
        assert!(matches!(got[0].answer, Answer::Message { kind: 16, body: [1, 2, 3, 4, 5] }));
        assert!(got[1].interrupted);
        assert!(matches!(got[1].answer, Answer::End(Ok(()))));
    }
}
