//! Values of OVSDB columns and their JSON notation (RFC 7047 section 5.1). Knows no table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serialize, SerializeTuple, Serializer};

/// Column values of one row, by column name.
pub type Columns = BTreeMap<String, Value>;

/// Why a value is not what a column should hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("{value:?} is not a UUID of the form 8-4-4-4-12 hexadecimal digits")]
    Uuid { value: String },
    #[error("value {value} is not {expected}")]
    Type { value: String, expected: &'static str },
}

/// A row's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid([u8; 16]);

impl Uuid {
    pub const ZERO: Uuid = Uuid([0; 16]);

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Uuid(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for Uuid {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::Uuid { value: text.to_owned() };
        let input = text.as_bytes();
        if input.len() != 36 {
            return Err(refused());
        }
        let mut bytes = [0u8; 16];
        let mut at = 0;
        for (index, byte) in bytes.iter_mut().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                if input[at] != b'-' {
                    return Err(refused());
                }
                at += 1;
            }
            let digit = |c: u8| char::from(c).to_digit(16).ok_or_else(refused);
            *byte = (digit(input[at])? * 16 + digit(input[at + 1])?) as u8;
            at += 2;
        }
        Ok(Uuid(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As a JSON string (object keys of monitor updates); as a column value it is `["uuid", "..."]`, see [`Atom`].
impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Uuid;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a UUID string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Uuid, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// One scalar.
#[derive(Debug, Clone, PartialEq)]
pub enum Atom {
    Integer(i64),
    /// Finite. A whole number sent by the server for a column of type real arrives as `Integer`; [`Atom::as_real`] takes both.
    Real(f64),
    Boolean(bool),
    String(String),
    Uuid(Uuid),
    /// A row inserted in the same transaction under this name (`[A-Za-z_][A-Za-z0-9_]*`). Never sent by the server.
    NamedUuid(String),
}

impl Atom {
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Atom::Integer(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_real(&self) -> Option<f64> {
        match self {
            Atom::Real(value) => Some(*value),
            Atom::Integer(value) => Some(*value as f64),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Atom::Boolean(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Atom::String(value) => Some(value),
            _ => None,
        }
    }

    pub fn as_uuid(&self) -> Option<Uuid> {
        match self {
            Atom::Uuid(value) => Some(*value),
            _ => None,
        }
    }
}

/// What one column of one row holds.
///
/// A set of exactly one element is written as the bare atom by the server, so `Atom(x)` and `Set([x])` are the same
/// thing: compare with [`Value::same`], read with [`Value::as_set`]. `Set([])` is "no value" of an optional column.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Atom(Atom),
    Set(Vec<Atom>),
    Map(Vec<(Atom, Atom)>),
}

impl Value {
    /// No value of an optional column; the empty set.
    pub const fn empty() -> Self {
        Value::Set(Vec::new())
    }

    pub fn set<T: Into<Atom>>(elements: impl IntoIterator<Item = T>) -> Self {
        Value::Set(elements.into_iter().map(Into::into).collect())
    }

    pub fn map<K: Into<Atom>, V: Into<Atom>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Value::Map(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// A reference to a row inserted in the same transaction.
    pub fn named_uuid(name: impl Into<String>) -> Self {
        Value::Atom(Atom::NamedUuid(name.into()))
    }

    /// The elements, a bare atom being a set of one; `None` for a map that has pairs. An empty set and an empty map
    /// both give the empty slice.
    pub fn as_set(&self) -> Option<&[Atom]> {
        match self {
            Value::Atom(atom) => Some(std::slice::from_ref(atom)),
            Value::Set(atoms) => Some(atoms),
            Value::Map(pairs) if pairs.is_empty() => Some(&[]),
            Value::Map(_) => None,
        }
    }

    /// The pairs; `None` for what is neither a map nor empty.
    pub fn as_map(&self) -> Option<&[(Atom, Atom)]> {
        match self {
            Value::Map(pairs) => Some(pairs),
            Value::Set(atoms) if atoms.is_empty() => Some(&[]),
            _ => None,
        }
    }

    /// The one element; `None` for none, several, or a map.
    pub fn as_atom(&self) -> Option<&Atom> {
        match self.as_set() {
            Some([atom]) => Some(atom),
            _ => None,
        }
    }

    /// Equality as the database means it: order and the notation of singletons do not matter.
    pub fn same(&self, other: &Value) -> bool {
        match (self.as_set(), other.as_set()) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().all(|atom| b.contains(atom)),
            _ => match (self.as_map(), other.as_map()) {
                (Some(a), Some(b)) => a.len() == b.len() && a.iter().all(|pair| b.contains(pair)),
                _ => false,
            },
        }
    }

    /// Applies an `update2` difference (ovsdb-server(7), 4.1.14): elements in both leave, elements only in `diff` come;
    /// a map key in both leaves when the values are equal and takes the new value when not.
    pub(crate) fn apply_diff(&mut self, diff: Value) {
        if let Value::Map(changes) = diff {
            let mut pairs = match std::mem::replace(self, Value::empty()) {
                Value::Map(pairs) => pairs,
                _ => Vec::new(),
            };
            for (key, value) in changes {
                match pairs.iter().position(|(known, _)| *known == key) {
                    Some(at) if pairs[at].1 == value => drop(pairs.swap_remove(at)),
                    Some(at) => pairs[at].1 = value,
                    None => pairs.push((key, value)),
                }
            }
            *self = Value::Map(pairs);
            return;
        }
        let changes = diff.into_atoms();
        if changes.is_empty() {
            return;
        }
        let mut atoms = std::mem::replace(self, Value::empty()).into_atoms();
        for change in changes {
            match atoms.iter().position(|known| *known == change) {
                Some(at) => drop(atoms.swap_remove(at)),
                None => atoms.push(change),
            }
        }
        *self = Value::Set(atoms);
    }

    fn into_atoms(self) -> Vec<Atom> {
        match self {
            Value::Atom(atom) => vec![atom],
            Value::Set(atoms) => atoms,
            Value::Map(_) => Vec::new(),
        }
    }
}

macro_rules! from_into_atom {
    ($($from:ty => |$value:ident| $atom:expr;)*) => {
        $(
            impl From<$from> for Atom {
                fn from($value: $from) -> Self {
                    $atom
                }
            }
            impl From<$from> for Value {
                fn from(value: $from) -> Self {
                    Value::Atom(value.into())
                }
            }
        )*
    };
}

from_into_atom! {
    bool => |value| Atom::Boolean(value);
    i64 => |value| Atom::Integer(value);
    i32 => |value| Atom::Integer(value.into());
    u32 => |value| Atom::Integer(value.into());
    u16 => |value| Atom::Integer(value.into());
    u8 => |value| Atom::Integer(value.into());
    f64 => |value| Atom::Real(value);
    &str => |value| Atom::String(value.to_owned());
    String => |value| Atom::String(value);
    &String => |value| Atom::String(value.clone());
    Uuid => |value| Atom::Uuid(value);
    &Uuid => |value| Atom::Uuid(*value);
}

impl From<Atom> for Value {
    fn from(atom: Atom) -> Self {
        Value::Atom(atom)
    }
}

impl<T: Into<Atom>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        match value {
            Some(value) => Value::Atom(value.into()),
            None => Value::empty(),
        }
    }
}

impl<T: Into<Atom>> From<Vec<T>> for Value {
    fn from(elements: Vec<T>) -> Self {
        Value::set(elements)
    }
}

impl<T: Into<Atom>, const N: usize> From<[T; N]> for Value {
    fn from(elements: [T; N]) -> Self {
        Value::set(elements)
    }
}

impl<T: Into<Atom>> From<BTreeSet<T>> for Value {
    fn from(elements: BTreeSet<T>) -> Self {
        Value::set(elements)
    }
}

impl<K: Into<Atom>, V: Into<Atom>> From<BTreeMap<K, V>> for Value {
    fn from(pairs: BTreeMap<K, V>) -> Self {
        Value::map(pairs)
    }
}

impl Serialize for Atom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Atom::Integer(value) => serializer.serialize_i64(*value),
            Atom::Real(value) if value.is_finite() => serializer.serialize_f64(*value),
            Atom::Real(value) => Err(ser::Error::custom(format!("real {value} is not finite"))),
            Atom::Boolean(value) => serializer.serialize_bool(*value),
            Atom::String(value) => serializer.serialize_str(value),
            Atom::Uuid(value) => tagged(serializer, "uuid", &format_args!("{value}")),
            Atom::NamedUuid(name) => tagged(serializer, "named-uuid", name),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Atom(atom) => atom.serialize(serializer),
            Value::Set(atoms) => tagged(serializer, "set", atoms),
            Value::Map(pairs) => tagged(serializer, "map", pairs),
        }
    }
}

fn tagged<S: Serializer>(serializer: S, tag: &str, body: &(impl Serialize + ?Sized)) -> Result<S::Ok, S::Error> {
    let mut pair = serializer.serialize_tuple(2)?;
    pair.serialize_element(tag)?;
    pair.serialize_element(body)?;
    pair.end()
}

impl<'de> Deserialize<'de> for Atom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Atom(atom) => Ok(atom),
            _ => Err(de::Error::custom("a set or map stands where a scalar is expected")),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an OVSDB value (RFC 7047 section 5.1)")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value).map(Into::into).map_err(|_| E::custom(format!("integer {value} is above 2^63-1")))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        fn body<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(seq: &mut A, tag: &str) -> Result<T, A::Error> {
            let body = seq.next_element()?.ok_or_else(|| de::Error::custom(format!("{tag:?} has nothing after it")))?;
            match seq.next_element::<de::IgnoredAny>()? {
                None => Ok(body),
                Some(_) => Err(de::Error::custom(format!("{tag:?} has more than one element after it"))),
            }
        }
        let tag: String = seq.next_element()?.ok_or_else(|| de::Error::custom("empty array stands for a value"))?;
        match tag.as_str() {
            "uuid" => Ok(Value::Atom(Atom::Uuid(body(&mut seq, &tag)?))),
            "named-uuid" => Ok(Value::Atom(Atom::NamedUuid(body(&mut seq, &tag)?))),
            "set" => Ok(Value::Set(body(&mut seq, &tag)?)),
            "map" => Ok(Value::Map(body(&mut seq, &tag)?)),
            _ => Err(de::Error::custom(format!("unknown value tag {tag:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn atom() -> impl Strategy<Value = Atom> {
        prop_oneof![
            any::<i64>().prop_map(Atom::Integer),
            // A fraction, because a whole real is written like an integer by the server.
            (-1.0e9..1.0e9f64).prop_map(|value| Atom::Real(value.trunc() + 0.5)),
            any::<bool>().prop_map(Atom::Boolean),
            any::<String>().prop_map(Atom::String),
            any::<[u8; 16]>().prop_map(|bytes| Atom::Uuid(Uuid::from_bytes(bytes))),
            "[A-Za-z_][A-Za-z0-9_]{0,8}".prop_map(Atom::NamedUuid),
        ]
    }

    proptest! {
        #[test]
        fn every_value_survives_a_round_trip(
            one in atom(),
            many in proptest::collection::vec(atom(), 0..6),
            pairs in proptest::collection::vec((atom(), atom()), 0..6),
        ) {
            for value in [Value::Atom(one), Value::Set(many), Value::Map(pairs)] {
                let text = serde_json::to_string(&value).unwrap();
                prop_assert_eq!(parse(&text), value);
            }
        }

        #[test]
        fn set_difference_leads_from_old_to_new(old in any::<BTreeSet<i8>>(), new in any::<BTreeSet<i8>>()) {
            let diff: BTreeSet<i8> = old.symmetric_difference(&new).copied().collect();
            let value = |set: &BTreeSet<i8>| Value::set(set.iter().map(|n| i64::from(*n)));
            let mut found = value(&old);
            found.apply_diff(value(&diff));
            prop_assert!(found.same(&value(&new)));
        }

        #[test]
        fn map_difference_leads_from_old_to_new(old in any::<BTreeMap<u8, u8>>(), new in any::<BTreeMap<u8, u8>>()) {
            // As ovsdb-server makes it: changed and added pairs with the new value, removed ones with the old.
            let mut diff: BTreeMap<u8, u8> = new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(k, v)| (*k, *v)).collect();
            diff.extend(old.iter().filter(|(k, _)| !new.contains_key(k)));
            let mut found = Value::from(old);
            found.apply_diff(diff.into());
            prop_assert!(found.same(&new.into()));
        }
    }

    #[test]
    fn singleton_set_is_the_bare_atom() {
        assert!(parse("5").same(&parse(r#"["set",[5]]"#)));
        assert_eq!(parse("5").as_set(), Some(&[Atom::Integer(5)][..]));
        assert!(!parse("5").same(&parse(r#"["set",[5,6]]"#)));
    }

    #[test]
    fn empty_set_is_no_value() {
        assert_eq!(parse(r#"["set",[]]"#), Value::empty());
        assert_eq!(Value::from(None::<i64>), Value::empty());
        assert_eq!(Value::empty().as_map(), Some(&[][..]));
        assert_eq!(Value::empty().as_atom(), None);
    }

    #[test]
    fn map_and_uuid_notation_is_that_of_the_rfc() {
        let text = r#"["map",[["a","1"],["b",["uuid","550e8400-e29b-41d4-a716-446655440000"]]]]"#;
        assert_eq!(serde_json::to_string(&parse(text)).unwrap(), text);
        assert_eq!(serde_json::to_string(&Value::named_uuid("row_1")).unwrap(), r#"["named-uuid","row_1"]"#);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "[]",
            "null",
            "{}",
            r#"["set"]"#,
            r#"["set",[],1]"#,
            r#"["set",[["set",[]]]]"#,
            r#"["map",[["a"]]]"#,
            r#"["bag",[]]"#,
            r#"["uuid","x"]"#,
            "9223372036854775808",
            r#"[["set",[]]]"#,
        ] {
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
        }
        assert!(serde_json::to_string(&Value::from(f64::NAN)).is_err());
    }

    #[test]
    fn uuid_takes_only_the_canonical_form() {
        let text = "0123abcd-4567-89ab-cdef-0123456789ab";
        assert_eq!(text.parse::<Uuid>().unwrap().to_string(), text);
        for wrong in [
            "",
            "0123abcd456789abcdef0123456789ab",
            "0123abcd-4567-89ab-cdef-0123456789a",
            "g123abcd-4567-89ab-cdef-0123456789ab",
            "0123abcd-4567-89ab-cdef+0123456789ab",
        ] {
            assert!(wrong.parse::<Uuid>().is_err(), "{wrong}");
        }
    }
}
