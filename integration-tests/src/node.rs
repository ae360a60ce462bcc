//! A node of the lab: a machine with two NICs, a cluster network of Debian's ptp and host-local plugins, and Open vSwitch
//! with its own database. It does not know the product; paths are those of a real host, private to the node.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::lab::forward;
use crate::run::Run;
use crate::space::Space;

/// The pods' addresses of all nodes.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// Where Debian keeps the reference plugins.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// Where a node has its own plugins.
pub const CNI_BIN: &str = "/opt/cni/bin";
/// The file of the cluster's own network.
pub const CLUSTER_CONFLIST: &str = "/etc/cni/net.d/10-cluster.conflist";

/// One node.
#[derive(Debug)]
pub struct Node {
    /// The machine.
    pub space: Space,
    /// 1 to 9; part of every address of the node.
    pub number: u8,
    ovsdb: Option<Daemon>,
    vswitchd: Option<Daemon>,
}

impl Node {
    pub(crate) fn start(run: &Run, exe: &Path, number: u8) -> Result<Self> {
        let space = Space::start(run, exe, &format!("n{number}"))?;
        Ok(Self { space, number, ovsdb: None, vswitchd: None })
    }

    /// The node's name: `n1`.
    pub fn name(&self) -> &str {
        self.space.name()
    }

    /// The address on ens192.
    pub fn address(&self) -> String {
        format!("10.6.0.{}", 10 + self.number)
    }

    /// The address that the quick start puts on br1 once the bridge is there.
    pub fn bridge_address(&self) -> String {
        format!("172.18.10.{}", 9 + self.number)
    }

    /// This node's share of [`POD_CIDR`].
    pub fn pod_cidr(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    /// Addresses, routes, forwarding, and the cluster's network.
    pub(crate) fn configure(&self) -> Result<()> {
        let n = self.number;
        forward(&self.space)?;
        let mut lines = format!(
            "addr add {}/16 dev ens192\naddr add fd00:10:6::{}/64 dev ens192 nodad\n\
             route add default via 10.6.0.1\nroute add default via fd00:10:6::1\n",
            self.address(),
            10 + n
        );
        // The pods of the other nodes, in place of what Cilium does with native routing.
        for other in (1..=9).filter(|o| *o != n) {
            lines.push_str(&format!("route add 10.244.{other}.0/24 via 10.6.0.{}\n", 10 + other));
        }
        self.space.ip_batch(&lines)?;
        let conflist = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "cluster",
            "plugins": [{
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": self.pod_cidr()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/cni-networks",
                },
            }],
        });
        self.space.write(CLUSTER_CONFLIST, &format!("{conflist:#}\n"))?;
        self.space.run("mkdir", &["-p", CNI_BIN]).map(|_| ())
    }

    /// A fresh database, ovsdb-server and ovs-vswitchd, as the distribution's unit starts them.
    pub(crate) fn start_ovs(&mut self, run: &Run) -> Result<()> {
        let db = "/etc/openvswitch/conf.db";
        self.space.run("mkdir", &["-p", "/etc/openvswitch"])?;
        self.space.run("rm", &["-f", db])?;
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        self.space.run("ovsdb-tool", &["create", db, schema]).context("is openvswitch-switch installed?")?;
        self.start_ovsdb(run)?;
        self.space.run("ovs-vsctl", &["--timeout=10", "--no-wait", "init"])?;
        let id = format!("external-ids:system-id={}", self.name());
        self.space.run("ovs-vsctl", &["--timeout=10", "--no-wait", "set", "Open_vSwitch", ".", &id])?;
        self.start_vswitchd(run)
    }

    pub(crate) fn start_ovsdb(&mut self, run: &Run) -> Result<()> {
        // One that was killed left its socket, and nobody is behind it.
        let _ = std::fs::remove_file(self.path("/run/openvswitch/db.sock"));
        let mut command = Command::new("ovsdb-server");
        command.args(["/etc/openvswitch/conf.db", "--remote=punix:/var/run/openvswitch/db.sock", "--pidfile", "-vsyslog:off"]);
        // Where else it listens and with which key is in the database: `ovs-vsctl set-manager`, `ovs-vsctl set-ssl`.
        command.arg("--remote=db:Open_vSwitch,Open_vSwitch,manager_options");
        command.args(["--private-key=db:Open_vSwitch,SSL,private_key", "--certificate=db:Open_vSwitch,SSL,certificate"]);
        command.arg("--ca-cert=db:Open_vSwitch,SSL,ca_cert");
        let mut daemon = Daemon::start(run, &self.space, "ovsdb-server", &mut command)?;
        daemon.wait_for(&self.path("/run/openvswitch/db.sock"))?;
        self.ovsdb = Some(daemon);
        Ok(())
    }

    pub(crate) fn start_vswitchd(&mut self, run: &Run) -> Result<()> {
        let mut command = Command::new("ovs-vswitchd");
        command.args(["--pidfile", "-vsyslog:off"]);
        self.vswitchd = Some(Daemon::start(run, &self.space, "ovs-vswitchd", &mut command)?);
        // Its first words with the database: after that every ovs-vsctl waits for it by itself.
        self.space.run("ovs-vsctl", &["--timeout=10", "set", "Open_vSwitch", ".", "external-ids:hostname=lab"]).map(|_| ())
    }

    /// Kills ovsdb-server. [`crate::lab::Lab::revive_ovs`] starts it again on the same database.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_ovsdb(&mut self) -> Result<()> {
        self.ovsdb.take().context("no ovsdb-server runs")?.kill()
    }

    /// Kills ovs-vswitchd. [`crate::lab::Lab::revive_ovs`] starts it again.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_vswitchd(&mut self) -> Result<()> {
        self.vswitchd.take().context("no ovs-vswitchd runs")?.kill()
    }

    /// A path of the node as the lab's own process sees it.
    pub fn path(&self, path: &str) -> std::path::PathBuf {
        std::path::PathBuf::from(format!("/proc/{}/root{path}", self.space.pid()))
    }
}
