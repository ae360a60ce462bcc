//! PoolMap: which addresses of a pool are free, for agents to choose from without listing. The controller alone writes it.
//! A hint, not the truth: who creates the AddressLease has the address.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
