//! What holds is in `oracles`; this only gives it bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oracles::cni_result::check(data));
