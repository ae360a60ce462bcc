//! 802.1Q VLAN ids and sets of them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VlanError {
    #[error("vlan {0} is outside 1 to 4094")]
    Id(i64),
    #[error("vlan tag {0} is outside 0 to 4094")]
    Tag(i64),
    #[error("vlan range {0:?} is neither an id nor \"min-max\"")]
    Syntax(String),
    #[error("vlan range {0}-{1} ends before it begins")]
    Order(u16, u16),
}

/// A VLAN id as IEEE 802.1Q lets one be configured: 1 to 4094.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct VlanId(u16);

impl VlanId {
    pub fn new(id: i64) -> Result<Self, VlanError> {
        match u16::try_from(id) {
            Ok(v) if (1..=4094).contains(&v) => Ok(Self(v)),
            _ => Err(VlanError::Id(id)),
        }
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What Open vSwitch's `Port.tag` and one entry of `Port.trunks` mean (ovs-vswitchd.conf.db(5)): a VLAN id, or 0 for
/// priority-tagged and untagged packets. 4095 is reserved by 802.1Q and refused, though the column's schema admits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Tag(u16);

impl Tag {
    pub fn new(tag: i64) -> Result<Self, VlanError> {
        match u16::try_from(tag) {
            Ok(v) if v <= 4094 => Ok(Self(v)),
            _ => Err(VlanError::Tag(tag)),
        }
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl From<VlanId> for Tag {
    fn from(v: VlanId) -> Self {
        Self(v.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of tags, as in `Port.trunks`: empty means "all" there.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Trunks(BTreeSet<Tag>);

impl Trunks {
    pub fn insert_range(&mut self, min: Tag, max: Tag) -> Result<(), VlanError> {
        if min > max {
            return Err(VlanError::Order(min.0, max.0));
        }
        self.0.extend((min.0..=max.0).map(Tag));
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = Tag> + '_ {
        self.0.iter().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn contains(&self, tag: Tag) -> bool {
        self.0.contains(&tag)
    }

    pub fn is_subset(&self, other: &Trunks) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<Tag> for Trunks {
    fn from_iter<I: IntoIterator<Item = Tag>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// `"100"`, `"100-200"`, or several of those joined by commas.
impl FromStr for Trunks {
    type Err = VlanError;
    fn from_str(s: &str) -> Result<Self, VlanError> {
        let mut out = Trunks::default();
        for part in s.split(',') {
            let part = part.trim();
            let number = |t: &str| -> Result<VlanId, VlanError> {
                if t.is_empty() || !t.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(VlanError::Syntax(part.to_owned()));
                }
                VlanId::new(t.parse().map_err(|_| VlanError::Syntax(part.to_owned()))?)
            };
            let (min, max) = match part.split_once('-') {
                Some((a, b)) => (number(a)?, number(b)?),
                None => (number(part)?, number(part)?),
            };
            out.insert_range(min.into(), max.into())?;
        }
        Ok(out)
    }
}

/// Ranges in ascending order: `"100-103,200"`; an empty set is an empty string.
impl fmt::Display for Trunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tags = self.0.iter().map(|t| t.0).peekable();
        let mut first = true;
        while let Some(min) = tags.next() {
            let mut max = min;
            while tags.next_if(|n| *n == max + 1).is_some() {
                max += 1;
            }
            let comma = if first { "" } else { "," };
            first = false;
            if min == max {
                write!(f, "{comma}{min}")?;
            } else {
                write!(f, "{comma}{min}-{max}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_bounds() {
        assert!(VlanId::new(0).is_err());
        assert!(VlanId::new(4095).is_err());
        assert!(VlanId::new(-1).is_err());
        assert_eq!(VlanId::new(4094).unwrap().get(), 4094);
        assert_eq!(Tag::new(0).unwrap().get(), 0);
        assert_eq!(Tag::new(4095).unwrap_err().to_string(), "vlan tag 4095 is outside 0 to 4094");
    }

    #[test]
    fn trunks_round_trip() {
        let t: Trunks = "100-103, 200,201,4094".parse().unwrap();
        assert_eq!(t.to_string(), "100-103,200-201,4094");
        assert_eq!(t.len(), 7);
        assert_eq!("7-5".parse::<Trunks>().unwrap_err(), VlanError::Order(7, 5));
        for bad in ["", "a", "1-", "-1", "1--2", "0", "4095", "1,,2", "+1"] {
            assert!(bad.parse::<Trunks>().is_err(), "{bad:?}");
        }
    }
}
