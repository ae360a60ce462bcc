//! The OVSDB decoder: the first byte says in which pieces the rest arrives.

use bytes::{Bytes, BytesMut};
use ovsdb::codec::{CodecError, JsonCodec};
use ovsdb::{Atom, Schema, Value};
use serde_json::Value as Json;
use tokio_util::codec::{Decoder, Encoder};

use crate::json::{alike, near};

/// Small, so that the limit is met.
const MAX: usize = 2048;

pub fn check(data: &[u8]) {
    let Some((step, stream)) = data.split_first() else { return };
    let (whole, end) = decode(&[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*step) % 61 + 1).collect();
    let (split, split_end) = decode(&pieces);
    assert_eq!(whole, split, "the messages depend on the pieces they come in");
    let kind = |e: &Option<CodecError>| e.as_ref().map(std::mem::discriminant);
    assert_eq!(kind(&end), kind(&split_end), "the error depends on the pieces: {end:?}, {split_end:?}");

    // An independent reader of concatenated JSON finds the same objects, as far as it gets.
    let mut theirs = serde_json::Deserializer::from_slice(stream).into_iter::<Json>();
    let mut at = 0;
    for message in &whole {
        assert!(message.len() <= MAX && message.first() == Some(&b'{'));
        match theirs.next() {
            Some(Ok(value)) => {
                let text = stream[at..theirs.byte_offset()].trim_ascii_start();
                assert_eq!(text, &message[..], "cut elsewhere than serde_json does");
                at = theirs.byte_offset();
                whole_message(&value);
            }
            // No JSON, or nested deeper than serde_json goes.
            _ => break,
        }
    }
}

fn decode(pieces: &[&[u8]]) -> (Vec<Bytes>, Option<CodecError>) {
    let mut codec = JsonCodec::new(MAX);
    let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(e) => return (found, Some(e)),
            }
        }
    }
    loop {
        match codec.decode_eof(&mut buffer) {
            Ok(Some(message)) => found.push(message),
            Ok(None) => return (found, None),
            Err(e) => return (found, Some(e)),
        }
    }
}

/// A message that is JSON: it round-trips, and whatever in it is a value or a schema does too.
fn whole_message(message: &Json) {
    let mut buffer = BytesMut::new();
    if JsonCodec::new(MAX).encode(message, &mut buffer).is_ok() {
        let (again, end) = decode(&[&buffer]);
        assert!(end.is_none() && again.len() == 1, "what was encoded does not come out as one message");
        let again: Json = serde_json::from_slice(&again[0]).expect("an encoded message is JSON");
        assert!(alike(message, &again), "{message} became {again}");
    }
    if let Ok(schema) = serde_json::from_value::<Schema>(message.clone()) {
        for (table, columns) in &schema.tables {
            for (column, kind) in &columns.columns {
                assert!(schema.has(table, column));
                assert_eq!(kind.is_composite(), kind.value.is_some() || kind.max > 1);
            }
        }
    }
    for value in message.as_object().into_iter().flat_map(|o| o.values()) {
        column_value(value);
        for element in value.as_array().into_iter().flatten() {
            column_value(element);
        }
    }
}

fn column_value(json: &Json) {
    let text = json.to_string();
    let value = serde_json::from_str::<Value>(&text);
    assert_eq!(value.is_ok(), serde_json::from_value::<Value>(json.clone()).is_ok(), "{text} read in two ways");
    let Ok(value) = value else { return };
    let written = serde_json::to_string(&value).expect("what was read is finite");
    let again: Value = serde_json::from_str(&written).expect("what was written is a value");
    assert!(same(&value, &again), "{value:?} became {again:?}");
    assert!(value.same(&value) || has_repeats(&value), "{value:?} is not the same as itself");
    // A singleton and a bare atom are one.
    if let Some(atom) = value.as_atom() {
        assert!(value.same(&Value::Atom(atom.clone())) && Value::Set(vec![atom.clone()]).same(&value));
    }
}

/// `Value::same` compares sets, and such a one is none.
fn has_repeats(value: &Value) -> bool {
    let atoms = value.as_set().unwrap_or_default();
    atoms.iter().enumerate().any(|(i, a)| atoms[..i].contains(a))
}

fn same(a: &Value, b: &Value) -> bool {
    let atom = |a: &Atom, b: &Atom| match (a, b) {
        (Atom::Real(x), Atom::Real(y)) => near(*x, *y),
        _ => a == b,
    };
    match (a, b) {
        (Value::Atom(a), Value::Atom(b)) => atom(a, b),
        (Value::Set(a), Value::Set(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| atom(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| atom(&a.0, &b.0) && atom(&a.1, &b.1))
        }
        _ => false,
    }
}
