//! The lab judged by foreign tools, before anything of the product runs in it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::lab::{Lab, OUTSIDE, Options};
use integration_tests::run;
use integration_tests::space::Space;

fn options(nodes: u8) -> Options {
    Options { exe: PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab")), nodes }
}

#[test]
fn nodes_reach_each_other_the_router_and_the_outside() {
    let lab = Lab::start(&options(2)).unwrap();
    for target in [lab.node(2).address(), "10.6.0.1".into(), OUTSIDE.0.into(), OUTSIDE.1.into()] {
        lab.node(1).space.run("ping", &["-c1", "-W2", &target]).unwrap();
    }
}

#[test]
fn each_node_has_its_own_open_vswitch() {
    let lab = Lab::start(&options(2)).unwrap();
    let vsctl = |n: usize, args: &[&str]| lab.node(n).space.run("ovs-vsctl", args).unwrap();
    vsctl(1, &["--timeout=10", "add-br", "br1", "--", "set", "bridge", "br1", "datapath_type=netdev"]);
    vsctl(1, &["--timeout=10", "add-port", "br1", "eth0"]);
    assert!(vsctl(1, &["show"]).contains("Interface eth0"));
    assert!(!vsctl(2, &["show"]).contains("br1"));
    lab.node(1).space.run("ip", &["addr", "add", "172.18.10.10/16", "dev", "br1"]).unwrap();
    lab.node(1).space.run("ip", &["link", "set", "br1", "up"]).unwrap();
    lab.node(1).space.run("ping", &["-c1", "-W2", "172.18.0.1"]).unwrap();
}

/// The net namespaces of machines with these holders, as `lsns` prints them.
fn namespaces(holders: impl Iterator<Item = u32>) -> Vec<String> {
    let link = |pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().to_string_lossy().into_owned();
    holders.map(|pid| link(pid).trim_matches(|c: char| !c.is_ascii_digit()).to_owned()).collect()
}

fn alive(namespaces: &[String]) -> Vec<String> {
    let out = Command::new("lsns").args(["-n", "-t", "net", "-o", "NS"]).output().expect("lsns");
    let all = String::from_utf8_lossy(&out.stdout).into_owned();
    all.lines().map(|l| l.trim().to_owned()).filter(|l| namespaces.contains(l)).collect()
}

#[test]
fn a_dropped_lab_leaves_no_namespace_process_or_file() {
    let lab = Lab::start(&options(1)).unwrap();
    let (dir, ours) = (lab.dir().to_owned(), namespaces(lab.spaces().map(Space::pid)));
    assert_eq!(alive(&ours).len(), 5);
    drop(lab);
    assert!(!dir.exists());
    assert_eq!(alive(&ours), Vec::<String>::new());
}

#[test]
fn a_kept_lab_lives_until_clean() {
    let lab = Command::new(env!("CARGO_BIN_EXE_mooring-lab")).args(["up", "--nodes=1"]).output().unwrap();
    let text = String::from_utf8_lossy(&lab.stdout);
    assert!(lab.status.success(), "{text}{}", String::from_utf8_lossy(&lab.stderr));
    let holders = text.lines().map(|l| l.split(' ').nth(2).unwrap().parse().unwrap());
    let ours = namespaces(holders);
    assert_eq!(alive(&ours).len(), 5);
    assert_eq!(run::leftovers().unwrap().iter().filter(|r| !r.in_use).count(), 1);
    run::clean().unwrap();
    assert_eq!(alive(&ours), Vec::<String>::new());
}

#[test]
fn a_killed_lab_ends_with_its_process_and_leaves_only_a_directory() {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_mooring-lab"));
    let mut owner = owner.args(["up", "--nodes=1", "--wait"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines().map(|l| l.unwrap());
    let ours = namespaces(lines.take(5).map(|l| l.split(' ').nth(2).unwrap().parse().unwrap()));
    assert_eq!(alive(&ours).len(), 5);
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !alive(&ours).is_empty() {
        assert!(Instant::now() < deadline, "namespaces outlive the lab");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(run::clean().unwrap().len(), 1);
}
