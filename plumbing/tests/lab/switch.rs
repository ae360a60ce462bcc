//! A switch of its own for a test: ovsdb-server and ovs-vswitchd (userspace datapath) in a fresh network namespace, and the
//! steps that most tests take on it. `ovs-vsctl` is the judge.

#![allow(dead_code, reason = "each test target uses its part")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::{Owner, Tag};
use netlink::Netns;
use planner::step::{Bridge, BridgeSet, Interface, LinkSet, Port, PortSet, Veth};
use planner::{Ns, Plan, Step};
use plumbing::{ApplyError, Host, LinuxHost};
use tempfile::TempDir;

use crate::common::{ip, name, netns, run};

/// A switch of its own. Its daemons end with it.
pub struct Switch {
    pub netns: Netns,
    dir: TempDir,
    pub ovsdb: Child,
    pub vswitchd: Child,
}

impl Switch {
    pub fn start() -> Self {
        let netns = netns();
        let dir = tempfile::Builder::new().prefix("mt-ovs-").tempdir().unwrap();
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        let db = dir.path().join("conf.db");
        run(&netns, "ovsdb-tool", &["create", db.to_str().unwrap(), schema]).unwrap();
        let ovsdb = Self::spawn_ovsdb(&netns, &dir);
        let sock = dir.path().join("db.sock");
        wait_until("ovsdb-server listens", || sock.exists());
        let remote = format!("unix:{}", sock.display());
        run(&netns, "ovs-vsctl", &[&format!("--db={remote}"), "--no-wait", "init"]).unwrap();
        let vswitchd = spawn(&netns, &dir, "ovs-vswitchd", &[&remote, "--unixctl=vswitchd.ctl", "-vconsole:off"]);
        Self { netns, dir, ovsdb, vswitchd }
    }

    /// Starts the server again after it ended.
    pub fn restart_ovsdb(&mut self) {
        self.ovsdb = Self::spawn_ovsdb(&self.netns, &self.dir);
    }

    fn spawn_ovsdb(netns: &Netns, dir: &TempDir) -> Child {
        let remote = format!("--remote=punix:{}", dir.path().join("db.sock").display());
        let db = dir.path().join("conf.db");
        spawn(netns, dir, "ovsdb-server", &[db.to_str().unwrap(), &remote, "--unixctl=ovsdb.ctl", "-vconsole:off"])
    }

    pub fn sock(&self) -> PathBuf {
        self.dir.path().join("db.sock")
    }

    pub async fn host(&self) -> LinuxHost {
        let endpoint = ovsdb::Endpoint::Unix(self.sock());
        LinuxHost::in_netns(self.netns.clone(), Some(endpoint)).await.unwrap()
    }

    pub fn vsctl(&self, args: &str) -> String {
        let db = format!("--db=unix:{}", self.sock().display());
        let args: Vec<&str> = [db.as_str(), "--timeout=10"].into_iter().chain(args.split_whitespace()).collect();
        run(&self.netns, "ovs-vsctl", &args).unwrap_or_else(|e| panic!("ovs-vsctl {args:?}: {e}")).trim().to_owned()
    }

    /// Configuration as `ovs-vsctl` shows it, and the links, without what the switch numbers anew.
    pub fn picture(&self) -> String {
        let mut out = Vec::new();
        for (table, columns) in [
            ("Bridge", "name,datapath_type,fail_mode,mcast_snooping_enable,other_config,external_ids"),
            ("Port", "name,tag,trunks,vlan_mode,bond_mode,lacp,bond_updelay,external_ids"),
            ("Interface", "name,type,mtu_request,external_ids,error"),
        ] {
            out.push(
                self.vsctl(&format!("-f csv --columns={columns} list {table}"))
                    .lines()
                    .map(|l| format!("{table} {l}\n"))
                    .collect(),
            );
        }
        let mut lines: Vec<String> = out.iter().flat_map(|s: &String| s.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        lines.extend(ip(&self.netns, "link show").as_array().unwrap().iter().map(|l| format!("link {}", l["ifname"])));
        lines.sort();
        lines.join("\n")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for child in [&mut self.vswitchd, &mut self.ovsdb] {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn spawn(netns: &Netns, dir: &TempDir, program: &str, args: &[&str]) -> Child {
    let start = || {
        let mut command = Command::new(program);
        command.args(args).current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        for var in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(var, dir.path());
        }
        command.spawn()
    };
    netns.enter(start).unwrap().unwrap_or_else(|e| panic!("lab tests need the program {program}: {e}"))
}

pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    // Busy machines included.
    let until = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < until, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub const OWNER: &str = "0123456789abcdef";

pub fn bridge(n: &str) -> Step {
    let set = BridgeSet { datapath_type: Some("netdev".into()), ..BridgeSet::default() };
    Step::AddBridge(Bridge { name: name(n), set })
}

pub fn marks() -> std::collections::BTreeMap<String, Option<String>> {
    [(Owner::OVS_KEY, OWNER), (Owner::OVS_BY_KEY, "agent"), ("owner", "mooring.dev")]
        .map(|(k, v)| (k.into(), Some(v.into())))
        .into()
}

pub fn port(br: &str, p: &str, set: PortSet) -> Step {
    let interfaces = vec![Interface { name: p.into(), ..Interface::default() }];
    Step::AddPort { bridge: name(br), port: Port { name: p.into(), interfaces, set: PortSet { external_ids: marks(), ..set } } }
}

pub fn tag(t: i64) -> PortSet {
    PortSet { tag: Some(Some(Tag::new(t).unwrap())), ..PortSet::default() }
}

pub fn veth(host: &str, pod: &str) -> [Step; 2] {
    let veth = Veth {
        host_name: name(host),
        pod_name: name(pod),
        host_mac: None,
        pod_mac: None,
        mtu: None,
        alias: format!("mooring:1:{OWNER}"),
    };
    [Step::AddVeth(veth), Step::SetLink { ns: Ns::Host, name: name(host), set: LinkSet::up(true), was: LinkSet::up(false) }]
}

pub fn plan(steps: impl IntoIterator<Item = Step>) -> Plan {
    steps.into_iter().collect()
}

pub async fn apply(host: &LinuxHost, pod: &Netns, steps: impl IntoIterator<Item = Step>) -> Result<(), ApplyError> {
    host.apply(Some(pod), &plan(steps)).await
}
