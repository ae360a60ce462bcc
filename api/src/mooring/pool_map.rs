//! PoolMap: which addresses of a pool are free, for agents to choose from without listing. The controller alone writes it.
//! A hint, not the truth: who creates the AddressLease has the address.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lease::chunk_base;

/// Free addresses of the pool of the same name.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "mooring.dev",
    version = "v1alpha1",
    kind = "PoolMap",
    plural = "poolmaps",
    category = "mooring",
    derive = "PartialEq",
    derive = "Default",
    doc = "Free addresses of the pool of the same name.",
    printcolumn(name = "POOL", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "SPARES", type_ = "integer", json_path = ".spec.sparesPerNode"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PoolMapSpec {
    pub pool: String,
    /// `metadata.generation` of the pool that this was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// A window of chunks that have free addresses, at most `MAX_CHUNKS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub chunks: Vec<Chunk>,
    /// Leases that a node may keep without a holder: clamp(free / (4 x nodes using the pool), 0, 8).
    #[serde(default)]
    #[schemars(range(min = 0, max = 8))]
    pub spares_per_node: i32,
    /// Spare addresses that someone asks for by name; their nodes give them back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub recall: Vec<String>,
    /// The nodes, each as two bytes (big-endian; 32 bits of FNV-1a of its name, the halves xored), ascending, in standard
    /// base64; empty where there are more than 1,024. The place of its mark among them tells a node which part of the window
    /// it searches first, so that nodes do not meet there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2732))]
    pub nodes: String,
    /// Addresses of nodes whose Node object was deleted, and who asks the segment whether somebody uses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub probes: Vec<ProbeRequest>,
}

/// `node` is to probe `address` (RFC 5227 section 2.1.1, RFC 4862 section 5.4) and to write into its lease what it hears.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeRequest {
    pub address: String,
    pub node: String,
}

impl PoolMapSpec {
    /// Of `nodes`; what cannot be read is left out: it is a hint.
    pub fn node_marks(&self) -> Vec<u16> {
        let bytes = STANDARD.decode(&self.nodes).unwrap_or_default();
        bytes.as_chunks().0.iter().map(|b| u16::from_be_bytes(*b)).collect()
    }

    /// The text of `nodes`.
    pub fn encode_marks(marks: &[u16]) -> String {
        STANDARD.encode(marks.iter().flat_map(|m| m.to_be_bytes()).collect::<Vec<u8>>())
    }
}

/// 256 addresses are a /24 or a /120; 64 of them are 16,384 addresses in 4 KiB of text.
pub const MAX_CHUNKS: usize = 64;

/// 256 addresses from `base` on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// First address: `10.6.212.0`, `fd00:10:6::100`.
    pub base: String,
    /// 32 bytes in standard base64: bit `i % 8` (least significant first) of byte `i / 8` is set when `base + i` is free.
    #[schemars(length(equal = 44))]
    pub bits: String,
}

/// Why a chunk cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("base {0:?} is not the first address of a /24 or /120")]
    Base(String),
    #[error("bits {0:?} are not 32 bytes in base64")]
    Bits(String),
}

impl Chunk {
    pub fn new(base: IpAddr, bits: &[u8; 32]) -> Self {
        Self { base: base.to_string(), bits: STANDARD.encode(bits) }
    }

    pub fn decode(&self) -> Result<(IpAddr, [u8; 32]), ChunkError> {
        let base: IpAddr =
            self.base.parse().ok().filter(|b| chunk_base(*b) == *b).ok_or_else(|| ChunkError::Base(self.base.clone()))?;
        let bytes = STANDARD.decode(&self.bits).ok().and_then(|b| <[u8; 32]>::try_from(b).ok());
        Ok((base, bytes.ok_or_else(|| ChunkError::Bits(self.bits.clone()))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_round_trip() {
        let mut bits = [0u8; 32];
        bits[1] = 0b100;
        let base = "10.6.212.0".parse().unwrap();
        let c = Chunk::new(base, &bits);
        assert_eq!(c.bits.len(), 44, "the schema says so");
        assert_eq!(c.decode().unwrap(), (base, bits));
    }

    #[test]
    fn node_marks_round_trip_and_fit_the_schema() {
        let marks: Vec<u16> = (0..1024).collect();
        let spec = PoolMapSpec { nodes: PoolMapSpec::encode_marks(&marks), ..Default::default() };
        assert_eq!(spec.nodes.len(), 2732, "the schema says so");
        assert_eq!(spec.node_marks(), marks);
        let broken = PoolMapSpec { nodes: "no base64".into(), ..Default::default() };
        assert!(broken.node_marks().is_empty());
    }

    #[test]
    fn broken_chunks_are_refused() {
        let c = |base: &str, bits: &str| Chunk { base: base.into(), bits: bits.into() }.decode().unwrap_err().to_string();
        assert_eq!(c("10.6.212.1", ""), "base \"10.6.212.1\" is not the first address of a /24 or /120");
        assert_eq!(c("10.6.212.0", "AAAA"), "bits \"AAAA\" are not 32 bytes in base64");
    }
}
