//! Labels of AddressLeases whose values are made of names, so that whoever writes and whoever lists say the same. Names may be
//! longer than a label's value.

use super::lease::Identity;

/// A name as a label's value: itself, or where it is longer than the 63 bytes that a value may have, its beginning and a
/// digest.
pub fn label_value(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_owned();
    }
    // Names are ASCII (RFC 1123); `get` covers the case that one is not.
    format!("{}-{:016x}", name.get(..46).unwrap_or_default(), fnv1a([name]))
}

/// One value for all interfaces of a pod or VM, so that one list finds them.
pub fn identity_label(i: &Identity) -> String {
    format!("{:016x}", fnv1a([&format!("{:?}", i.kind), i.namespace.as_str(), i.name.as_str()]))
}

fn fnv1a<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for p in parts {
        for b in p.bytes().chain([0]) {
            h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mooring::lease::IdentityKind;

    #[test]
    fn a_long_name_is_a_label_of_63_bytes_and_another_long_name_another_one() {
        assert_eq!(label_value("n1"), "n1");
        let longest = "n".repeat(63);
        assert_eq!(label_value(&longest), longest);
        let (a, b) = (format!("{longest}.a"), format!("{longest}.b"));
        assert_eq!((label_value(&a).len(), label_value(&a).starts_with(&"n".repeat(46))), (63, true));
        assert_ne!(label_value(&a), label_value(&b));
    }

    #[test]
    fn all_interfaces_of_a_pod_have_one_label() {
        let of = |name: &str, nic: &str| {
            let i = Identity { kind: IdentityKind::Pod, namespace: "d".into(), name: name.into(), interface: nic.into() };
            identity_label(&i)
        };
        assert_eq!(of("a", "eth0"), of("a", "net1"));
        assert_ne!(of("a", "eth0"), of("b", "eth0"));
    }
}
