//! cni-ovs
