//! Cuts a byte stream into JSON objects and appends encoded ones to it. RFC 7047 puts no separator and no length between
//! messages (section 4), so the end of an object is found by counting. Knows nothing of what the objects say.

use std::io;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio_util::codec::{Decoder, Encoder};

/// Default limit of one message. The first update of 10,000 ports takes 5 MB; ten times that is not a switch any more.
pub const MAX_MESSAGE_LEN: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a message is longer than the limit of {max} bytes")]
    TooLong { max: usize },
    #[error("a message starts with byte {byte:#04x}, not with an object")]
    NotAnObject { byte: u8 },
    #[error("a bracket is closed that was never opened")]
    Unbalanced,
    #[error("the stream ended within a message, after {len} bytes of it")]
    Truncated { len: usize },
    #[error("failed to encode a message")]
    Encode(#[source] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Resumable framer: what was looked at is not looked at again when more bytes arrive, so n bytes cost O(n) however
/// they are split.
#[derive(Debug)]
pub struct JsonCodec {
    max_len: usize,
    /// How much of the buffer was looked at; everything before it belongs to the message under way.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escape: bool,
}

impl JsonCodec {
    pub fn new(max_len: usize) -> Self {
        JsonCodec { max_len, scanned: 0, depth: 0, in_string: false, escape: false }
    }

    /// Goes on from `scanned`; the length of the message when its last brace was found.
    fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, CodecError> {
        while let Some(&byte) = buffer.get(self.scanned) {
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.escape => self.escape = false,
                    b'\\' => self.escape = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.checked_sub(1).ok_or(CodecError::Unbalanced)?;
                    if self.depth == 0 {
                        return Ok(Some(self.scanned));
                    }
                }
                b'"' => self.in_string = true,
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Default for JsonCodec {
    fn default() -> Self {
        JsonCodec::new(MAX_MESSAGE_LEN)
    }
}

impl Decoder for JsonCodec {
    type Item = Bytes;
    type Error = CodecError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        if self.depth == 0 {
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            drop(buffer.split_to(blank));
            match buffer.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(&byte) => return Err(CodecError::NotAnObject { byte }),
            }
        }
        let end = self.scan(buffer)?;
        // Checked after the scan too: a whole message may have come in one read.
        if end.unwrap_or(self.scanned) > self.max_len {
            return Err(CodecError::TooLong { max: self.max_len });
        }
        Ok(end.map(|end| {
            self.scanned = 0;
            buffer.split_to(end).freeze()
        }))
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        match self.decode(buffer)? {
            Some(message) => Ok(Some(message)),
            None if buffer.is_empty() => Ok(None),
            None => Err(CodecError::Truncated { len: buffer.len() }),
        }
    }
}

impl<T: Serialize> Encoder<T> for JsonCodec {
    type Error = CodecError;

    /// Appends one whole message or nothing.
    fn encode(&mut self, message: T, buffer: &mut BytesMut) -> Result<(), CodecError> {
        let text = serde_json::to_vec(&message).map_err(CodecError::Encode)?;
        if text.len() > self.max_len {
            return Err(CodecError::TooLong { max: self.max_len });
        }
        buffer.extend_from_slice(&text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn decode_in(pieces: &[&[u8]], max_len: usize) -> Result<Vec<Bytes>, CodecError> {
        let mut codec = JsonCodec::new(max_len);
        let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(message) = codec.decode(&mut buffer)? {
                found.push(message);
            }
        }
        while let Some(message) = codec.decode_eof(&mut buffer)? {
            found.push(message);
        }
        Ok(found)
    }

    const TRICKY: &[&str] = &[
        r#"{"a":"\"}]{["}"#,
        r#"{"a":"\\","b":[[],{}]}"#,
        r#"{"a":"\\\"{"}"#,
        "{}",
        r#"{"é}":["漢","\u007d"]}"#,
        r#"{"error":null,"id":"echo","result":["\\\\"]}"#,
    ];

    #[test]
    fn every_split_position_gives_the_same_messages() {
        let stream = TRICKY.join("");
        let stream = stream.as_bytes();
        for at in 0..=stream.len() {
            let found = decode_in(&[&stream[..at], &stream[at..]], 1 << 20).unwrap();
            assert_eq!(found, TRICKY, "split at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(decode_in(&bytes, 1 << 20).unwrap(), TRICKY);
    }

    #[test]
    fn white_space_between_messages_is_skipped() {
        assert_eq!(decode_in(&[b" \n{}\r\n\t{} \n"], 100).unwrap(), ["{}", "{}"]);
    }

    #[test]
    fn message_above_the_limit_is_refused_before_it_is_whole() {
        let text = format!("{{\"a\":\"{}\"}}", "x".repeat(92));
        assert_eq!(text.len(), 100);
        assert_eq!(decode_in(&[text.as_bytes()], 100).unwrap().len(), 1);
        assert!(matches!(decode_in(&[text.as_bytes()], 99), Err(CodecError::TooLong { max: 99 })));
        assert!(matches!(decode_in(&[&text.as_bytes()[..99]], 98), Err(CodecError::TooLong { max: 98 })));
    }

    #[test]
    fn small_messages_in_one_read_are_each_measured_alone() {
        let stream = "{}".repeat(100);
        assert_eq!(decode_in(&[stream.as_bytes()], 2).unwrap().len(), 100);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["[1]", "null", "x", "}"] {
            assert!(matches!(decode_in(&[text.as_bytes()], 100), Err(CodecError::NotAnObject { .. })), "{text}");
        }
    }

    #[test]
    fn stream_ending_within_a_message_is_an_error() {
        assert!(matches!(decode_in(&[b"{}{\"a\":"], 100), Err(CodecError::Truncated { len: 5 })));
    }

    #[test]
    fn encoder_refuses_what_the_peer_would_not_take() {
        let mut buffer = BytesMut::new();
        let mut codec = JsonCodec::new(10);
        assert!(matches!(codec.encode(json!({"a": "0123456789"}), &mut buffer), Err(CodecError::TooLong { max: 10 })));
        assert!(buffer.is_empty());
        codec.encode(json!({}), &mut buffer).unwrap();
        assert_eq!(&buffer[..], b"{}");
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            r#"[\\"{}\[\]a-zé]{0,12}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(r#"[\\"{}a-z]{0,6}"#, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_stream_of_objects_in_any_pieces_comes_out_whole(
            bodies in proptest::collection::vec(json(), 1..5),
            cuts in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let messages: Vec<Value> = bodies.into_iter().map(|body| json!({"params": body})).collect();
            let mut stream = BytesMut::new();
            for message in &messages {
                JsonCodec::default().encode(message, &mut stream).unwrap();
            }
            let (mut pieces, mut rest, mut cuts) = (Vec::new(), &stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            let found: Vec<Value> = decode_in(&pieces, 1 << 20).unwrap().iter().map(|text| serde_json::from_slice(text).unwrap()).collect();
            prop_assert_eq!(found, messages);
        }

        #[test]
        fn garbage_never_panics(bytes in any::<Vec<u8>>()) {
            let _ = decode_in(&[&bytes], 64);
        }
    }
}
