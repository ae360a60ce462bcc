//! The comparison at start: what the journal says, what on the host carries our mark, and which network namespaces live. What
//! does not fit is taken away; what a plugin made alone is left alone. Runs before the socket is served, so that no call
//! comes in between. Leases need the API server: `ipam::machine` compares them, behind.

use std::collections::HashSet;

use cni::Error;
use model::{AttachmentId, IfName, Owner, RunBy};
use planner::step::{Port, PortSet};
use planner::{Ns, Plan, Step};
use plumbing::{Host, Marked, What};

use crate::attach::{Agent, living_netns};
use crate::cni_server::NoRunner;
use crate::journal::{Entry, Role, State};
use crate::sandboxes;

/// What the sweep did, for the log and for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries that were begun and not finished, or whose sandbox is gone.
    pub entries: usize,
    /// Of those, the ones that stay for the runtime's DEL.
    pub left: usize,
    /// Marked links and ports that no entry stands for, and no sandbox has.
    pub marks: usize,
}

impl<H: Host + 'static> Agent<H> {
    /// Journal and host.
    pub async fn sweep(&self) -> Swept {
        let mut swept = Swept::default();
        let mut entries: Vec<Entry> = self.journal.all().into_iter().filter(is_dead).collect();
        // The meta plugin's entries take those of their delegates along, a NIC's its addresses.
        entries.sort_by_key(|e| match e.key.role {
            Role::Meta => 0,
            Role::Coordinator => 1,
            Role::Main => 2,
            Role::Addresses => 3,
        });
        for entry in entries {
            if self.journal.get(&entry.key).is_none() {
                continue;
            }
            swept.entries += 1;
            let (container, ifname, role) = (&entry.key.container_id, &entry.key.ifname, entry.key.role);
            match self.take_away(&entry, &mut NoRunner).await {
                Ok(()) => {
                    tracing::info!(container, ifname, ?role, state = ?entry.state, "took away what was left of an earlier life")
                }
                Err(error) => {
                    swept.left += 1;
                    tracing::warn!(container, ifname, ?role, %error, "something of an earlier life is left for the runtime's DEL");
                }
            }
        }
        match self.sweep_marks().await {
            Ok(n) => swept.marks = n,
            Err(error) => tracing::warn!(%error, "failed to compare the marks on the host with the journal, the next start will"),
        }
        swept
    }

    async fn sweep_marks(&self) -> Result<usize, Error> {
        let known: HashSet<AttachmentId> =
            self.journal.all().iter().map(|e| AttachmentId::of(&e.key.container_id, &e.key.ifname)).collect();
        let marked = self.host.find_marked(None).await.map_err(|e| crate::attach::nic::host_error(&e))?;
        let mut strays: Vec<Marked> =
            marked.into_iter().filter(|m| m.owner.by == RunBy::Agent && !known.contains(&m.owner.attachment)).collect();
        if !strays.is_empty() {
            // Not what the journal has merely lost: its sandbox lives, and DEL finds it by the mark. Its lease stays as well.
            let living = sandboxes::living(&*self.host, &self.me.netns_dir).await;
            let living = living.map_err(|e| crate::attach::nic::host_error(&e))?;
            strays.retain(|m| !living.contains(&m.owner.attachment));
        }
        for m in &strays {
            tracing::info!(attachment = %m.owner.attachment, what = ?m.what, "nothing stands for this mark, taking it away");
        }
        self.host.apply(None, &removal(&strays)).await.map_err(|e| crate::attach::nic::apply_error(&e))?;
        Ok(strays.len())
    }
}

/// Begun and not finished, being undone, or of a sandbox whose namespace is no longer at its path.
fn is_dead(e: &Entry) -> bool {
    e.state != State::Added || (e.netns.is_some() && living_netns(e).is_none())
}

/// Ports before links: a port whose device is gone is an error that Open vSwitch logs.
fn removal(strays: &[Marked]) -> Plan {
    let ports = strays.iter().filter_map(|m| match &m.what {
        What::Port { bridge, port } => {
            let bridge = IfName::new(bridge.as_str()).ok()?;
            let mark = [(Owner::OVS_KEY.to_owned(), Some(m.owner.attachment.to_string()))];
            let set = PortSet { external_ids: mark.into(), ..PortSet::default() };
            Some(Step::DelPort { bridge, port: Port { name: port.clone(), interfaces: Vec::new(), set } })
        }
        What::Link { .. } => None,
    });
    let links = strays.iter().filter_map(|m| match &m.what {
        What::Link { ns: Ns::Host, name } => Some(Step::DelLink { ns: Ns::Host, name: name.clone() }),
        _ => None,
    });
    ports.chain(links).collect()
}
