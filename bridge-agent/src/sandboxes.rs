//! The sandboxes of this host as they are: which NICs live in them, and whose they are by the mark. For what the journal should say
//! and does not, because its file was cut or emptied. Knows no lease; what follows is `leases::lost`'s and the sweep's.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use model::observed::{Link, LinkKind, Look, LookOvs, Scope};
use model::{AttachmentId, IfAddr, Owner, RunBy};
use plumbing::{Host, HostError, Netns};

use crate::attach::netns_ref;
use crate::journal::NetnsRef;

/// A NIC in a network namespace below the directory.
#[derive(Debug, Clone)]
pub struct Nic {
    pub netns: NetnsRef,
    pub link: Link,
    pub addrs: Vec<IfAddr>,
    /// By its mark; none where it is not this agent's.
    pub attachment: Option<AttachmentId>,
    /// Access VLAN of its port in Open vSwitch, where there is one and it could be looked at.
    pub vlan: Option<u16>,
}

/// A look at all sandboxes; takes about a millisecond for each.
pub type Looker = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Vec<Nic>, HostError>> + Send>> + Send + Sync>;

/// Looks at the namespaces that are below `dir` when it is called.
pub fn looker<H: Host + 'static>(host: Arc<H>, dir: PathBuf) -> Looker {
    Arc::new(move || {
        let (host, dir) = (host.clone(), dir.clone());
        Box::pin(async move { look(&*host, &dir).await })
    })
}

/// Attachments of this agent that have something in a sandbox.
pub async fn living<H: Host>(host: &H, dir: &Path) -> Result<HashSet<AttachmentId>, HostError> {
    Ok(look(host, dir).await?.into_iter().filter_map(|n| n.attachment).collect())
}

async fn look<H: Host>(host: &H, dir: &Path) -> Result<Vec<Nic>, HostError> {
    // Without an answer of Open vSwitch the NICs are still what they are.
    let ovs = match host.observe(None, &Scope { ovs: LookOvs::All, ..Scope::default() }).await {
        Ok(seen) => seen.ovs.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "looking at sandboxes without their ports");
            model::observed::Ovs::default()
        }
    };
    let ports = || ovs.bridges.iter().flat_map(|b| &b.ports);
    let mut out = Vec::new();
    for netns in namespaces(dir) {
        let path = netns.path().map(|p| p.to_string_lossy().into_owned());
        let seen = host.observe(Some(&netns), &Scope { pod: Look::All, ..Scope::default() }).await?.pod;
        for link in &seen.links {
            let owner = link.alias.as_deref().and_then(Owner::from_alias).filter(|o| o.by == RunBy::Agent);
            let attachment = owner.map(|o| o.attachment);
            if link.kind == LinkKind::Loopback || attachment.is_some_and(|a| is_host_end(link, a)) {
                continue;
            }
            let port = attachment.and_then(|a| {
                let id = a.to_string();
                ports().find(|p| p.external_ids.get(Owner::OVS_KEY) == Some(&id))
            });
            out.push(Nic {
                netns: netns_ref(&netns, path.as_deref()),
                link: link.clone(),
                addrs: seen.addrs_of(&link.name).map(|a| a.addr).collect(),
                attachment,
                vlan: port.and_then(|p| p.tag),
            });
        }
    }
    Ok(out)
}

/// A link of the host's own namespace, which somebody may have bound below the directory too: named by the attachment.
fn is_host_end(link: &Link, attachment: AttachmentId) -> bool {
    link.name.as_str().ends_with(attachment.link_name("").as_str())
}

/// What is no namespace (any more) is none: the file that `ip netns` leaves behind after a boot, one that goes meanwhile.
fn namespaces(dir: &Path) -> Vec<Netns> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            // It is made by the first sandbox.
            tracing::info!(dir = %dir.display(), %error, "no sandboxes to look at");
            return Vec::new();
        }
    };
    entries.flatten().filter_map(|e| Netns::open(e.path()).ok()).collect()
}
