//! STATUS: whether an ADD could be served. Fails only for the pod network, for a runtime whose STATUS fails starts no pod at
//! all; what is wrong with another network is a condition of the NodeNetwork (`status`).

use cni::{Error, NetConfList, Request, Verb, Version};
use model::observed::{Look, LookOvs, Scope};
use plumbing::Host;
use serde_json::Value;

use super::foreign::Foreign;
use super::gc::foreign_ipam;
use super::{Agent, Kind};
use crate::cni_server::{Runner, with_causes};

impl<H: Host + 'static> Agent<H> {
    pub(super) async fn status<R: Runner>(&self, kind: Kind, request: &Request, runner: &mut R) -> Result<(), Error> {
        let list = match kind {
            // What the node's own configuration names is the pods' network.
            Kind::Mooring => self
                .cluster_network(request.conf.raw())
                .await
                .map(|(_, list)| list)
                .map_err(|e| unavailable(format!("the cluster network cannot be read: {e}")))?,
            Kind::Ovs | Kind::Macvlan if self.me.primary.as_deref() == Some(request.conf.name.as_str()) => {
                NetConfList::from_value(Value::Object(request.conf.raw().clone()))?
            }
            _ => return Ok(()),
        };
        if let Some(what) = self.caches.missing() {
            return Err(unavailable(format!("the first list of {what} from the api server is not there yet")));
        }
        if self.journal.is_broken() {
            return Err(unavailable("the journal cannot be written: is the run directory's file system full".to_owned()));
        }
        // In a configuration of its own, `ovs` may be ours under that name.
        let ours = |i: usize| if kind == Kind::Mooring { Kind::of(list.kind(i)) } else { Some(kind) };
        let kinds: Vec<Option<Kind>> = (0..list.plugins.len()).map(ours).collect();
        if kinds.contains(&Some(Kind::Ovs)) {
            self.open_vswitch().await?;
        }
        self.status_of_foreign(&list, &kinds, &request.path, runner).await
    }

    /// Ports that are there may or may not forward: the database does not say without its server.
    async fn open_vswitch(&self) -> Result<(), Error> {
        let limited = |e: String| Error::new(Error::LIMITED, e);
        let scope = Scope { host: Look::Nothing, pod: Look::Nothing, ovs: LookOvs::All };
        let seen = self.host.observe(None, &scope).await.map_err(|e| limited(with_causes(&e)))?;
        match seen.ovs {
            Some(_) => Ok(()),
            None => Err(limited("Open vSwitch is not running on this node".to_owned())),
        }
    }

    async fn status_of_foreign<R: Runner>(
        &self,
        list: &NetConfList,
        kinds: &[Option<Kind>],
        path: &str,
        runner: &mut R,
    ) -> Result<(), Error> {
        if list.version < Version::V1_1_0 {
            return Ok(());
        }
        for (i, kind) in kinds.iter().enumerate() {
            let conf = list.plugin_conf(i, None, &serde_json::Map::new());
            let plugin = match kind {
                None => Some(list.kind(i).to_owned()),
                Some(Kind::Ovs | Kind::Macvlan) => conf.as_object().and_then(foreign_ipam),
                Some(_) => None,
            };
            let Some(plugin) = plugin else { continue };
            let foreign =
                Foreign { plugin: &plugin, verb: Verb::Status, container_id: "", netns: None, ifname: "", args: "", path, conf };
            self.exec(foreign, runner).await.map_err(|mut e| {
                // Whatever else it says, it cannot serve.
                if e.code != Error::LIMITED {
                    e.code = Error::NOT_AVAILABLE;
                }
                e
            })?;
        }
        Ok(())
    }
}

fn unavailable(why: String) -> Error {
    Error::new(Error::NOT_AVAILABLE, why)
}
