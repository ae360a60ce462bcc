//! A NIC of one of our main plugins: look, plan, note, apply; and back. Does not know what a plan holds.

use std::net::IpAddr;

use cni::{AddResult, Error, Request, Verb};
use cni_plugin::{attach_of, check_error, error_of, nic_of, result_of};
use model::observed::{Link, LinkKind, Look, LookOvs, Observed, Scope};
use model::{MacAddr, RunBy};
use planner::{Aim, Attach, MainPlugin, Nic, Ns, Plan, Step};
use plumbing::{ApplyError, Host, HostError, Netns, StepError};

use super::foreign::Foreign;
use super::probe::TRIES;
use super::{
    Agent, Kind, Turn, call_of, del_request, hung_up, ifname, is_noted, living_netns, netns_ref, one_line, without_prev,
};
use crate::cni_server::Runner;
use crate::journal::{Entry, Key, Role, State, Work};

/// A plugin's checked configuration, with its access VLAN for the SpiderEndpoint.
struct Plugin {
    main: Box<dyn MainPlugin>,
    vlan: Option<u16>,
    /// The database that the configuration names.
    socket_file: Option<String>,
}

/// Why a NIC was not made.
enum Failed {
    /// A stranger with this hardware address uses the address.
    Duplicate(IpAddr, MacAddr),
    Call(Error),
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Failed::Call(e)
    }
}

impl<H: Host + 'static> Agent<H> {
    pub(crate) async fn nic_add<R: Runner>(&self, turn: Turn<'_>, runner: &mut R) -> Result<AddResult, Error> {
        let request = turn.request;
        let name = ifname(request)?;
        let key = Key::new(&request.container_id, name.as_str(), Role::Main);
        if let Some(e) = self.journal.get(&key) {
            if e.state == State::Added {
                return Err(Error::new(
                    Error::CONFLICT,
                    format!("interface {name} of this container was added already, DEL has to come first"),
                ));
            }
            // An earlier ADD whose undoing was not finished.
            self.take_away(&e, runner).await?;
        }
        let netns = turn.netns.ok_or_else(|| Error::env("CNI_NETNS: its descriptor did not come with the call"))?;
        let plugin = plugin_of(request)?;
        self.is_our_database(&plugin)?;
        let bare = attach_of(request, Nic::default(), RunBy::Agent)?;
        let seen = self.host.observe(Some(netns), &plugin.main.scope(&bare, Aim::Add)).await.map_err(|e| host_error(&e))?;
        // What is wrong without an address is wrong with one: refused before one is taken. The plan with it is made of the same
        // look: whoever changes the pod or its master meanwhile makes a step fail, as he would a moment later.
        plugin.main.plan_add(&bare, &seen).map_err(|r| error_of(&r))?;
        let mut known = turn.known.clone();
        if request.conf.ipam_type() == Some("spiderpool") {
            known.pod = self.pod_of(&turn).await?;
        }
        let turn = Turn { known: &known, ..turn };
        let mut entry = Entry {
            key,
            state: State::Adding,
            pod: request.pod(),
            netns: Some(netns_ref(netns, request.netns.as_deref())),
            network: request.conf.name.clone(),
            runtime: turn.runtime.to_owned(),
            work: Work::Main(call_of(request)),
        };
        let mut tries = TRIES;
        loop {
            let ipam = self.ipam(&turn, &entry, runner).await?;
            let failed = match self.make(&turn, &plugin, netns, &seen, &mut entry, ipam.as_ref()).await {
                Ok(result) => {
                    if let Some(pod) = &known.pod {
                        self.publish(pod, &request.container_id).await;
                    }
                    let ips: Vec<_> = result.ips.iter().map(|i| i.address.ip()).collect();
                    self.announce_again(entry, name.clone(), ips);
                    return Ok(result);
                }
                Err(Failed::Duplicate(ip, mac)) => self.is_duplicate(&turn, ip, mac, &mut tries).await,
                Err(Failed::Call(e)) => Err(e),
            };
            self.unmake(&turn, &plugin, &entry, runner).await;
            failed?;
        }
    }

    /// The agent is connected to one Open vSwitch: a port that the configuration wants elsewhere would be made on the wrong one.
    fn is_our_database(&self, plugin: &Plugin) -> Result<(), Error> {
        let (Some(wanted), Some(ours)) = (&plugin.socket_file, &self.me.ovsdb) else { return Ok(()) };
        // /var/run is a link to /run on most hosts.
        let real = |path: &str| std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        if ours.strip_prefix("unix:").is_some_and(|path| real(path) == real(wanted)) {
            return Ok(());
        }
        Err(Error::config(format!(
            "socket_file {wanted:?}: the agent of this node works on {ours:?} (its --ovsdb), ports cannot be made on another database"
        )))
    }

    /// The addresses, of whichever IPAM. After an error nothing is held.
    async fn ipam<R: Runner>(&self, turn: &Turn<'_>, entry: &Entry, runner: &mut R) -> Result<Option<AddResult>, Error> {
        let request = turn.request;
        let Some(kind) = request.conf.ipam_type() else { return Ok(None) };
        // Noted first: whatever becomes of us, the next start or a DEL gives back what is taken from here on.
        self.write(entry.clone())?;
        match kind {
            "spiderpool" => {
                let given = self.addresses_add(turn).await;
                if given.is_err() {
                    self.forget(&entry.key);
                }
                given.map(Some)
            }
            _ => {
                let given = self.exec_ipam(request, Verb::Add, runner).await;
                let given = given.and_then(|r| {
                    r.filter(|r| !r.ips.is_empty()).ok_or_else(|| Error::new(Error::DELEGATE, "the ipam plugin gave no address"))
                });
                if given.is_err() {
                    self.end_ipam(request, entry, runner).await;
                }
                given.map(Some)
            }
        }
    }

    async fn make(
        &self,
        turn: &Turn<'_>,
        plugin: &Plugin,
        netns: &Netns,
        seen: &Observed,
        entry: &mut Entry,
        ipam: Option<&AddResult>,
    ) -> Result<AddResult, Failed> {
        let request = turn.request;
        let nic = ipam.map(nic_of).unwrap_or_default();
        let mut attach = attach_of(request, nic, RunBy::Agent)?;
        if let (None, Some(conf)) = (attach.mac, &turn.known.coordinator) {
            let settings = self.coordinator_settings(conf, turn.known.pod.as_deref())?;
            attach.mac = planner::coordinate::pod_mac(&settings, &attach.nic);
        }
        attach.probe = self.probe_of(turn).await?;
        let plan = plugin.main.plan_add(&attach, seen).map_err(|r| error_of(&r))?;
        if turn.abort.is_set() {
            return Err(hung_up().into());
        }
        if let Work::Main(c) = &mut entry.work {
            c.vlan = plugin.vlan;
            c.mac = plugin.main.mac(&attach).map(|m| m.to_string());
        }
        self.write(entry.clone())?;
        tracing::debug!(container = request.container_id, ifname = %attach.ifname, plan = one_line(&plan), "add");
        self.host.apply(Some(netns), &plan).await.map_err(|e| match *e.cause {
            StepError::Duplicate { ip, mac } => Failed::Duplicate(ip, mac),
            _ => Failed::Call(apply_error(&e)),
        })?;
        let result = result_of(&attach, &plan, request, ipam)?;
        entry.state = State::Added;
        self.write(entry.clone())?;
        Ok(result)
    }

    /// After a failed `make`: what `apply` could not undo, and the addresses. What is left stays noted for DEL.
    async fn unmake<R: Runner>(&self, turn: &Turn<'_>, plugin: &Plugin, entry: &Entry, runner: &mut R) {
        let gone = match attach_of(turn.request, Nic::default(), RunBy::Agent) {
            Ok(attach) => self.remove(plugin.main.as_ref(), &attach, turn.netns).await,
            Err(e) => Err(e),
        };
        if let Err(error) = &gone {
            tracing::warn!(container = entry.key.container_id, ifname = entry.key.ifname, %error, "failed to take back a nic, DEL or the next start will");
            self.note_deleting(entry);
            return;
        }
        if turn.request.conf.ipam_type() == Some("spiderpool") {
            if let Err(error) = self.addresses_undo(&entry.key.container_id, &entry.key.ifname).await {
                tracing::warn!(container = entry.key.container_id, %error, "failed to give addresses back");
            }
            self.forget(&entry.key);
        } else {
            self.end_ipam(turn.request, entry, runner).await;
        }
    }

    /// Lets a foreign IPAM plugin take its addresses back and strikes the entry, or keeps it for the runtime's DEL.
    async fn end_ipam<R: Runner>(&self, request: &Request, entry: &Entry, runner: &mut R) {
        let done = if request.conf.ipam_type().is_some() {
            self.exec_ipam(request, Verb::Del, runner).await.map(|_| ())
        } else {
            Ok(())
        };
        match done {
            Ok(()) => self.forget(&entry.key),
            Err(error) => {
                tracing::warn!(container = entry.key.container_id, ifname = entry.key.ifname, %error, "the ipam plugin did not take its address back, DEL will ask again");
                self.note_deleting(entry);
            }
        }
    }

    fn note_deleting(&self, entry: &Entry) {
        let noted = self.write(Entry { state: State::Deleting, ..entry.clone() });
        if let Err(error) = noted {
            tracing::warn!(%error, "failed to note what is left of a failed add");
        }
    }

    async fn exec_ipam<R: Runner>(&self, request: &Request, verb: Verb, runner: &mut R) -> Result<Option<AddResult>, Error> {
        let plugin = request.conf.ipam_type().unwrap_or_default().to_owned();
        let foreign = Foreign {
            plugin: &plugin,
            verb,
            container_id: &request.container_id,
            netns: request.netns.as_deref(),
            ifname: ifname(request)?.as_str(),
            args: &request.raw_args,
            path: &request.path,
            conf: if verb == Verb::Check { serde_json::Value::Object(request.conf.raw().clone()) } else { without_prev(request) },
        };
        self.exec(foreign, runner).await
    }

    pub(crate) async fn nic_del<R: Runner>(&self, turn: Turn<'_>, runner: &mut R) -> Result<(), Error> {
        let name = ifname(turn.request)?;
        let key = Key::new(&turn.request.container_id, name.as_str(), Role::Main);
        let entry = self.journal.get(&key);
        // The recorded configuration is the one that it was made by; the runtime's may have been edited since.
        let recorded = match &entry {
            Some(e @ Entry { work: Work::Main(c), .. }) => {
                Some(del_request(e, &c.conf, &c.args, if turn.request.path.is_empty() { &c.path } else { &turn.request.path })?)
            }
            _ => None,
        };
        let request = recorded.as_ref().unwrap_or(turn.request);
        if let Some(e) = &entry {
            self.note(Entry { state: State::Deleting, ..e.clone() });
        }
        let reopened = match (turn.netns, &entry) {
            (None, Some(e)) => living_netns(e),
            _ => None,
        };
        // Another namespace at the same path is not the one that ADD saw.
        let same = |n: &&Netns| entry.as_ref().is_none_or(|e| is_noted(e, n));
        let netns = turn.netns.filter(same).or(reopened.as_ref());
        let plugin = plugin_of(request)?;
        let attach = attach_of(request, Nic::default(), RunBy::Agent)?;
        self.remove(plugin.main.as_ref(), &attach, netns).await?;
        if entry.as_ref().is_some_and(|e| e.state != State::Added) {
            self.remove_unmarked(plugin.main.as_ref(), &attach, netns).await?;
        }
        match request.conf.ipam_type() {
            None => {}
            // The address last: it is never free while its port lives.
            Some("spiderpool") => self.addresses_del(&request.container_id, name.as_str()).await?,
            Some(_) => {
                self.exec_ipam(request, Verb::Del, runner).await?;
            }
        }
        self.forget(&key);
        Ok(())
    }

    async fn remove(&self, plugin: &dyn MainPlugin, attach: &Attach, netns: Option<&Netns>) -> Result<(), Error> {
        let seen = self.host.observe(netns, &plugin.scope(attach, Aim::Del)).await.map_err(|e| host_error(&e))?;
        let plan = plugin.plan_del(attach, &seen);
        self.host.apply(netns, &plan).await.map_err(|e| apply_error(&e))
    }

    /// A link has its mark a moment after its birth: a process that ended in between left one without. The journal says that
    /// it was being made, by these names, which were free before.
    async fn remove_unmarked(&self, plugin: &dyn MainPlugin, attach: &Attach, netns: Option<&Netns>) -> Result<(), Error> {
        let host = plugin.host_link(attach);
        let scope = Scope {
            host: Look::Links(host.iter().cloned().collect()),
            pod: Look::Links(vec![attach.ifname.clone()]),
            ovs: LookOvs::Nothing,
        };
        let seen = self.host.observe(netns, &scope).await.map_err(|e| host_error(&e))?;
        let ours = |l: &&Link| l.alias.is_none() && matches!(l.kind, LinkKind::Veth | LinkKind::Macvlan { .. });
        let on_host = host
            .iter()
            .filter_map(|n| seen.host.link(n))
            .filter(ours)
            .map(|l| Step::DelLink { ns: Ns::Host, name: l.name.clone() });
        // A veth's end in the pod goes with the one on the host.
        let in_pod = seen.pod.link(&attach.ifname).filter(ours).filter(|l| l.kind != LinkKind::Veth);
        let in_pod = in_pod.map(|l| Step::DelLink { ns: Ns::Pod, name: l.name.clone() });
        let plan: Plan = on_host.chain(in_pod).collect();
        self.host.apply(netns, &plan).await.map_err(|e| apply_error(&e))
    }

    pub(crate) async fn nic_check<R: Runner>(&self, turn: Turn<'_>, runner: &mut R) -> Result<(), Error> {
        let request = turn.request;
        let name = ifname(request)?;
        let plugin = plugin_of(request)?;
        self.is_our_database(&plugin)?;
        let mut attach = attach_of(request, cni_plugin::attach::nic_of_prev(request), RunBy::Agent)?;
        // A chained plugin may have changed it; the result says what it is.
        let prev =
            request.conf.prev_result.as_ref().and_then(|r| r.pod_interface(name.as_str())).and_then(|(_, i)| i.mac.parse().ok());
        attach.mac = prev.or(attach.mac);
        match request.conf.ipam_type() {
            None => {}
            Some("spiderpool") => self.addresses_check(request)?,
            Some(_) => {
                self.exec_ipam(request, Verb::Check, runner).await?;
            }
        }
        let seen = self.host.observe(turn.netns, &plugin.main.scope(&attach, Aim::Check)).await.map_err(|e| host_error(&e))?;
        plugin.main.check(&attach, &seen).map_err(|r| check_error(&r))
    }
}

fn plugin_of(request: &Request) -> Result<Plugin, Error> {
    match Kind::of_call(request) {
        Some(Kind::Macvlan) => {
            let conf = cni_macvlan::Conf::parse(request).map_err(|r| error_of(&r))?;
            Ok(Plugin { main: Box::new(conf), vlan: None, socket_file: None })
        }
        Some(Kind::Ovs) => {
            let flat = flat_file(request)?;
            let conf = cni_ovs::Conf::parse(request, flat.as_deref()).map_err(|r| error_of(&r))?;
            if let Some(tag) = conf.dropped_vlan {
                tracing::warn!(network = request.conf.name, vlan = tag.get(), "vlan has no effect beside trunk, as in ovs-cni");
            }
            // Of frames without a tag, as the pod's own stack sends them.
            let (tag, _) = conf.vlans.columns();
            let vlan = tag.map(|tag| tag.get());
            let socket_file = conf.socket_file.clone();
            Ok(Plugin { main: Box::new(conf), vlan, socket_file })
        }
        _ => Err(Error::config(format!("type {:?}: is no main plugin of ours", request.conf.kind))),
    }
}

/// ovs-cni's flat file, where there is one: a few hundred bytes on the node's disk.
fn flat_file(request: &Request) -> Result<Option<String>, Error> {
    let files = match cni_ovs::Conf::flat_file_of(request) {
        Ok(f) => f,
        // DEL refuses nothing.
        Err(_) if request.verb == Verb::Del => return Ok(None),
        Err(r) => return Err(error_of(&r)),
    };
    Ok(files.iter().find_map(|f| std::fs::read_to_string(f).ok()))
}

pub(crate) fn host_error(e: &HostError) -> Error {
    let code = match e {
        HostError::Ovs { .. } => Error::TRY_AGAIN,
        _ => Error::IO_FAILURE,
    };
    Error::new(code, crate::cni_server::with_causes(e))
}

pub(crate) fn apply_error(e: &ApplyError) -> Error {
    let code = if matches!(e.reason(), "OpenVSwitchDown" | "Changed" | "GatewaySilent" | "NoCarrier") {
        Error::TRY_AGAIN
    } else {
        Error::APPLY
    };
    Error::new(code, e.to_string())
}
