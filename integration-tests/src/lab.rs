//! The lab's network: nodes, a switch, a router and an outside host, each a machine of its own. It does not know the
//! product; it is what a data centre gives before anything of ours is installed.
//!
//! ```text
//!            segment 10.6.0.0/16                     segment 172.18.0.0/16
//!   n1 ens192 ---+                                       +--- eth0 n1   (no address: the uplink of br1)
//!   n2 ens192 ---+--- router (10.6.0.1, 172.18.0.1, 10.7.0.1) ---+--- eth0 n2
//!                                 |
//!                        outside 10.7.212.101
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::node::Node;
use crate::run::Run;
use crate::space::Space;

/// The router's addresses, one for each segment.
pub const ROUTER: [(&str, &str, &str); 3] = [
    ("net6", "10.6.0.1/16", "fd00:10:6::1/64"),
    ("net172", "172.18.0.1/16", "fd00:172:18::1/64"),
    ("net7", "10.7.0.1/16", "fd00:10:7::1/64"),
];
/// The outside host's addresses.
pub const OUTSIDE: (&str, &str) = ("10.7.212.101", "fd00:10:7::212:101");

/// What to build.
#[derive(Debug, Clone)]
pub struct Options {
    /// This lab's helper program `mooring-lab`.
    pub exe: PathBuf,
    /// How many nodes: 1 to 9.
    pub nodes: u8,
}

/// A running lab. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    /// The nodes `n1`, `n2`, ...
    pub nodes: Vec<Node>,
    /// The host in another subnet, behind the router.
    pub outside: Space,
    /// Forwards between the segments, without NAT.
    pub router: Space,
    /// Two Linux bridges, one a segment.
    pub switch: Space,
    /// Where the cluster's processes run (API, controller).
    pub control: Space,
    exe: PathBuf,
    // Last, so that the directory is removed when all machines are gone.
    run: Run,
}

impl Lab {
    /// Builds the network and starts Open vSwitch on every node.
    ///
    /// # Errors
    /// Not root, a program is missing, or the kernel lacks something: the text says which.
    pub fn start(options: &Options) -> Result<Self> {
        let run = Run::start()?;
        let exe = &options.exe;
        let space = |name: &str| Space::start(&run, exe, name);
        let (switch, router, outside, control) = (space("switch")?, space("router")?, space("outside")?, space("control")?);
        segments(&switch)?;
        connect(&switch, &router, "rt-6", "net6", Some("sw6"))?;
        connect(&switch, &router, "rt-172", "net172", Some("sw172"))?;
        // The outside host has a cable of its own; the switch only hands it over.
        let cable = format!("link add net7 netns {} type veth peer name net7 netns {}\n", router.netns(), outside.netns());
        switch.ip_batch(&cable)?;
        route_and_host(&router, &outside)?;
        let mut nodes = Vec::new();
        for number in 1..=options.nodes {
            let node = Node::start(&run, exe, number)?;
            connect(&switch, &node.space, &format!("n{number}-6"), "ens192", Some("sw6"))?;
            connect(&switch, &node.space, &format!("n{number}-172"), "eth0", Some("sw172"))?;
            node.configure()?;
            nodes.push(node);
        }
        let mut lab = Self { nodes, outside, router, switch, control, exe: exe.clone(), run };
        for node in &mut lab.nodes {
            node.start_ovs(&lab.run)?;
        }
        Ok(lab)
    }

    /// Gives the control machine a NIC on the nodes' segment, for an API that is asked over TCP; returns its address there.
    ///
    /// # Errors
    /// It has one already.
    pub fn connect_control(&self) -> Result<std::net::IpAddr> {
        connect(&self.switch, &self.control, "control-6", "ens192", Some("sw6"))?;
        self.control.ip_batch("addr add 10.6.0.2/16 dev ens192\n")?;
        Ok(std::net::IpAddr::from([10, 6, 0, 2]))
    }

    /// This run's directory, seen by every machine.
    pub fn dir(&self) -> &Path {
        self.run.dir()
    }

    /// This run's record.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The helper program.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// All machines.
    pub fn spaces(&self) -> impl Iterator<Item = &Space> {
        self.nodes.iter().map(|n| &n.space).chain([&self.outside, &self.router, &self.switch, &self.control])
    }

    /// Starts on a node what was killed of Open vSwitch.
    ///
    /// # Errors
    /// It does not come up.
    pub fn revive_ovs(&mut self, number: usize, ovsdb: bool, vswitchd: bool) -> Result<()> {
        let node = &mut self.nodes[number - 1];
        if ovsdb {
            node.start_ovsdb(&self.run)?;
        }
        if vswitchd {
            node.start_vswitchd(&self.run)?;
        }
        Ok(())
    }

    /// A node by its number, from 1.
    ///
    /// # Panics
    /// There is no such node: a mistake in the caller.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Leaves everything running after this process; `mooring-lab clean` removes it.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn keep(mut self) -> Result<()> {
        self.run.keep()?;
        for node in &mut self.nodes {
            node.space.keep()?;
        }
        for space in [&mut self.outside, &mut self.router, &mut self.switch, &mut self.control] {
            space.keep()?;
        }
        Ok(())
    }
}

fn segments(switch: &Space) -> Result<()> {
    switch.ip_batch("link add sw6 type bridge\nlink add sw172 type bridge\nlink set sw6 up\nlink set sw172 up\n")
}

/// A cable from the switch's port to a NIC of a machine. Checksums are written by the sender: the userspace datapath of
/// Open vSwitch reads frames as they are, and a veth hands them over unfinished otherwise.
fn connect(switch: &Space, machine: &Space, port: &str, nic: &str, bridge: Option<&str>) -> Result<()> {
    let mut lines = format!("link add {port} type veth peer name {nic} netns {}\n", machine.netns());
    if let Some(bridge) = bridge {
        lines.push_str(&format!("link set {port} master {bridge}\n"));
    }
    lines.push_str(&format!("link set {port} up\n"));
    switch.ip_batch(&lines)?;
    switch.run("ethtool", &["-K", port, "tx", "off"])?;
    machine.run("ethtool", &["-K", nic, "tx", "off"])?;
    machine.ip_batch(&format!("link set {nic} up\n"))
}

fn route_and_host(router: &Space, outside: &Space) -> Result<()> {
    let mut lines = String::new();
    for (nic, v4, v6) in ROUTER {
        lines.push_str(&format!("addr add {v4} dev {nic}\naddr add {v6} dev {nic} nodad\nlink set {nic} up\n"));
    }
    // The pods of the cluster's own network, as a router learns them by BGP where that network routes natively.
    for node in 1..=9 {
        lines.push_str(&format!("route add 10.244.{node}.0/24 via 10.6.0.{}\n", 10 + node));
    }
    router.ip_batch(&lines)?;
    forward(router)?;
    for space in [router, outside] {
        space.run("ethtool", &["-K", "net7", "tx", "off"])?;
    }
    let (v4, v6) = OUTSIDE;
    outside.ip_batch(&format!(
        "addr add {v4}/16 dev net7\naddr add {v6}/64 dev net7 nodad\nlink set net7 up\n\
         route add default via 10.7.0.1\nroute add default via fd00:10:7::1\n"
    ))
}

/// Makes a machine a router for both families.
pub(crate) fn forward(space: &Space) -> Result<()> {
    space.sysctl("net.ipv4.ip_forward", "1")?;
    space.sysctl("net.ipv6.conf.all.forwarding", "1").context("no IPv6 in this kernel")
}
