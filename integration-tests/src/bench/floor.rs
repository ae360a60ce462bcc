//! The floor under an ADD: the same steps, sent by a thread that is in the pod's namespace already, with its sockets open and
//! every index, number and transaction ready. What an ADD takes above it is the exec of the plugin, the way to the agent and
//! back, its looking, choosing and noting. Knows the product's plans only by what they leave in a pod, which it compares.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use model::observed::{MacvlanMode, NetnsState};
use model::{Cidr, IfAddr, IfName, MacAddr, Route};
use netlink::{LinkChange, LinkRef, Netns, Request, Socket};
use ovsdb::{Client, Condition, Config, Endpoint, MonitorRequest, Mutation, Operation, Replica, Value, columns};

use super::exec::{Plugin, Sandbox};
use super::figures::{Row, Times};
use super::rows::{WARM, settle};
use super::world::World;

const RUNS: usize = 60;
const OVSDB: &str = "/var/run/openvswitch/db.sock";
/// Far above what a switch takes for a port; without one the row is not measured.
const OFPORT_WAIT: Duration = Duration::from_secs(10);
const MARK: &str = "floor of the bench";

/// ADD by the agent against its bare steps, for both main plugins.
///
/// # Errors
/// A step or an ADD fails, or the two leave different things behind.
pub fn rows(world: &World) -> Result<Vec<Row>> {
    let bare = Bare::new()?;
    let macvlan = turns(world, &world.macvlan("bench"), |netns, n| bare.macvlan(netns, n))?;
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let replica = tokio.block_on(async {
        let client = Client::connect(Endpoint::Unix(OVSDB.into()), Config::default());
        let replica = client.monitor(MonitorRequest::vswitch()).await?;
        replica.synced(OFPORT_WAIT).await.map(|()| replica)
    })?;
    let ovs = turns(world, &world.ovs(), |netns, n| bare.ovs(netns, n, &tokio, &replica))?;
    // Their links go with their namespaces; the ports stay until they are taken away.
    for n in 0..u32::try_from(WARM + RUNS)? {
        let gone = tokio.block_on(replica.client().transact(del_port(&replica, &host_name(n)?)));
        gone.context("failed to take a port of the floor away")?;
    }
    let row = |what: &str, against: &str, times: &(Times, Times)| Row::medians(what, &times.0, against, &times.1, Some(1.5));
    Ok(vec![
        row("macvlan ADD by the agent", "its bare netlink batches and sysctls, all ready", &macvlan),
        row("ovs ADD by the agent", "its bare netlink batches and OVSDB transaction, all ready", &ovs),
    ])
}

/// ADD and the bare steps take turns, each in a fresh namespace.
fn turns(world: &World, plugin: &Plugin, bare: impl Fn(&Netns, u32) -> Result<Duration>) -> Result<(Times, Times)> {
    let mut times = (Times::default(), Times::default());
    let mut used = Vec::new();
    for run in 0..WARM + RUNS {
        let pod = &world.pods[run % world.pods.len()];
        let (whole, floor) = (Sandbox::new(pod)?, Sandbox::new(pod)?);
        let (whole_netns, floor_netns) = (Netns::open(whole.netns())?, Netns::open(floor.netns())?);
        // Who comes first changes with each round.
        let mut add = Duration::ZERO;
        if run % 2 == 0 {
            add = plugin.must("ADD", &whole)?;
        }
        let steps = bare(&floor_netns, u32::try_from(run)?)?;
        if run % 2 == 1 {
            add = plugin.must("ADD", &whole)?;
        }
        let (of_add, of_steps) = (shape(&whole_netns.socket()?.state()?), shape(&floor_netns.socket()?.state()?));
        ensure!(of_add == of_steps, "ADD leaves {of_add:?}, its bare steps {of_steps:?}");
        used.push((whole, floor));
        if run >= WARM {
            times.0.push(add);
            times.1.push(steps);
        }
    }
    // Behind all of them: an address that was just given back rests, and there would be no spare in hand.
    for (whole, _) in &used {
        plugin.must("DEL", whole)?;
    }
    drop(used);
    settle();
    Ok(times)
}

/// What a pod has, but for the addresses themselves and IPv6, which comes by itself a moment later or earlier.
fn shape(pod: &NetnsState) -> Vec<String> {
    let links = pod.links.iter().filter(|l| l.name.as_str() == "eth0");
    let links = links.map(|l| format!("{:?} mtu {} up {} marked {}", l.kind, l.mtu, l.up, l.alias.is_some()));
    let addrs = pod.addrs.iter().filter(|a| a.addr.is_ipv4());
    let addrs = addrs.map(|a| format!("{} /{}", a.dev, a.addr.prefix_len()));
    let routes = pod.routes.iter().filter(|r| r.dst.is_ipv4());
    let routes = routes.map(|r| format!("{} via {:?} by {}", r.dst, r.gw, r.dev));
    links.chain(addrs).chain(routes).collect()
}

/// What is ready before the clock starts, on the host.
struct Bare {
    host: Netns,
    socket: Socket,
    parent: u32,
    eth0: IfName,
}

impl Bare {
    fn new() -> Result<Self> {
        let socket = Socket::open()?;
        let parent = socket.link(&IfName::new("ens192")?)?.context("ens192 is not there")?.index;
        Ok(Self { host: Netns::current()?, socket, parent, eth0: IfName::new("eth0")? })
    }

    fn macvlan(&self, netns: &Netns, n: u32) -> Result<Duration> {
        let pod = netns.socket()?;
        let host_id = pod.netns_id_of(&self.host)?;
        let addr = address("10.6.200.0", n)?;
        let add = Request::AddMacvlan {
            name: self.eth0.clone(),
            parent: self.parent,
            parent_netns: Some(host_id),
            mode: MacvlanMode::Bridge,
            mac: Some(MacAddr::from_ip(addr.ip())),
            mtu: None,
            bc_queue_len: None,
        };
        netns.enter(|| {
            let began = Instant::now();
            pod.batch(&[add, self.mark(&self.eth0)])?;
            self.configure(pod, addr, "10.6.0.1".parse()?)?;
            Ok(began.elapsed())
        })?
    }

    fn ovs(&self, netns: &Netns, n: u32, tokio: &tokio::runtime::Runtime, replica: &Replica) -> Result<Duration> {
        let pod = netns.socket()?;
        let addr = address("172.18.200.0", n)?;
        let peer = host_name(n)?;
        let add = Request::AddVeth {
            name: self.eth0.clone(),
            mac: Some(MacAddr::from_ip(addr.ip())),
            mtu: None,
            peer: peer.clone(),
            peer_mac: None,
            peer_netns: std::os::fd::AsFd::as_fd(&self.host),
        };
        let port = add_port(netns.path(), &peer);
        netns.enter(|| {
            let began = Instant::now();
            pod.batch(&[add, self.mark(&self.eth0)])?;
            self.socket.batch(&[self.mark(&peer)])?;
            // As the plan has it for the userspace datapath, which the lab's switch is.
            netlink::set_tx_checksum(None, &self.eth0, false)?;
            self.socket.batch(&[up(LinkRef::Name(peer.clone()))])?;
            tokio.block_on(async {
                replica.client().transact(port).await?;
                let is_open = |db: &ovsdb::Db| db.interface(peer.as_str()).and_then(|i| i.ofport).filter(|p| *p > 0);
                replica.wait_for(OFPORT_WAIT, is_open).await
            })?;
            self.configure(pod, addr, "172.18.0.1".parse()?)?;
            Ok(began.elapsed())
        })?
    }

    fn mark(&self, link: &IfName) -> Request<'static> {
        let change = LinkChange { alias: Some(MARK.to_owned()), ..LinkChange::default() };
        Request::SetLink { link: LinkRef::Name(link.clone()), change }
    }

    /// On a thread that is inside.
    fn configure(&self, pod: &Socket, addr: IfAddr, gateway: IpAddr) -> Result<()> {
        netlink::sysctl::write(None, "net/ipv6/conf/eth0/accept_ra", "0")?;
        let link = pod.link(&self.eth0)?.context("eth0 was not made")?;
        let route = Route::new(Cidr::default_v4(), Some(gateway), self.eth0.clone());
        pod.batch(&[
            Request::AddAddr { index: link.index, addr, nodad: true, no_prefix_route: false },
            up(LinkRef::Index(link.index)),
            Request::AddRoute { index: link.index, route },
        ])?;
        netlink::sysctl::write(None, "net/ipv4/conf/eth0/arp_notify", "1")?;
        // The kernel announces when the hardware address is set, also to what it was.
        let same = LinkChange { mac: link.mac, ..LinkChange::default() };
        Ok(pod.batch(&[Request::SetLink { link: LinkRef::Index(link.index), change: same }])?)
    }
}

fn up(link: LinkRef) -> Request<'static> {
    Request::SetLink { link, change: LinkChange { up: Some(true), ..LinkChange::default() } }
}

fn address(base: &str, n: u32) -> Result<IfAddr> {
    let base: std::net::Ipv4Addr = base.parse()?;
    Ok(IfAddr::new(std::net::Ipv4Addr::from(u32::from(base) + 1 + n).into(), 16)?)
}

fn host_name(n: u32) -> Result<IfName> {
    Ok(IfName::new(format!("floor{n}"))?)
}

/// With as many columns as the plugin sets.
fn add_port(netns: Option<&Path>, name: &IfName) -> Vec<Operation> {
    let netns = netns.map(|p| p.display().to_string()).unwrap_or_default();
    let ids = ["contIface", "contPodUid", "owner", "floor-1", "floor-2", "floor-3"].map(|key| (key, MARK));
    let ids = ids.into_iter().chain([("contNetns", netns.as_str())]);
    vec![
        Operation::insert("Interface", columns([("name", name.as_str().into())])).named("i"),
        Operation::insert(
            "Port",
            columns([
                ("name", name.as_str().into()),
                ("interfaces", Value::named_uuid("i")),
                ("vlan_mode", "access".into()),
                ("external_ids", Value::map(ids)),
            ]),
        )
        .named("p"),
        Operation::mutate(
            "Bridge",
            vec![Condition::equal("name", "br1")],
            vec![Mutation::insert("ports", Value::named_uuid("p"))],
        ),
    ]
}

fn del_port(replica: &Replica, name: &IfName) -> Vec<Operation> {
    let port = replica.with(|db| db.port(name.as_str()).map(|p| p.uuid));
    let mutations = port.map(|uuid| Mutation::delete("ports", uuid)).into_iter().collect();
    vec![Operation::mutate("Bridge", vec![Condition::equal("name", "br1")], mutations)]
}
