//! Ten agents and one pool on a real API server: as many pods as addresses, all gone, all made again. Judged by the leases that
//! are there and by the server's own audit log.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration_tests::audit::{Audit, Call};
use integration_tests::cluster::{Cluster, LEASES, text};
use integration_tests::kube::{ADMIN, AGENT, CONTROLLER, Machine, Options};
use integration_tests::swarm::{PODS, Server, Swarm};

/// A busy machine may take this long until everything behind the replies is written.
const PATIENCE: Duration = Duration::from_secs(120);

fn writes(calls: &[Call]) -> usize {
    // Events and network-status are for people, and counted apart.
    calls.iter().filter(|c| c.is_write() && !matches!(c.resource.as_str(), "events" | "pods" | "pods/status")).count()
}

fn count(calls: &[Call], verb: &str, resource: &str) -> usize {
    calls.iter().filter(|c| c.user == AGENT && c.verb == verb && c.resource == resource).count()
}

fn summary(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for c in calls {
        *all.entry(format!("{} {} {} {}", c.user, c.verb, c.resource, c.code)).or_default() += 1;
    }
    all
}

#[test]
fn a_thousand_pods_take_a_thousand_addresses_twice() {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let options = Options { fsync: false, audit: true };
    let m = Machine::start_with(&exe, &deploy, options).unwrap_or_else(|e| panic!("{e:#}"));
    let cluster = Cluster::on_kube(&m.kube.kubeconfig(ADMIN), &m.space).unwrap();
    let mut swarm = Swarm::start(m.run(), &m.space, exe.parent().unwrap(), cluster, Server::Kube(&m.kube))
        .unwrap_or_else(|e| panic!("{e:#}\n{}", m.tails(12)));
    let mut audit = Audit::new(m.kube.audit());
    audit.until_quiet(AGENT, PATIENCE).unwrap();
    let mut life = Vec::new();
    for round in 1..=2 {
        let add = swarm.all("ADD", round).unwrap();
        let during = audit.calls().unwrap();
        let failed = add.failed.first().map_or("", String::as_str);
        assert_eq!((add.failed.len(), add.twice(), add.addresses()), (0, 0, PODS), "{failed}\n{}", m.tails(12));
        let after = audit.until_quiet(AGENT, PATIENCE).unwrap();
        // What was said is what is there: each address once, by the pod that got it.
        let leases = swarm.cluster.list(LEASES).unwrap();
        let held: BTreeMap<String, String> = leases
            .iter()
            .map(|l| (text(l, "/spec/address"), text(l, "/spec/holder/podName")))
            .filter(|(_, p)| !p.is_empty())
            .collect();
        let pods: std::collections::BTreeSet<&String> = held.values().collect();
        assert_eq!((held.len(), pods.len()), (PODS, PODS));
        assert!(add.answers.iter().all(|a| held.contains_key(a.split('/').next().unwrap())));

        let creates = count(&during, "create", "addressleases");
        let lists = count(&during, "list", "addressleases");
        println!(
            "round {round}: {}; the last hundredth at most {:.0} ms; {creates} creates and {lists} lists for {PODS} addresses",
            add.text(),
            add.order[PODS - PODS / 100..].iter().max().unwrap().as_secs_f64() * 1e3
        );
        // Seen: 1,000 to 1,001 creates and no list. A list, which walks every lease of the cluster, is for an ADD that gets no
        // new map for 1.5 s, and a lost create for agents that are not served alike: both happen on a machine that is too busy.
        assert!(lists <= PODS / 100, "{lists} lists");
        assert!(creates <= PODS * 3 / 2, "{creates} creates");
        let del = swarm.all("DEL", round).unwrap();
        assert!(del.failed.is_empty(), "{} DELs failed: {}", del.failed.len(), del.failed[0]);
        let deleted = audit.until_quiet(AGENT, PATIENCE).unwrap();
        let all: Vec<Call> = during.into_iter().chain(after).chain(deleted).collect();
        println!("{:#?}", summary(&all));
        life.push(writes(&all) as f64 / PODS as f64);
        let refused: Vec<&Call> = all.iter().filter(|c| c.code == 403).collect();
        assert!(refused.is_empty(), "{refused:?}");
        let held = swarm.cluster.list(LEASES).unwrap().iter().filter(|l| l.pointer("/spec/holder").is_some()).count();
        assert_eq!(held, 0, "leases with a holder after all were deleted");
        if round == 1 {
            // Other pods of the same names, as a rolling restart makes them; they go without a kubelet's word.
            m.kubectl(&["delete", "--raw", "/api/v1/namespaces/default/pods?gracePeriodSeconds=0"]).unwrap();
            swarm.make_pods().unwrap();
            std::thread::sleep(Duration::from_secs(2));
            audit.until_quiet(AGENT, PATIENCE).unwrap();
        }
    }
    println!("writes for each pod's life by {AGENT} and {CONTROLLER}: {life:.2?}");
    // A create, an endpoint and a delete, and what the controller counts; seen: 3.02 to 3.06.
    assert!(life.iter().all(|l| *l <= 3.6), "{life:?}");
    swarm.stop().unwrap();
}
