//! What must hold for whatever bytes a parser of the product is given. Each function takes any bytes, panics where a rule
//! does not hold, and is called twice: by libFuzzer (`fuzz/`, `make fuzz`) and, with `seeds/<name>/*`, by `make test`.
//! Knows no fuzzer.

pub mod annotations;
pub mod cni_call;
pub mod cni_result;
pub mod cni_wire;
pub mod files;
mod json;
pub mod ovsdb_replica;
pub mod ovsdb_stream;
pub mod pool;

/// Name of the target (also its folder of seeds and its file in `fuzz/fuzz_targets`), and its check.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("annotations", annotations::check),
    ("cni_call", cni_call::check),
    ("cni_result", cni_result::check),
    ("cni_wire", cni_wire::check),
    ("files", files::check),
    ("ovsdb_replica", ovsdb_replica::check),
    ("ovsdb_stream", ovsdb_stream::check),
    ("pool", pool::check),
];
