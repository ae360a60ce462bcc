//! A PoolMap as what `ipam` picks from. Knows no pod.

use api::mooring::PoolMap;
use ipam::{Chunk, Window};

/// A PoolMap's chunks. One that cannot be read is left out: it is a hint.
pub fn window(map: &PoolMap) -> Window {
    let chunks = map.spec.chunks.iter().filter_map(|c| c.decode().ok()).map(|(base, free)| Chunk { base, free });
    Window { chunks: chunks.collect() }
}
