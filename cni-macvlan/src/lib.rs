//! cni-macvlan
