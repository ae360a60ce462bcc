//! `coordinator`, chained behind a main plugin: routes, rules, neighbours and host veth of one NIC, with knowledge of the
//! pod's others; and `ifacer`, which only asks whether a link is there. What is planned is `planner::coordinate`'s.

use api::annotations;
use api::spider::{CoordinatorMode, CoordinatorSettings};
use cni::{AddResult, Error, Request};
use cni_plugin::error_of;
use model::observed::{Look, LookOvs, Scope};
use model::{AttachmentId, IfName, Owner, RunBy};
use planner::coordinate::{self, CoordinateInput, Mode, Settings};
use planner::{Nic, Plan};
use plumbing::Host;
use serde_json::{Map, Value};

use super::nic::{apply_error, host_error};
use super::{Agent, Turn, call_of, hung_up, ifname, netns_ref, one_line};
use crate::caches::Pod;
use crate::journal::{Entry, Key, Role, State, Work};

/// The SpiderCoordinator that counts: Spiderpool's is in effect a singleton of this name.
pub(crate) const COORDINATOR: &str = "default";

/// What a coordinator's DEL needs, kept in the configuration of its entry.
const IPS_KEY: &str = "mooring.dev/ips";
const TABLE_KEY: &str = "mooring.dev/hostRuleTable";

impl<H: Host + 'static> Agent<H> {
    pub(crate) async fn coordinator_add(&self, turn: Turn<'_>) -> Result<AddResult, Error> {
        let request = turn.request;
        let name = ifname(request)?;
        let netns = turn.netns.ok_or_else(|| Error::env("CNI_NETNS: its descriptor did not come with the call"))?;
        let prev = request
            .conf
            .prev_result
            .clone()
            .ok_or_else(|| Error::config("prevResult is missing, the coordinator is chained behind a main plugin"))?;
        let key = Key::new(&request.container_id, name.as_str(), Role::Coordinator);
        if self.journal.get(&key).is_some() {
            self.coordinator_del(&request.container_id, name).await?;
        }
        let (nic, settings, nics) = self.coordinator_input(&turn).await?;
        let owner = owner(&request.container_id, name);
        let scope = Scope { host: Look::All, pod: Look::All, ovs: LookOvs::Nothing };
        // One after the other: all pods share the host's rule, and who fails must not take away what another one counts on.
        let _alone = self.coordinating.lock().await;
        let seen = self.host.observe(Some(netns), &scope).await.map_err(|e| host_error(&e))?;
        let input = CoordinateInput {
            owner,
            ifname: name,
            nic: &nic,
            settings: &settings,
            pod_nics: &nics,
            pod: &seen.pod,
            host: &seen.host,
        };
        let plan = coordinate::plan(&input).map_err(|r| error_of(&r))?;
        if turn.abort.is_set() {
            return Err(hung_up());
        }
        let mut call = call_of(request);
        if let Value::Object(o) = &mut call.conf {
            o.insert(IPS_KEY.to_owned(), nic.addrs.iter().map(|a| Value::from(a.ip().to_string())).collect());
            o.insert(TABLE_KEY.to_owned(), settings.host_rule_table.into());
        }
        let mut entry = Entry {
            key: key.clone(),
            state: State::Adding,
            pod: request.pod(),
            netns: Some(netns_ref(netns, request.netns.as_deref())),
            network: request.conf.name.clone(),
            runtime: turn.runtime.to_owned(),
            work: Work::Coordinator(call),
        };
        self.write(entry.clone())?;
        tracing::debug!(container = request.container_id, ifname = %name, plan = one_line(&plan), "coordinate");
        if let Err(e) = self.host.apply(Some(netns), &plan).await {
            if e.undone() {
                self.forget(&key);
            } else if let Err(error) = self.coordinator_del(&request.container_id, name).await {
                tracing::warn!(container = request.container_id, ifname = %name, %error, "failed to take the coordinator's part back, DEL or the next start will");
            }
            return Err(apply_error(&e));
        }
        entry.state = State::Added;
        if let Err(e) = self.write(entry) {
            // The pod's part goes with the NIC, which the runtime takes away after this failure.
            if let Err(error) = self.host.apply(Some(netns), &plan.undo(plan.steps.len())).await {
                tracing::warn!(container = request.container_id, ifname = %name, %error, "failed to take the coordinator's part back");
            }
            self.forget(&key);
            return Err(e);
        }
        let before = prev.pod_interface(name.as_str()).map(|(_, i)| i.mac.clone());
        let result = corrected(prev, name, &plan);
        let now = result.pod_interface(name.as_str()).map(|(_, i)| i.mac.clone());
        if before != now {
            self.note_mac(request, name, now).await;
        }
        Ok(result)
    }

    /// The SpiderEndpoint tells the address that the NIC has now.
    async fn note_mac(&self, request: &Request, name: &IfName, mac: Option<String>) {
        let Some(mut main) = self.journal.get(&Key::new(&request.container_id, name.as_str(), Role::Main)) else { return };
        if let Work::Main(c) = &mut main.work {
            c.mac = mac;
        }
        if let Err(error) = self.write(main) {
            tracing::warn!(container = request.container_id, %error, "failed to note a hardware address");
        }
        if let Some(pod) = request.pod().and_then(|p| self.caches.pod_now(&p.namespace, &p.name)) {
            self.publish(&pod, &request.container_id).await;
        }
    }

    /// By the mark, and by the addresses in our table; needs neither API nor pod.
    pub(crate) async fn coordinator_del(&self, container: &str, name: &IfName) -> Result<(), Error> {
        let key = Key::new(container, name.as_str(), Role::Coordinator);
        let entry = self.journal.get(&key);
        let (mut ips, mut table) = (Vec::new(), Settings::default().host_rule_table);
        if let Some(e) = &entry {
            self.note(Entry { state: State::Deleting, ..e.clone() });
            if let Work::Coordinator(c) = &e.work {
                let listed = c.conf.get(IPS_KEY).and_then(Value::as_array);
                ips = listed.into_iter().flatten().filter_map(|v| v.as_str().and_then(|s| s.parse().ok())).collect();
                table = c.conf.get(TABLE_KEY).and_then(Value::as_u64).and_then(|t| u32::try_from(t).ok()).unwrap_or(table);
            }
        }
        let scope = Scope { host: Look::All, pod: Look::Nothing, ovs: LookOvs::Nothing };
        let seen = self.host.observe(None, &scope).await.map_err(|e| host_error(&e))?;
        let owner = owner(container, name);
        let mut plan = coordinate::plan_del(owner, &ips, table, &seen.host);
        // The pair as a process left it that ended between its birth and its mark.
        let pair = owner.attachment.link_name(coordinate::HOST_VETH_PREFIX);
        if entry.as_ref().is_some_and(|e| e.state != State::Added) && seen.host.link(&pair).is_some_and(|l| l.alias.is_none()) {
            plan.push(planner::Step::DelLink { ns: planner::Ns::Host, name: pair });
        }
        self.host.apply(None, &plan).await.map_err(|e| apply_error(&e))?;
        if entry.is_some() {
            self.forget(&key);
        }
        Ok(())
    }

    /// What would still be done is what is missing. Sysctls are not observed, so they do not count.
    pub(crate) async fn coordinator_check(&self, turn: Turn<'_>) -> Result<(), Error> {
        let name = ifname(turn.request)?;
        let (nic, settings, nics) = self.coordinator_input(&turn).await?;
        let scope = Scope { host: Look::All, pod: Look::All, ovs: LookOvs::Nothing };
        let seen = self.host.observe(turn.netns, &scope).await.map_err(|e| host_error(&e))?;
        let owner = owner(&turn.request.container_id, name);
        let input = CoordinateInput {
            owner,
            ifname: name,
            nic: &nic,
            settings: &settings,
            pod_nics: &nics,
            pod: &seen.pod,
            host: &seen.host,
        };
        let plan = coordinate::plan(&input).map_err(|r| error_of(&r))?;
        let missing: Vec<String> = plan
            .steps
            .iter()
            .filter(|s| !matches!(s, planner::Step::SetSysctl { .. } | planner::Step::Announce { .. }))
            .map(ToString::to_string)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::new(Error::CHECK, format!("{name} is not as the coordinator left it")).with_details(missing.join("; ")))
    }

    async fn coordinator_input(&self, turn: &Turn<'_>) -> Result<(Nic, Settings, Vec<IfName>), Error> {
        let request = turn.request;
        let pod = self.pod_of(turn).await?;
        // A node without the CRD, or an API server that is away: what is known is used.
        if let Err(error) = self.caches.ready_for_coordinator().await {
            tracing::warn!(%error, "coordinating without a SpiderCoordinator");
        }
        let settings = self.coordinator_settings(request.conf.raw(), pod.as_deref())?;
        let nics = self.nics_of(pod.as_deref(), turn)?;
        let nics = nics
            .into_iter()
            .map(|n| IfName::new(n.name))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Error::config(e.to_string()))?;
        let mut nic = cni_plugin::attach::nic_of_prev(request);
        nic.has_ipam = !nic.addrs.is_empty();
        Ok((nic, settings, nics))
    }

    /// The pod's annotation over the network's settings over the SpiderCoordinator's. One that is NotReady gives what it has.
    pub(crate) fn coordinator_settings(&self, conf: &Map<String, Value>, pod: Option<&Pod>) -> Result<Settings, Error> {
        let text = Value::Object(conf.clone());
        let own: CoordinatorSettings =
            serde_json::from_value(text).map_err(|e| Error::config(format!("the coordinator's configuration: {e}")))?;
        let cr = self.caches.coordinator(COORDINATOR);
        let s = api::convert::coordinator(&own, cr.as_deref()).map_err(|e| Error::config(format!("coordinator: {e}")))?;
        let named = pod
            .map(|p| annotations::default_route_nic(p.annotations()))
            .transpose()
            .map_err(|e| Error::config(format!("annotation {e}")))?
            .flatten();
        Ok(Settings {
            mode: match s.mode {
                CoordinatorMode::Auto => Mode::Auto,
                CoordinatorMode::Underlay => Mode::Underlay,
                CoordinatorMode::Overlay => Mode::Overlay,
                CoordinatorMode::Disabled => Mode::Disabled,
            },
            tune_pod_routes: s.tune_pod_routes,
            default_route_nic_by_pod: named.is_some(),
            default_route_nic: named.or(s.default_route_nic),
            cidrs: s.cidrs,
            hijack: s.hijack,
            policy_routes: s.policy_routes,
            mac_prefix: s.mac_prefix,
            rp_filter: s.pod_rp_filter,
            tx_queue_len: s.tx_queue_len,
            veth_link_address: s.veth_link_address,
            veth_mtu: s.veth_mtu,
            host_rule_table: s.host_rule_table,
        })
    }

    /// The links that an old NAD wants are made by host networking. Here they are there, or they are not.
    pub(crate) async fn ifacer_add(&self, request: &Request) -> Result<AddResult, Error> {
        let raw = request.conf.raw();
        let strings = |key: &str| {
            raw.get(key)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let masters = strings("interfaces");
        let bond = raw.get("bond").and_then(|b| b.get("name")).and_then(Value::as_str).unwrap_or("sp_bond0");
        let base = match masters.as_slice() {
            [] => return Err(Error::config("interfaces: missing, ifacer needs the parent's name")),
            [one] => one.as_str(),
            _ => bond,
        };
        let vlan = raw.get("vlanID").and_then(Value::as_u64).unwrap_or(0);
        let wanted = if vlan == 0 { base.to_owned() } else { format!("{base}.{vlan}") };
        let wanted = IfName::new(wanted).map_err(|e| Error::config(e.to_string()))?;
        let scope = Scope { host: Look::Links(vec![wanted.clone()]), pod: Look::Nothing, ovs: LookOvs::Nothing };
        let seen = self.host.observe(None, &scope).await.map_err(|e| host_error(&e))?;
        if seen.host.link(&wanted).is_none() {
            return Err(Error::new(
                Error::MISSING,
                format!(
                    "interface {wanted} is not on this node: bonds and vlan devices are made by host networking, not when a pod starts"
                ),
            ));
        }
        Ok(request.conf.prev_result.clone().unwrap_or_default())
    }
}

fn owner(container: &str, name: &IfName) -> Owner {
    Owner { attachment: AttachmentId::of(container, name.as_str()), by: RunBy::Agent }
}

/// The result with the hardware address that the plan gave the NIC.
fn corrected(mut result: AddResult, name: &IfName, plan: &Plan) -> AddResult {
    let mac = plan.steps.iter().find_map(|s| match s {
        planner::Step::SetLink { ns: planner::Ns::Pod, name: n, set, .. } if n == name => set.mac,
        _ => None,
    });
    if let (Some(mac), Some((i, _))) = (mac, result.pod_interface(name.as_str())) {
        result.interfaces[i].mac = mac.to_string();
    }
    result
}
