//! Finding a free address without a list: windows of bits over a pool, random picks, and what was learnt from conflicts.
//! Knows leases only as addresses; randomness is the caller's.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::ops::Range;

use crate::Ranges;
use crate::ranges::{chunk_of, in_chunk};

/// At most so many chunks are published: 64 x 256 addresses are more than the pods that start in the second until the
/// next window, and 64 x 32 bytes keep the object small.
pub const MAX_CHUNKS: usize = 64;
/// Random tries where no window is there. In a pool that is half used one of 16 fails once in 65,000 pods.
pub const BLIND_TRIES: u32 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// First address of a /24 or /120.
    pub base: IpAddr,
    /// Bit i%8 of byte i/8 is set where base + i is free.
    pub free: [u8; 32],
}

impl Chunk {
    pub fn is_free(&self, i: u8) -> bool {
        self.free[usize::from(i) / 8] & (1 << (i % 8)) != 0
    }

    pub fn count(&self) -> u32 {
        self.free.iter().map(|b| b.count_ones()).sum()
    }

    /// Free addresses, ascending.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        (0..=255u8).filter(|i| self.is_free(*i)).map(|i| in_chunk(self.base, i))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    pub chunks: Vec<Chunk>,
}

impl Window {
    /// The first chunks of the pool that have an address without a lease, at most [`MAX_CHUNKS`].
    pub fn build(allocatable: &Ranges, leased: &BTreeSet<IpAddr>) -> Window {
        let chunks = allocatable.chunks().map(|base| free_of_chunk(allocatable, base, leased)).filter(|c| c.count() > 0);
        Window { chunks: chunks.take(MAX_CHUNKS).collect() }
    }

    pub fn is_free(&self, ip: IpAddr) -> bool {
        let (base, i) = chunk_of(ip);
        self.chunks.iter().any(|c| c.base == base && c.is_free(i))
    }

    pub fn count(&self) -> u32 {
        self.chunks.iter().map(Chunk::count).sum()
    }
}

/// One chunk of a pool less its leases; also what an agent makes of its one chunk list when there is no window.
pub fn free_of_chunk(allocatable: &Ranges, base: IpAddr, leased: &BTreeSet<IpAddr>) -> Chunk {
    let mut free = allocatable.chunk_bits(base);
    for ip in leased.range(in_chunk(base, 0)..=in_chunk(base, 255)) {
        let (_, i) = chunk_of(*ip);
        free[usize::from(i) / 8] &= !(1 << (i % 8));
    }
    Chunk { base: in_chunk(base, 0), free }
}

/// Addresses of one pool that turned out to be taken although the window called them free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    /// Address -> how many windows came since that still call it free.
    taken: BTreeMap<IpAddr, u8>,
}

impl Learned {
    /// A create ended in a conflict.
    pub fn conflict(&mut self, ip: IpAddr) {
        self.taken.insert(ip, 0);
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.taken.contains_key(&ip)
    }

    pub fn len(&self) -> usize {
        self.taken.len()
    }

    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// A new window came. Where it calls an address taken it knows by itself. Where it calls one free that we found
    /// taken, the first such window may have been written before the controller saw that lease; the second was not, for
    /// windows are at least a second apart.
    pub fn window_changed(&mut self, window: &Window) {
        self.taken.retain(|ip, seen| {
            *seen += 1;
            window.is_free(*ip) && *seen < 2
        });
    }
}

/// What one search for an address has tried so far.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    ips: HashSet<IpAddr>,
    blind: u32,
}

/// Gives one candidate after the other, none twice.
#[derive(Debug)]
pub struct Picker<'a> {
    window: Option<&'a Window>,
    allocatable: &'a Ranges,
    learned: &'a Learned,
    /// Positions of the window that come first.
    first: Range<usize>,
    tried: Tried,
}

impl<'a> Picker<'a> {
    pub fn new(window: Option<&'a Window>, allocatable: &'a Ranges, learned: &'a Learned) -> Self {
        Self { window, allocatable, learned, first: 0..0, tried: Tried::default() }
    }

    /// Looks here first: positions of the window, 256 a chunk.
    #[must_use]
    pub fn first(self, positions: Range<usize>) -> Self {
        Self { first: positions, ..self }
    }

    /// Goes on where an earlier picker of the same search ended.
    #[must_use]
    pub fn resume(self, tried: Tried) -> Self {
        Self { tried, ..self }
    }

    pub fn pause(self) -> Tried {
        self.tried
    }

    /// With a window: the free bits of the first positions, then random ones, without those that we learnt to be taken; then
    /// none: the pool gives nothing before the next window. Without: a random address, 16 times, then none: ask for one
    /// chunk's leases. `random` gives 64 random bits a call.
    pub fn next(&mut self, random: &mut dyn FnMut() -> u64) -> Option<IpAddr> {
        let found = match self.window {
            Some(w) => self.in_window(w, self.first.clone()).or_else(|| {
                let total = w.chunks.len() * 256;
                // From a random place on, around the window.
                let start = usize::try_from(random() % (total.max(1) as u64)).expect("below 64 x 256");
                self.in_window(w, start..total).or_else(|| self.in_window(w, 0..start))
            }),
            None => self.blind(random),
        };
        self.tried.ips.extend(found);
        found
    }

    /// The first of these positions that will do.
    fn in_window(&self, window: &Window, mut positions: Range<usize>) -> Option<IpAddr> {
        // A window that was published before a range was cut must not bring the cut part back.
        let fits = |ip: IpAddr| !self.tried.ips.contains(&ip) && !self.learned.contains(ip) && self.allocatable.contains(ip);
        positions.find_map(|k| {
            let chunk = window.chunks.get(k / 256)?;
            let i = (k % 256) as u8;
            (chunk.is_free(i)).then(|| in_chunk(chunk.base, i)).filter(|ip| fits(*ip))
        })
    }

    fn blind(&mut self, random: &mut dyn FnMut() -> u64) -> Option<IpAddr> {
        let total = self.allocatable.len();
        while self.tried.blind < BLIND_TRIES && total > 0 {
            self.tried.blind += 1;
            let n = (u128::from(random()) << 64 | u128::from(random())) % total;
            if let Some(ip) = self.allocatable.nth(n).filter(|ip| !self.tried.ips.contains(ip) && !self.learned.contains(*ip)) {
                return Some(ip);
            }
        }
        None
    }
}

/// How a lease counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Has a holder.
    Held,
    /// With a node, without a holder.
    Spare,
    /// Neither node nor holder: kept for an identity.
    Kept,
    /// Its node cannot be reached.
    Unreachable,
    /// Somebody else was seen to use the address; nobody gets it.
    Quarantined,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Addresses that may be given out.
    pub total: u128,
    /// Leases with a holder on a node that can be reached.
    pub allocated: u64,
    pub spare: u64,
    pub kept: u64,
    pub unreachable: u64,
    pub quarantined: u64,
    /// Addresses that may be given out and have no lease.
    pub free: u128,
}

pub fn counts(allocatable: &Ranges, leases: impl IntoIterator<Item = (IpAddr, LeaseState)>) -> Counts {
    let mut c = Counts { total: allocatable.len(), free: allocatable.len(), ..Counts::default() };
    for (ip, state) in leases {
        match state {
            LeaseState::Held => c.allocated += 1,
            LeaseState::Spare => c.spare += 1,
            LeaseState::Kept => c.kept += 1,
            LeaseState::Unreachable => c.unreachable += 1,
            LeaseState::Quarantined => c.quarantined += 1,
        }
        // A lease may lie outside: the range was cut, or reserved, after it was given.
        if allocatable.contains(ip) {
            c.free = c.free.saturating_sub(1);
        }
    }
    c
}

/// clamp(free / (4 x nodes), 0, 8): a quarter of what is free may lie about as spares, at most eight a node.
pub fn spares_per_node(free: u128, nodes: u32) -> u8 {
    if nodes == 0 {
        return 0;
    }
    u8::try_from((free / (4 * u128::from(nodes))).min(8)).expect("at most 8")
}
