//! Where in a pool's window a node begins to look for a free address. Nodes that begin in parts of their own do not meet each
//! other in a burst: a window is up to a second old, and of 1,000 pods that take 1,000 addresses at random in that second every
//! second create is lost. Only a beginning: what is free elsewhere is anybody's. Knows nodes by name only.

use std::net::IpAddr;
use std::ops::Range;

use crate::window::MAX_CHUNKS;
use crate::{Ranges, Window};

/// Of more nodes the list is left out of the maps: 1,024 are 2 KiB of each map, and a share of the largest window is 16
/// addresses by then.
pub const MAX_NODES: usize = 1024;

/// Which part of a window is a node's: the `place`-th of `of` equal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub place: usize,
    /// Not zero.
    pub of: usize,
}

/// What stands for the nodes in a map, ascending; none where there are more than [`MAX_NODES`].
pub fn marks<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Vec<u16> {
    let mut all: Vec<u16> = nodes.into_iter().take(MAX_NODES + 1).map(mark).collect();
    if all.len() > MAX_NODES {
        return Vec::new();
    }
    all.sort_unstable();
    all
}

/// 32 bits of FNV-1a, folded to 16. Two nodes of one mark have one share, which costs them a create now and then.
fn mark(node: &str) -> u16 {
    let h = model::link::fnv1a(node.as_bytes());
    (h >> 16) as u16 ^ h as u16
}

/// The share of a node by the marks of a map; none where it is not among them.
pub fn share(marks: &[u16], node: &str) -> Option<Share> {
    let place = marks.binary_search(&mark(node)).ok()?;
    Some(Share { place, of: marks.len() })
}

impl Share {
    /// Positions in the window (256 a chunk) that are this share: all shares have as many addresses of the pool, up to one,
    /// whether free or not, so that they stay where they are while addresses are taken. Of a pool that is larger than any
    /// window the window is shared out.
    pub fn positions(self, window: &Window, allocatable: &Ranges) -> Range<usize> {
        let mut bases: Vec<IpAddr> = allocatable.chunks().take(MAX_CHUNKS + 1).collect();
        if bases.len() > MAX_CHUNKS {
            bases = window.chunks.iter().map(|c| c.base).collect();
        }
        let bits: Vec<(IpAddr, [u8; 32])> = bases.into_iter().map(|base| (base, allocatable.chunk_bits(base))).collect();
        let ones = |b: &[u8; 32]| b.iter().map(|b| b.count_ones() as usize).sum::<usize>();
        let total: usize = bits.iter().map(|(_, b)| ones(b)).sum();
        // Where the n-th address of the pool is, or would be.
        let position = |mut n: usize| {
            for (base, b) in &bits {
                let here = ones(b);
                if n < here {
                    let set = |i: &usize| b[i / 8] & (1 << (i % 8)) != 0;
                    let chunk = window.chunks.partition_point(|c| c.base < *base);
                    let there = window.chunks.get(chunk).is_some_and(|c| c.base == *base);
                    return chunk * 256 + if there { (0..256).filter(set).nth(n).unwrap_or_default() } else { 0 };
                }
                n -= here;
            }
            window.chunks.len() * 256
        };
        position(total * self.place / self.of)..position(total * (self.place + 1) / self.of)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Chunk, Family};

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("worker-{i}.rack-{}.example.org", i % 7)).collect()
    }

    #[test]
    fn shares_are_apart_even_and_together_the_whole_pool() {
        let all = Ranges::parse(&["10.6.16.1-10.6.19.232"], Family::V4, None).unwrap();
        let leased = BTreeSet::from(["10.6.16.9".parse().unwrap(), "10.6.17.9".parse().unwrap()]);
        let window = Window::build(&all, &leased);
        for of in [1, 3, 10, 999, 1000] {
            let mut sizes = BTreeSet::new();
            let mut next = 0;
            for place in 0..of {
                let p = Share { place, of }.positions(&window, &all);
                assert!(p.start >= next && (place == 0 || p.start == next), "{p:?} after {next}");
                next = p.end;
                let here = p.filter(|i| all.chunk_bits(window.chunks[i / 256].base)[i % 256 / 8] & (1 << (i % 8)) != 0);
                sizes.insert(here.count());
            }
            assert_eq!(next, window.chunks.len() * 256);
            assert!(sizes.last().unwrap() - sizes.first().unwrap() <= 1, "{of} nodes: {sizes:?}");
        }
        // More nodes than addresses: some have none.
        assert!(Share { place: 0, of: 5000 }.positions(&window, &all).len() <= 2);
        // A chunk that is full has left the window: the other shares stay where they are.
        let full = BTreeSet::from_iter((0..=255).map(|i| IpAddr::from([10, 6, 17, i])));
        let later = Window::build(&all, &full);
        assert_eq!(later.chunks.len(), 3);
        for place in 0..10 {
            let of = |w: &Window| {
                let p = Share { place, of: 10 }.positions(w, &all);
                p.map(|i| (w.chunks[i / 256].base, i % 256)).collect::<BTreeSet<_>>()
            };
            let gone = |p: &(IpAddr, usize)| p.0 == IpAddr::from([10, 6, 17, 0]);
            assert_eq!(of(&later), of(&window).into_iter().filter(|p| !gone(p)).collect(), "place {place}");
        }
        let empty = Window { chunks: Vec::<Chunk>::new() };
        assert_eq!(Share { place: 1, of: 2 }.positions(&empty, &all), 0..0);
    }

    #[test]
    fn every_listed_node_has_its_place_and_others_have_none() {
        let all = names(200);
        let marks = marks(all.iter().map(String::as_str));
        assert_eq!(marks.len(), 200);
        let places: BTreeSet<usize> = all.iter().map(|n| share(&marks, n).unwrap().place).collect();
        // Few of 200 names have one of 65,536 marks in common.
        assert!(places.len() >= 195, "{}", places.len());
        let strangers = (0..100).filter(|i| share(&marks, &format!("stranger-{i}")).is_some()).count();
        assert!(strangers <= 3, "{strangers}");
        assert_eq!(share(&[], "n1"), None);
    }

    #[test]
    fn of_too_many_nodes_none_is_listed() {
        let all = names(MAX_NODES + 1);
        assert!(marks(all.iter().map(String::as_str)).is_empty());
        assert_eq!(marks(all.iter().skip(1).map(String::as_str)).len(), MAX_NODES);
    }
}
