//! Sets of addresses of one family as sorted intervals: an IPv6 /64 costs as little as one address.
//! Knows nothing of who has them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Cidr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub fn of_net(net: &Cidr) -> Self {
        Self::of(net.ip())
    }

    /// 32 or 128.
    pub fn width(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    fn ip(self, bits: u128) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).expect("bounds of an IPv4 set are IPv4 addresses"))),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("{0:?} is neither an address nor a range \"first-last\" without spaces")]
    Syntax(String),
    #[error("{0:?} ends before it begins")]
    Order(String),
    #[error("{0:?} mixes IPv4 and IPv6")]
    Mixed(String),
    #[error("{0:?} is not inside the subnet {1}")]
    Outside(String, Cidr),
    #[error("{0:?} is not an {1} address")]
    Family(String, Family),
}

/// Disjoint, ascending, never touching, ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    family: Family,
    spans: Vec<(u128, u128)>,
}

impl Ranges {
    pub fn empty(family: Family) -> Self {
        Self { family, spans: Vec::new() }
    }

    pub fn of_net(net: &Cidr) -> Self {
        let family = Family::of_net(net);
        let first = bits(net.ip());
        let host = family.width() - net.prefix_len();
        let size_less_one = if host == 128 { u128::MAX } else { (1u128 << host) - 1 };
        Self { family, spans: vec![(first, first + size_less_one)] }
    }

    pub fn of_ips(family: Family, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::from_spans(family, ips.into_iter().filter(|ip| Family::of(*ip) == family).map(|ip| (bits(ip), bits(ip))).collect())
    }

    /// `a` or `a-b`, strictly: `a` not above `b`, no spaces, of this family and, where a subnet is given, inside it.
    /// Entries may overlap each other.
    pub fn parse<S: AsRef<str>>(entries: &[S], family: Family, subnet: Option<&Cidr>) -> Result<Self, RangeError> {
        let mut spans = Vec::with_capacity(entries.len());
        for entry in entries {
            let entry = entry.as_ref();
            let ip = |s: &str| s.parse::<IpAddr>().map_err(|_| RangeError::Syntax(entry.to_owned()));
            let (a, b) = match entry.split_once('-') {
                Some((a, b)) => (ip(a)?, ip(b)?),
                None => (ip(entry)?, ip(entry)?),
            };
            if a.is_ipv4() != b.is_ipv4() {
                return Err(RangeError::Mixed(entry.to_owned()));
            }
            if Family::of(a) != family {
                return Err(RangeError::Family(entry.to_owned(), family));
            }
            if a > b {
                return Err(RangeError::Order(entry.to_owned()));
            }
            if let Some(net) = subnet.filter(|n| !n.contains(a) || !n.contains(b)) {
                return Err(RangeError::Outside(entry.to_owned(), *net));
            }
            spans.push((bits(a), bits(b)));
        }
        Ok(Self::from_spans(family, spans))
    }

    fn from_spans(family: Family, mut spans: Vec<(u128, u128)>) -> Self {
        spans.sort_unstable();
        let mut out: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (a, b) in spans {
            match out.last_mut() {
                // Touching counts as overlapping; `a - 1` cannot underflow behind an earlier span unless both begin at 0.
                Some(last) if a <= last.1 || a - 1 == last.1 => last.1 = last.1.max(b),
                _ => out.push((a, b)),
            }
        }
        Self { family, spans: out }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// How many addresses; 2^128 counts as 2^128 - 1.
    pub fn len(&self) -> u128 {
        self.spans.iter().fold(0u128, |n, (a, b)| n.saturating_add(b - a).saturating_add(1))
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family && self.contains_bits(bits(ip))
    }

    fn contains_bits(&self, n: u128) -> bool {
        let i = self.spans.partition_point(|(_, b)| *b < n);
        self.spans.get(i).is_some_and(|(a, _)| *a <= n)
    }

    /// The address at this place in ascending order, counted from 0.
    pub fn nth(&self, mut n: u128) -> Option<IpAddr> {
        for (a, b) in &self.spans {
            if n <= b - a {
                return Some(self.family.ip(a + n));
            }
            n = (n - (b - a)) - 1;
        }
        None
    }

    pub fn union(&self, other: &Ranges) -> Ranges {
        if other.family != self.family {
            return self.clone();
        }
        Self::from_spans(self.family, self.spans.iter().chain(&other.spans).copied().collect())
    }

    /// Of another family nothing is taken away.
    pub fn subtract(&self, other: &Ranges) -> Ranges {
        if other.family != self.family {
            return self.clone();
        }
        let mut out = Vec::new();
        for &(a, b) in &self.spans {
            let mut from = Some(a);
            for hole in other.spans[other.spans.partition_point(|h| h.1 < a)..].iter().take_while(|h| h.0 <= b) {
                let Some(start) = from else { break };
                if hole.0 > start {
                    out.push((start, hole.0 - 1));
                }
                from = hole.1.checked_add(1);
            }
            if let Some(start) = from.filter(|s| *s <= b) {
                out.push((start, b));
            }
        }
        Self { family: self.family, spans: out }
    }

    pub fn intersect(&self, other: &Ranges) -> Ranges {
        if other.family != self.family {
            return Self::empty(self.family);
        }
        let (mut i, mut j, mut out) = (0, 0, Vec::new());
        while let (Some(x), Some(y)) = (self.spans.get(i), other.spans.get(j)) {
            let (a, b) = (x.0.max(y.0), x.1.min(y.1));
            if a <= b {
                out.push((a, b));
            }
            if x.1 < y.1 { i += 1 } else { j += 1 }
        }
        Self { family: self.family, spans: out }
    }

    pub fn intersects(&self, other: &Ranges) -> bool {
        !self.intersect(other).is_empty()
    }

    /// Ascending. May be endless in practice (an IPv6 /64): take what you need.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.spans.iter().flat_map(|(a, b)| (*a..=*b).map(|n| self.family.ip(n)))
    }

    /// First addresses of the /24 (/120) chunks that hold at least one address of the set, ascending, each once.
    pub fn chunks(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let mut last = None;
        self.spans.iter().flat_map(|(a, b)| (a >> 8)..=(b >> 8)).filter_map(move |c| {
            let new = last != Some(c);
            last = Some(c);
            new.then(|| self.family.ip(c << 8))
        })
    }

    /// One bit an address of the chunk (bit i of byte i/8 is the address base + i), set where the set holds it.
    pub fn chunk_bits(&self, base: IpAddr) -> [u8; 32] {
        let mut out = [0u8; 32];
        if Family::of(base) != self.family {
            return out;
        }
        let first = bits(base) & !0xff;
        let last = first | 0xff;
        for (a, b) in self.spans[self.spans.partition_point(|(_, b)| *b < first)..].iter().take_while(|(a, _)| *a <= last) {
            for n in (*a).max(first)..=(*b).min(last) {
                let i = (n - first) as usize;
                out[i / 8] |= 1 << (i % 8);
            }
        }
        out
    }
}

/// The address that bit `i` of a chunk stands for.
pub(crate) fn in_chunk(base: IpAddr, i: u8) -> IpAddr {
    Family::of(base).ip((bits(base) & !0xff) | u128::from(i))
}

/// Chunk and place in it.
pub(crate) fn chunk_of(ip: IpAddr) -> (IpAddr, u8) {
    let n = bits(ip);
    (Family::of(ip).ip(n & !0xff), (n & 0xff) as u8)
}

/// `a-b,c`, as the fields of a pool spell it, joined by commas.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (a, b)) in self.spans.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match a == b {
                true => write!(f, "{comma}{}", self.family.ip(*a))?,
                false => write!(f, "{comma}{}-{}", self.family.ip(*a), self.family.ip(*b))?,
            }
        }
        Ok(())
    }
}
