//! cni-meta
