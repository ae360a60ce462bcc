//! A macvlan in a pod: configuration of the reference plugin `macvlan` in, plan out. Pure; knows nothing of sockets, IPAM
//! plugins or how a step is carried out.

use cni::Request;
use cni_plugin::fields::{Fields, wrong};
use cni_plugin::nic;
use model::observed::{Link, Look, LookOvs, MacvlanMode, Observed, Scope};
use model::{IfName, MacAddr, Mtu};
use planner::step::Macvlan;
use planner::{Aim, Attach, Class, MainPlugin, Ns, Plan, Refusal, Step};

/// Keys that are the plugin's own; `cni::conf::KEYS` are everybody's.
pub const KEYS: &[&str] = &["master", "mode", "mtu", "linkInContainer", "bcqueuelen"];

/// The keys of the reference plugin (containernetworking/plugins, plugins/main/macvlan) that are not CNI's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    /// None: the NIC of the default route.
    pub master: Option<IfName>,
    pub mode: Mode,
    /// None (absent or 0): the master's.
    pub mtu: Option<Mtu>,
    /// The master is in the container, not on the host.
    pub link_in_container: bool,
    /// Packets; none leaves it to the kernel (1000).
    pub bc_queue_len: Option<u32>,
}

/// `MacvlanMode` with the plugin's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub MacvlanMode);

impl Default for Mode {
    fn default() -> Self {
        Self(MacvlanMode::Bridge)
    }
}

const MODES: [(&str, MacvlanMode); 4] = [
    ("bridge", MacvlanMode::Bridge),
    ("private", MacvlanMode::Private),
    ("vepa", MacvlanMode::Vepa),
    ("passthru", MacvlanMode::Passthru),
];

fn mode_name(mode: MacvlanMode) -> &'static str {
    MODES.iter().find(|(_, m)| *m == mode).map_or("bridge", |(name, _)| name)
}

impl Conf {
    /// Checks every key. At DEL nothing is refused: whatever ADD was told, what it left must go.
    pub fn parse(request: &Request) -> Result<Self, Refusal> {
        let parsed = Self::strict(request);
        if request.verb == cni::Verb::Del { Ok(parsed.unwrap_or_default()) } else { parsed }
    }

    fn strict(request: &Request) -> Result<Self, Refusal> {
        let f = Fields::of(request.conf.raw(), KEYS);
        let master = f.text("master")?.map(|m| IfName::new(m).map_err(|e| wrong("master", m, e))).transpose()?;
        let mode = match f.text("mode")? {
            None => Mode::default(),
            Some(name) => MODES
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, m)| Mode(*m))
                .ok_or_else(|| wrong("mode", name, "must be bridge, private, vepa or passthru"))?,
        };
        let mtu = match f.number("mtu")? {
            None | Some(0) => None,
            Some(n) if n < 0 => return Err(wrong("mtu", n, "must be 0 (the master's) or more")),
            Some(n) => Some(Mtu::new(n.unsigned_abs()).map_err(|e| wrong("mtu", n, e))?),
        };
        let bc_queue_len = match f.number("bcqueuelen")? {
            None | Some(0) => None,
            Some(n) => Some(u32::try_from(n).map_err(|_| wrong("bcqueuelen", n, "must be from 0 to 4294967295"))?),
        };
        Ok(Self { master, mode, mtu, link_in_container: f.flag("linkInContainer")?, bc_queue_len })
    }

    fn parent_ns(&self) -> Ns {
        if self.link_in_container { Ns::Pod } else { Ns::Host }
    }

    /// The master as it is, or why it cannot be one.
    fn parent<'a>(&self, seen: &'a Observed) -> Result<&'a Link, Refusal> {
        let (state, place) = match self.parent_ns() {
            Ns::Host => (&seen.host, "on the host"),
            Ns::Pod => (&seen.pod, "in the container"),
        };
        let name = match &self.master {
            Some(name) => name,
            None => default_route_nic(state).ok_or_else(|| {
                Refusal::missing("master", "", format!("is not given, and there is no default route {place} whose NIC to take"))
            })?,
        };
        let link =
            state.link(name).ok_or_else(|| Refusal::missing("master", name, format!("there is no such interface {place}")))?;
        if !link.up {
            return Err(Refusal::new(
                Class::Later,
                "master",
                name,
                format!("is down {place}: a macvlan on it would carry nothing"),
            ));
        }
        Ok(link)
    }
}

/// The NIC of the default route with the lowest metric, IPv4 before IPv6.
fn default_route_nic(state: &model::observed::NetnsState) -> Option<&IfName> {
    let of = |v4: bool| {
        state
            .routes
            .iter()
            .filter(|r| r.dst.is_default() && r.dst.is_ipv4() == v4 && r.table == model::addr::TABLE_MAIN)
            .min_by_key(|r| r.metric.unwrap_or(0))
    };
    of(true).or_else(|| of(false)).map(|r| &r.dev)
}

impl MainPlugin for Conf {
    fn scope(&self, _attach: &Attach, aim: Aim) -> Scope {
        let host = match (&self.master, self.link_in_container) {
            (_, true) => Look::Nothing,
            (Some(name), false) => Look::Links(vec![name.clone()]),
            (None, false) => Look::Routes,
        };
        match aim {
            Aim::Add => Scope { host, pod: Look::Routes, ovs: LookOvs::Nothing },
            Aim::Del => Scope { host: Look::Nothing, pod: Look::AllLinks, ovs: LookOvs::Nothing },
            Aim::Check => Scope { host, pod: Look::All, ovs: LookOvs::Nothing },
        }
    }

    /// None where the kernel decides: a passthru macvlan has its master's.
    fn mac(&self, attach: &Attach) -> Option<MacAddr> {
        match self.mode.0 {
            MacvlanMode::Passthru => attach.mac,
            _ => Some(nic::mac_of(attach)),
        }
    }

    fn plan_add(&self, attach: &Attach, seen: &Observed) -> Result<Plan, Refusal> {
        nic::name_is_free(attach, seen)?;
        let parent = self.parent(seen)?;
        if let Some(mtu) = self.mtu.filter(|m| m.get() > parent.mtu) {
            return Err(wrong("mtu", mtu, format!("must not be above {}, the mtu of the master {}", parent.mtu, parent.name)));
        }
        let mac = self.mac(attach).or(parent.mac);
        let mut plan = Plan::default();
        plan.push(Step::AddMacvlan(Macvlan {
            name: attach.ifname.clone(),
            parent: parent.name.clone(),
            parent_ns: self.parent_ns(),
            mode: self.mode.0,
            mac,
            mtu: self.mtu,
            bc_queue_len: self.bc_queue_len,
            alias: attach.owner.alias(),
        }));
        nic::configure(&mut plan, attach, seen, self.mtu.map_or(parent.mtu, Mtu::get));
        Ok(plan)
    }

    fn plan_del(&self, attach: &Attach, seen: &Observed) -> Plan {
        let alias = attach.owner.alias();
        // By its mark, not its name: someone may have renamed it in the container.
        let ours = seen.pod.links.iter().filter(|l| l.alias.as_deref() == Some(alias.as_str()));
        ours.map(|l| Step::DelLink { ns: Ns::Pod, name: l.name.clone() }).collect()
    }

    fn check(&self, attach: &Attach, seen: &Observed) -> Result<(), Refusal> {
        let link = nic::check(attach, seen, self.mac(attach))?;
        match &link.kind {
            model::observed::LinkKind::Macvlan { mode } if *mode == self.mode.0 => {}
            model::observed::LinkKind::Macvlan { mode } => {
                return Err(Refusal::conflict("mode", mode_name(*mode), format!("should be {}", mode_name(self.mode.0))));
            }
            other => return Err(Refusal::conflict("interface", &attach.ifname, format!("is no macvlan but {other:?}"))),
        }
        let parent = self.parent(seen)?;
        // The index is of the host only where the kernel says that the parent is in another namespace.
        let here = link.link_netnsid.is_none();
        if link.link_index != Some(parent.index) || here != self.link_in_container {
            return Err(Refusal::conflict("master", &parent.name, format!("is not the parent of {}", attach.ifname)));
        }
        if let Some(want) = self.mtu.filter(|m| m.get() != link.mtu) {
            return Err(Refusal::conflict("mtu", link.mtu, format!("should be {want}")));
        }
        Ok(())
    }

    fn host_link(&self, _attach: &Attach) -> Option<IfName> {
        None
    }
}

#[cfg(test)]
mod tests;
