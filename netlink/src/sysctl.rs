//! Reading and writing /proc/sys/net of a network namespace. Below `net/` the kernel shows the tree of the namespace that the
//! *looking task* is in (`sysctl_net.c`), so it is done on a thread that entered it.

use std::io;
use std::path::PathBuf;

use crate::{Error, Netns};

/// `key` is dotted (`net.ipv4.conf.eth0.arp_notify`) or slashed (`net/ipv4/conf/eth0.100/arp_notify`, in which dots belong to
/// a name), as sysctl(8) takes it.
pub fn write(netns: Option<&Netns>, key: &str, value: &str) -> Result<(), Error> {
    let path = path(key)?;
    let failed = |source| Error::Sysctl { act: "write", key: key.to_owned(), source };
    within(netns, || std::fs::write(path, value))?.map_err(failed)
}

/// Without the line end.
pub fn read(netns: Option<&Netns>, key: &str) -> Result<String, Error> {
    let path = path(key)?;
    let failed = |source| Error::Sysctl { act: "read", key: key.to_owned(), source };
    within(netns, || std::fs::read_to_string(path))?.map(|v| v.trim_end().to_owned()).map_err(failed)
}

fn within<T: Send>(netns: Option<&Netns>, act: impl FnOnce() -> io::Result<T> + Send) -> Result<io::Result<T>, Error> {
    match netns {
        Some(n) => n.enter(act),
        None => Ok(act()),
    }
}

fn path(key: &str) -> Result<PathBuf, Error> {
    let slashed = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    let plain = slashed.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !plain || !slashed.starts_with("net/") {
        return Err(Error::SysctlKey { key: key.to_owned() });
    }
    Ok(PathBuf::from("/proc/sys").join(slashed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_dotted_or_slashed() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap().to_str(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            path("net/ipv4/conf/eth0.100/rp_filter").unwrap().to_str(),
            Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter")
        );
    }

    #[test]
    fn keys_outside_the_namespaces_own_tree_are_refused() {
        for bad in ["kernel.panic", "net/../kernel/panic", "net", "/net/ipv4/ip_forward", "net//ipv4", "", "net/ipv4/./x"] {
            assert!(matches!(path(bad), Err(Error::SysctlKey { .. })), "{bad:?}");
        }
    }
}
