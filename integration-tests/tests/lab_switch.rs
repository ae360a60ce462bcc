//! What a Bridge and a port's VLANs do to real frames: tags of every `vlan_mode`, uplinks that are not named by their name, a
//! bond that loses a link, columns changed on a running bridge, a database behind TLS. Judges are tcpdump, ping, `ip -j`,
//! `ovs-vsctl` and `ovs-appctl`.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::cluster::{BRIDGES, PODS, text};
use integration_tests::daemon::Daemon;
use integration_tests::product::{From, captured, program};
use integration_tests::world::World as Started;
use serde_json::Value;

/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
const ROUTER: &str = "172.18.0.1";

struct World(Started);

impl Deref for World {
    type Target = Started;

    fn deref(&self) -> &Started {
        &self.0
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Started {
        &mut self.0
    }
}

impl World {
    /// One node with the product.
    fn start() -> Self {
        Self(Started::start(Path::new(env!("CARGO_BIN_EXE_mooring-lab")), 1, PATIENCE).unwrap())
    }

    fn wait<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> Result<T>) -> T {
        self.0.wait(what, || ask(self))
    }

    fn node(&self, program: &str, args: &[&str]) -> String {
        self.lab.node(1).space.run(program, args).unwrap().trim().to_owned()
    }

    fn vsctl(&self, args: &str) -> String {
        self.try_vsctl(args).unwrap()
    }

    fn try_vsctl(&self, args: &str) -> Result<String> {
        self.0.vsctl(1, &args.split_whitespace().collect::<Vec<_>>())
    }

    /// Waits until `ovs-vsctl ARGS` prints this.
    fn becomes(&self, args: &str, expected: &str) {
        self.wait(&format!("ovs-vsctl {args}"), |w| {
            let have = w.try_vsctl(args)?;
            ensure!(have == expected, "prints {have:?}, expected {expected:?}; {}", w.why());
            Ok(())
        });
    }

    /// What the agent says of br1.
    fn why(&self) -> String {
        self.0.why("n1")
    }

    fn bridge(&self, spec: &str) {
        let yaml = format!(
            "{{apiVersion: mooring.dev/v1alpha1, kind: Bridge, metadata: {{name: br1}}, spec: {{nodeSelector: {{}}, {spec}}}}}"
        );
        self.cluster.apply_text(&yaml).unwrap();
    }

    fn ready(&self) {
        self.bridge_ready("n1");
    }

    /// The Bridge goes, and what was made goes with it.
    fn no_bridge(&self) {
        self.cluster.delete(BRIDGES, "br1").unwrap();
        self.becomes("list-br", "");
        self.wait("the Bridge is gone", |w| {
            ensure!(w.cluster.get(BRIDGES, None, "br1").is_err(), "it is there");
            Ok(())
        });
    }

    /// The node's own address on br1, as the quick start has it: by the bridge it then reaches the router.
    fn address(&self) {
        self.lab.node(1).space.ip_batch("addr replace 172.18.10.10/16 dev br1\nlink set br1 up\n").unwrap();
    }

    fn pings(&self) -> Result<()> {
        From { space: &self.lab.node(1).space, netns: None }.ping(ROUTER.parse()?).map(drop)
    }

    fn reaches_the_router(&self) {
        self.wait("the router answers", |w| w.pings());
    }

    fn link(&self, name: &str) -> Value {
        let links: Value = serde_json::from_str(&self.node("ip", &["-j", "link", "show", name])).unwrap();
        links[0].clone()
    }

    fn netns(&self, name: &str) -> String {
        self.0.netns(1, name).unwrap()
    }
}

/// Tags of a frame, outermost first: EtherType and VLAN id.
type Tags = Vec<(u16, u16)>;

const C: u16 = 0x8100;
const S: u16 = 0x88a8;
/// IEEE 802 "local experimental" EtherType: nobody else here sends it.
const OURS: u16 = 0x88b5;

/// A broadcast frame that carries a number.
fn frame(number: u8, tags: &[(u16, u16)]) -> String {
    let tags: String = tags.iter().map(|(kind, id)| format!("{kind:04x}{id:04x}")).collect();
    // Its own source address: no switch shall learn that a station moved.
    format!("ffffffffffff0a00000000{number:02x}{tags}{OURS:04x}{number:02x}{}", "00".repeat(45))
}

/// Sends frames from a NIC, as they are.
fn send(at: From<'_>, nic: &str, frames: &[String]) {
    let script = "import socket, sys\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind((sys.argv[1], 0))\n\
                  for f in sys.argv[2:]: s.send(bytes.fromhex(f))\n";
    let args: Vec<&str> = ["-c", script, nic].into_iter().chain(frames.iter().map(String::as_str)).collect();
    at.run("/usr/bin/python3", &args).unwrap();
}

/// Our frames that tcpdump sees on a NIC while `work` runs, by number: `many` of them, and whatever else comes soon after. A
/// number seen twice is a mistake of the switch.
fn seen(at: From<'_>, nic: &str, many: usize, work: impl FnOnce()) -> BTreeMap<u8, Tags> {
    let output = captured(at, nic, &["-xx", "-Q", "in"], |seen| {
        work();
        seen.until(|text| ours(text).len() >= many);
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    });
    let mut found = BTreeMap::new();
    for (number, tags) in ours(&output.unwrap()) {
        assert!(found.insert(number, tags).is_none(), "frame {number:#x} came twice to {nic}");
    }
    found
}

/// Number and tags of those frames that are ours.
fn ours(text: &str) -> Vec<(u8, Tags)> {
    let mut found = Vec::new();
    for bytes in dumps(text) {
        let word = |at: usize| bytes.get(at..at + 2).map_or(0, |w| u16::from_be_bytes([w[0], w[1]]));
        let (mut at, mut tags) = (12, Tags::new());
        while [C, S].contains(&word(at)) {
            tags.push((word(at), word(at + 2) & 0xfff));
            at += 4;
        }
        // Without its number it is half a frame: tcpdump is still at it.
        if word(at) == OURS
            && let Some(number) = bytes.get(at + 2)
        {
            found.push((*number, tags));
        }
    }
    found
}

/// Frames of `tcpdump -xx`: a line about each, then its bytes on lines that begin with a tabulator.
fn dumps(text: &str) -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix('\t').and_then(|l| l.split_once(':')), frames.last_mut()) {
            (Some((_, hex)), Some(frame)) => {
                let hex: String = hex.split_whitespace().collect();
                frame.extend((0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()));
            }
            _ => frames.push(Vec::new()),
        }
    }
    frames
}

/// What a port does with frames.
struct Case {
    name: &'static str,
    /// Keys of the NAD.
    keys: &'static str,
    /// What comes out on the wire of what the pod sends: without a tag, and with tag 9, 42, 50.
    out: [Option<&'static [(u16, u16)]>; 4],
    /// What comes to the pod of what the wire sends: the same four, and 42 within the service VLAN 9.
    into: [Option<&'static [(u16, u16)]>; 5],
}

/// By the text of ovs-vswitchd.conf.db(5), table Port, column vlan_mode; 9 is the port's own VLAN, 42 one of its trunk.
const CASES: [Case; 5] = [
    Case {
        name: "access",
        keys: "\"vlan\": 9",
        out: [Some(&[(C, 9)]), None, None, None],
        into: [None, Some(&[]), None, None, Some(&[(C, 42)])],
    },
    Case {
        name: "trunk",
        keys: "\"trunk\": [{\"id\": 42}]",
        out: [None, None, Some(&[(C, 42)]), None],
        into: [None, None, Some(&[(C, 42)]), None, None],
    },
    Case {
        name: "native-tagged",
        keys: "\"vlan\": 9, \"trunk\": [{\"id\": 42}], \"vlan_mode\": \"native-tagged\"",
        out: [Some(&[(C, 9)]), Some(&[(C, 9)]), Some(&[(C, 42)]), None],
        into: [None, Some(&[(C, 9)]), Some(&[(C, 42)]), None, Some(&[(S, 9), (C, 42)])],
    },
    Case {
        name: "native-untagged",
        keys: "\"vlan\": 9, \"trunk\": [{\"id\": 42}], \"vlan_mode\": \"native-untagged\"",
        out: [Some(&[(C, 9)]), Some(&[(C, 9)]), Some(&[(C, 42)]), None],
        into: [None, Some(&[]), Some(&[(C, 42)]), None, Some(&[(C, 42)])],
    },
    Case {
        name: "dot1q-tunnel",
        keys: "\"vlan\": 9, \"vlan_mode\": \"dot1q-tunnel\"",
        out: [Some(&[(S, 9)]), Some(&[(S, 9), (C, 9)]), Some(&[(S, 9), (C, 42)]), Some(&[(S, 9), (C, 50)])],
        into: [None, Some(&[]), None, None, Some(&[(C, 42)])],
    },
];

#[test]
fn frames_of_every_vlan_mode_have_the_tags_that_open_vswitch_documents() {
    let world = World::start();
    world.bridge("uplink: {interface: eth0}");
    world.ready();
    for case in &CASES {
        let config = format!(
            "{{\"cniVersion\": \"1.0.0\", \"name\": \"net\", \"type\": \"cni-ovs\", \"bridge\": \"br1\", {}}}",
            case.keys
        );
        let yaml = format!(
            "{{apiVersion: k8s.cni.cncf.io/v1, kind: NetworkAttachmentDefinition, metadata: {{name: {0}, namespace: default}}, \
             spec: {{config: '{config}'}}}}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: {0}, namespace: default, annotations: {{k8s.v1.cni.cncf.io/networks: {0}}}}}, \
             spec: {{nodeName: n1, containers: [{{name: c, image: c}}]}}}}",
            case.name
        );
        world.cluster.apply_text(&yaml).unwrap();
    }
    for case in &CASES {
        world.wait("the pod runs", |w| {
            let pod = w.cluster.get(PODS, Some("default"), case.name)?;
            ensure!(text(&pod, "/status/phase") == "Running", "{} does not run\n{}", case.name, w.lab.run().tails(5));
            Ok(())
        });
    }
    let sent: [&[(u16, u16)]; 5] = [&[], &[(C, 9)], &[(C, 42)], &[(C, 50)], &[(S, 9), (C, 42)]];
    let netns: Vec<String> = CASES.iter().map(|case| world.netns(case.name)).collect();
    let pod = |i: usize| From { space: &world.lab.node(1).space, netns: Some(netns[i].as_str()) };
    let wire = From { space: &world.lab.switch, netns: None };

    let number = |case: usize, frame: usize| u8::try_from(16 * (case + 1) + frame).unwrap();
    let many = CASES.iter().flat_map(|case| &case.out).flatten().count();
    let on_wire = seen(wire, "n1-172", many, || {
        for (i, _) in CASES.iter().enumerate() {
            let frames: Vec<String> = (0..4).map(|f| frame(number(i, f), sent[f])).collect();
            send(pod(i), "net1", &frames);
        }
    });
    let mut wrong = Vec::new();
    for (i, case) in CASES.iter().enumerate() {
        for (f, expected) in case.out.iter().enumerate() {
            let have = on_wire.get(&number(i, f)).map(Vec::as_slice);
            if have != *expected {
                wrong.push(format!("{} sends {:x?}: {have:x?} on the wire, expected {expected:x?}", case.name, sent[f]));
            }
        }
    }
    for (i, case) in CASES.iter().enumerate() {
        let frames: Vec<String> = (0..5).map(|f| frame(number(i, f), sent[f])).collect();
        let many = case.into.iter().flatten().count();
        let in_pod = seen(pod(i), "net1", many, || send(wire, "n1-172", &frames));
        for (f, expected) in case.into.iter().enumerate() {
            let have = in_pod.get(&number(i, f)).map(Vec::as_slice);
            if have != *expected {
                wrong.push(format!("the wire sends {:x?} to {}: {have:x?}, expected {expected:x?}", sent[f], case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_uplink_is_found_by_hardware_address_default_route_and_reachable_address() {
    let world = World::start();
    let mac = text(&world.link("eth0"), "/address");
    let ways = [
        (format!("uplink: {{mac: '{mac}'}}"), ""),
        // The node reaches the segment through eth0, where it has no address.
        (format!("uplink: {{canReach: {ROUTER}}}"), "route add 172.18.0.0/16 dev eth0\n"),
        ("uplink: {defaultRoute: true}".to_owned(), "route replace default via 172.18.0.1 dev eth0 onlink\n"),
    ];
    for (spec, before) in ways {
        world.lab.node(1).space.ip_batch(before).unwrap();
        world.bridge(&spec);
        world.becomes("list-ports br1", "eth0");
        world.ready();
        world.node("ip", &["route", "flush", "dev", "eth0"]);
        world.address();
        world.reaches_the_router();
        world.no_bridge();
        assert_eq!(text(&world.link("eth0"), "/master"), "", "{spec}");
    }
    // The NIC that has the node's own address is found too, and refused, not moved.
    world.bridge("uplink: {canReach: 10.6.0.1}");
    world.wait("a refusal", |w| {
        ensure!(w.why().contains("UplinkCarriesNodeAddress"), "{}", w.why());
        Ok(())
    });
    assert_eq!(world.vsctl("list-br"), "");
}

/// The interface that the bond sends by, as ovs-vswitchd tells.
fn active(world: &World) -> Result<String> {
    let text = world.lab.node(1).space.run("ovs-appctl", &["bond/show", "bond1"])?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let at = lines.iter().position(|l| *l == "active member").with_context(|| format!("no active member in\n{text}"))?;
    let member = lines[..at].iter().rev().find_map(|l| l.strip_prefix("member ")).context("no member")?;
    Ok(member.split(':').next().unwrap_or_default().to_owned())
}

#[test]
fn a_bond_goes_on_over_the_other_link_when_one_fails() {
    let world = World::start();
    let space = &world.lab.node(1).space;
    world
        .lab
        .switch
        .ip_batch(&format!(
            "link add n1-172b type veth peer name eth1 netns {}\nlink set n1-172b master sw172\nlink set n1-172b up\n",
            space.netns()
        ))
        .unwrap();
    world.lab.switch.run("ethtool", &["-K", "n1-172b", "tx", "off"]).unwrap();
    space.run("ethtool", &["-K", "eth1", "tx", "off"]).unwrap();
    world.bridge("uplink: {bond: {name: bond1, interfaces: [eth0, eth1], mode: active-backup, downdelayMs: 0}}");
    world.becomes("list-ports br1", "bond1");
    assert_eq!(world.vsctl("list-ifaces br1"), "eth0\neth1");
    world.ready();
    // Empty in the database, where it is the default: ovs-vswitchd says what it makes of it.
    let shown = world.node("ovs-appctl", &["bond/show", "bond1"]);
    assert!(shown.contains("bond_mode: active-backup"), "{shown}");
    world.address();
    world.reaches_the_router();
    // Each of the two links fails once while the other carries on.
    for _ in 0..2 {
        let (mine, other) = match world.wait("a link is active", active).as_str() {
            "eth0" => ("n1-172", ("eth1", "n1-172b")),
            _ => ("n1-172b", ("eth0", "n1-172")),
        };
        world.lab.switch.ip_batch(&format!("link set {mine} down\n")).unwrap();
        world.wait("the other link is active", |w| {
            let now = active(w)?;
            ensure!(now == other.0, "{now} is");
            Ok(())
        });
        world.reaches_the_router();
        let at = From { space: &world.lab.switch, netns: None };
        let passed = captured(at, other.1, &["icmp"], |seen| {
            world.reaches_the_router();
            seen.until(|text| text.contains("ICMP echo request") && text.contains("ICMP echo reply"));
            Ok(())
        });
        let passed = passed.unwrap();
        assert!(passed.contains("ICMP echo request") && passed.contains("ICMP echo reply"), "{passed}");
        world.lab.switch.ip_batch(&format!("link set {mine} up\n")).unwrap();
        world.wait("both links are up again", |w| {
            let text = w.node("ovs-appctl", &["bond/show", "bond1"]);
            ensure!(text.matches(": enabled").count() == 2, "{text}");
            Ok(())
        });
    }
    // One member less, on the running bridge: a port of that name with other interfaces takes its place.
    world.bridge("uplink: {interface: eth0}");
    world.becomes("list-ports br1", "eth0");
    world.reaches_the_router();
    world.no_bridge();
    space.ip_batch("link del eth1\n").unwrap();
}

#[test]
fn columns_of_a_running_bridge_are_changed_and_reverted() {
    let world = World::start();
    let space = &world.lab.node(1).space;
    // There before us, with an MTU, an address and a port of somebody else.
    world.vsctl("add-br br1 -- set bridge br1 datapath_type=netdev other_config:hwaddr=0a:00:00:00:00:77 -- set interface br1 mtu_request=1450");
    world.vsctl("add-port br1 eth0 -- add-port br1 theirs -- set interface theirs type=internal");
    let columns = |w: &World| {
        w.vsctl(
            "get bridge br1 fail_mode mcast_snooping_enable other_config external_ids -- get port eth0 trunks external_ids \
                 -- get interface br1 mtu_request",
        )
    };
    let before = columns(&world);
    world.address();
    world.reaches_the_router();
    let eth0 = world.link("eth0");

    world.bridge("uplink: {interface: eth0}");
    world.ready();
    world.reaches_the_router();
    let large = |size: &str| space.output("ping", &["-c1", "-W1", "-M", "do", "-s", size, ROUTER]).unwrap().status.success();

    // MTU of bridge and NIC.
    world.bridge("uplink: {interface: eth0}, mtu: 1400");
    world.becomes("get interface br1 mtu_request", "1400");
    world.wait("the kernel has it", |w| {
        ensure!(w.link("br1")["mtu"] == 1400 && w.link("eth0")["mtu"] == 1400, "{} {}", w.link("br1"), w.link("eth0"));
        Ok(())
    });
    assert!(large("1372") && !large("1373"), "1400 bytes of IPv4 pass, one more does not");

    // Hardware address: the router learns it.
    world.bridge("uplink: {interface: eth0}, mtu: 1400, hwaddr: '0a:00:00:00:00:99'");
    world.wait("br1 has it", |w| {
        ensure!(w.link("br1")["address"] == "0a:00:00:00:00:99", "{}", w.link("br1"));
        Ok(())
    });
    world.lab.router.run("ip", &["neigh", "flush", "dev", "net172"]).unwrap();
    world.reaches_the_router();
    let neighbours = world.lab.router.run("ip", &["neigh", "show", "172.18.10.10"]).unwrap();
    assert!(neighbours.contains("0a:00:00:00:00:99"), "{neighbours}");

    // Multicast snooping: its table is there, or is not.
    let snooping = |w: &World| w.lab.node(1).space.output("ovs-appctl", &["mdb/show", "br1"]).unwrap().status.success();
    world.bridge("uplink: {interface: eth0}, mcastSnooping: true");
    world.wait("snooping is on", |w| {
        ensure!(snooping(w), "it is off");
        Ok(())
    });
    world.becomes("get interface br1 mtu_request", "1450");

    // Secure: without a controller nothing is forwarded.
    world.bridge("uplink: {interface: eth0}, failMode: secure");
    world.becomes("get bridge br1 fail_mode mcast_snooping_enable", "secure\nfalse");
    world.wait("nothing passes", |w| {
        ensure!(w.pings().is_err(), "a ping passed");
        Ok(())
    });
    assert!(!snooping(&world));
    world.bridge("uplink: {interface: eth0}, allowedVLANs: ['100']");
    world.becomes("get port eth0 trunks", "[100]");
    // What has no tag is not allowed; VLAN 100 is.
    world.wait("nothing without a tag passes", |w| {
        ensure!(w.pings().is_err(), "a ping passed");
        Ok(())
    });
    world.vsctl("set port theirs tag=100");
    space.ip_batch("link set theirs up\n").unwrap();
    let wire = From { space: &world.lab.switch, netns: None };
    let node = From { space, netns: None };
    let passed = seen(wire, "n1-172", 1, || send(node, "theirs", &[frame(1, &[])]));
    assert_eq!(passed, BTreeMap::from([(1, vec![(C, 100)])]));
    world.vsctl("remove port theirs tag 100");
    world.bridge("uplink: {interface: eth0}");
    world.becomes("get port eth0 trunks", "[]");
    world.reaches_the_router();

    // The Bridge goes: everything is as it was, the MTU that was asked for among it, and nothing of theirs is gone.
    world.bridge("uplink: {interface: eth0}, mtu: 1400, hwaddr: '0a:00:00:00:00:99', failMode: secure, mcastSnooping: true, allowedVLANs: ['7']");
    world.becomes("get interface br1 mtu_request -- get port eth0 trunks", "1400\n[7]");
    world.cluster.delete(BRIDGES, "br1").unwrap();
    world.wait("all is as before", |w| {
        let now = columns(w);
        ensure!(now == before, "{now}\nexpected\n{before}");
        ensure!(w.link("eth0")["mtu"] == eth0["mtu"], "{}", w.link("eth0"));
        Ok(())
    });
    assert_eq!(world.vsctl("list-ports br1"), "eth0\ntheirs");
    world.reaches_the_router();
    assert_eq!(world.link("br1")["mtu"], 1450);
    world.vsctl("del-port br1 theirs");
}

#[test]
fn mooring_plan_prints_the_steps_of_a_bridge_and_takes_none() {
    let world = World::start();
    let space = &world.lab.node(1).space;
    let mooring = program(&world.lab, "mooring").unwrap().display().to_string();
    let file = "/run/bridge.yaml";
    let spec = "uplink: {interface: eth0}, mtu: 1400, allowedVLANs: ['100-102']";
    let yaml = format!(
        "{{apiVersion: mooring.dev/v1alpha1, kind: Bridge, metadata: {{name: br1}}, spec: {{nodeSelector: {{}}, {spec}}}}}"
    );
    space.write(file, &yaml).unwrap();
    let plan = || space.run(&mooring, &["plan", "-f", file]).unwrap();
    let picture = || format!("{}\n{}", world.node("ovs-vsctl", &["--timeout=10", "show"]), world.node("ip", &["-o", "link"]));
    let before = picture();
    assert_eq!(
        plan(),
        "bridge br1:\n  1. set link eth0 (host) mtu 1400\n  2. add bridge br1\n  3. add port eth0 to bridge br1 trunks 100-102\n  \
         4. set link br1 (host) up\n"
    );
    assert_eq!(picture(), before, "nothing was done");
    // The agent does just that, and then there is nothing left to do.
    world.bridge(spec);
    world.becomes("get port eth0 trunks", "[100, 101, 102]");
    world.ready();
    assert_eq!(plan(), "bridge br1: nothing to do\n");
    world.vsctl("set port eth0 trunks=7");
    // Which of the two is quicker, the agent or we, is open: it says the drift, or that there is none any more.
    let drift = plan();
    assert!(
        ["bridge br1:\n  1. set port eth0 trunks=100-102\n", "bridge br1: nothing to do\n"].contains(&drift.as_str()),
        "{drift}"
    );
    world.becomes("get port eth0 trunks", "[100, 101, 102]");
}

#[test]
fn an_agent_works_on_a_database_behind_tls() {
    let mut world = World::start();
    let dir = world.lab.dir().join("pki");
    std::fs::create_dir(&dir).unwrap();
    let at = dir.display().to_string();
    let pki = format!(
        "cd {at} && p=\"ovs-pki --dir={at}/ca --log={at}/log\" && $p init && $p req+sign server controller && $p req+sign agent switch"
    );
    world.lab.node(1).space.run("sh", &["-ec", &pki]).unwrap();
    world.vsctl(&format!("set-ssl {at}/server-privkey.pem {at}/server-cert.pem {at}/ca/switchca/cacert.pem"));
    world.vsctl("set-manager pssl:6640:127.0.0.1");
    world.take_agent(1).unwrap().stop().unwrap();
    let start = |ca: &str| {
        let mut command = Command::new(program(&world.lab, "mooring-agent").unwrap());
        command.args(["--node", "n1", "--api-socket"]).arg(&world.product.socket).args(["--ovsdb", "ssl:127.0.0.1:6640"]);
        command.args(["--ovsdb-private-key", &format!("{at}/agent-privkey.pem")]);
        command.args(["--ovsdb-certificate", &format!("{at}/agent-cert.pem")]);
        command.args(["--ovsdb-ca-cert", &format!("{at}/ca/{ca}/cacert.pem")]);
        Daemon::start(world.lab.run(), &world.lab.node(1).space, "tls-agent", &mut command).unwrap()
    };
    // Not the authority that the server's certificate comes from: the agent says so and does nothing.
    let stranger = start("switchca");
    world.bridge("uplink: {interface: eth0}");
    world.wait("a reason", |w| {
        let said = stranger.log() + &w.why();
        ensure!(said.contains("invalid peer certificate: UnknownIssuer"), "{said}");
        Ok(())
    });
    assert_eq!(world.vsctl("list-br"), "");
    stranger.stop().unwrap();
    let agent = start("controllerca");
    world.becomes("list-ports br1", "eth0");
    world.ready();
    world.address();
    world.reaches_the_router();
    let peers = world.node("ovs-vsctl", &["--timeout=10", "--columns=status", "list", "manager"]);
    assert!(peers.contains("n_connections=\"1\"") || peers.contains("bound_port=\"6640\""), "{peers}");
    agent.stop().unwrap();
}
