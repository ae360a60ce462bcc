//! 200 pods at once on one node: none fails, and memory and requests stay bounded; and with a pool that runs empty in the
//! middle, the rest fail with the reason, leave nothing, and get what is freed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::cluster::{Cluster, EVENTS, PODS, text};
use integration_tests::oracle;
use integration_tests::product::wait_until;
use integration_tests::rounds::{Rounds, create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PODS_AT_ONCE: usize = 200;
/// For the pool that runs empty, which in the lane is a smaller one: pods, and addresses for them.
fn more_than_room() -> (usize, usize) {
    if std::env::var_os("MOORING_KILL_ROUNDS").is_some_and(|v| v == "full") { (200, 120) } else { (80, 50) }
}
/// A plugin gives up after a minute, and the machine is busy.
const PATIENCE: Duration = Duration::from_secs(180);

fn start() -> Rounds {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    Rounds::start(exe, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")).unwrap_or_else(|e| panic!("{e:#}"))
}

fn pool(w: &Rounds, name: &str, range: &str) {
    let yaml = format!(
        "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {{name: {name}}}, \
         spec: {{subnet: 172.18.0.0/16, gateway: 172.18.0.1, ips: [{range}]}}}}"
    );
    w.cluster.apply_text(&yaml).unwrap();
    wait_until("the pool is counted", PATIENCE, || {
        let pool = w.cluster.get(integration_tests::cluster::POOLS, None, name)?;
        ensure!(!text(&pool, "/status/totalIPCount").is_empty(), "no count yet");
        Ok(())
    })
    .unwrap();
}

/// `VmRSS` and `VmHWM` of a process, in MiB.
fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (kib("VmRSS:") / 1024, kib("VmHWM:") / 1024)
}

/// The agent stands still while all pods come, so that all of their calls are there when it goes on.
fn burst(w: &mut Rounds, pool: &str, count: usize) -> Result<()> {
    let pid = w.product.agent(&w.lab.nodes[0])?.pid();
    let process = Pid::from_raw(pid.cast_signed());
    kill(process, Signal::SIGSTOP)?;
    let annotations =
        format!("v1.multus-cni.io/default-network: kube-system/ovs-conf, ipam.spidernet.io/ippool: '{{\"ipv4\": [\"{pool}\"]}}'");
    for number in 0..count {
        create(&w.cluster, &format!("burst-{number}"), "n1", &annotations)?;
    }
    let node = &w.lab.nodes[0].space;
    let waiting = wait_until("all calls wait", PATIENCE, || {
        let calls: usize =
            node.run("sh", &["-c", "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx mooring || true"])?.trim().parse()?;
        ensure!(calls >= count, "{calls} calls wait");
        Ok(())
    });
    kill(process, Signal::SIGCONT)?;
    waiting
}

fn running(cluster: &Cluster) -> Result<usize> {
    let pods = cluster.list(PODS)?;
    let runs = |p: &&serde_json::Value| {
        text(p, "/metadata/name").starts_with("burst-")
            && text(p, "/status/phase") == "Running"
            && p.pointer("/metadata/deletionTimestamp").is_none()
    };
    Ok(pods.iter().filter(runs).count())
}

/// What pods were told that failed.
fn warnings(cluster: &Cluster) -> Result<Vec<String>> {
    let events = cluster.list(EVENTS)?;
    let failed = events.iter().filter(|e| text(e, "/reason") == "FailedCreatePodSandBox");
    Ok(failed.map(|e| format!("{}: {}", text(e, "/involvedObject/name"), text(e, "/message"))).collect())
}

fn until_running(w: &Rounds, count: usize) -> Result<()> {
    wait_until(&format!("{count} pods run"), PATIENCE, || {
        let now = running(&w.cluster)?;
        ensure!(now == count, "{now} run; {}", warnings(&w.cluster)?.last().cloned().unwrap_or_default());
        Ok(())
    })
}

fn all_gone(w: &Rounds) -> Result<()> {
    for number in 0..PODS_AT_ONCE {
        w.cluster.delete(PODS, &format!("burst-{number}"))?;
    }
    wait_until("all are gone", PATIENCE, || {
        let left = w.cluster.list(PODS)?.len();
        ensure!(left == 2, "{left} pods are left");
        Ok(())
    })
}

fn judged(work: impl FnOnce(&mut Rounds) -> Result<()>) {
    let mut w = start();
    let done = work(&mut w).and_then(|()| w.settled()).and_then(|()| w.product.check());
    done.unwrap_or_else(|e| panic!("{:#}", w.explained(e)));
}

#[test]
fn two_hundred_pods_at_once_all_start_within_bounds() {
    judged(|w| {
        pool(w, "burst", "172.18.50.1-172.18.50.250");
        let pid = w.product.agent(&w.lab.nodes[0])?.pid();
        let before = memory(pid);
        w.proxy.take_counts();
        burst(w, "burst", PODS_AT_ONCE)?;
        let began = Instant::now();
        until_running(w, PODS_AT_ONCE)?;
        let took = began.elapsed();
        let failed = warnings(&w.cluster)?;
        ensure!(failed.is_empty(), "{} failed: {}", failed.len(), failed[0]);
        oracle::settled(&w.lab, &w.product, 60).context("with 200 pods")?;
        let (counts, most) = w.proxy.take_counts();
        let after = memory(pid);
        println!(
            "{PODS_AT_ONCE} pods in {:.1} s; agent RSS {} MiB before, {} at most, {} after; requests at once at most {most}: {counts:?}",
            took.as_secs_f32(),
            before.0,
            after.1,
            after.0
        );
        // A call has its result and its configuration in memory, and 32 of them are in hand at once.
        ensure!(after.1 <= before.0 + 40, "the agent grew from {} to {} MiB", before.0, after.1);
        // 32 calls in hand; the rest is endpoints, Events, the node and the controller.
        ensure!(most <= 48, "{most} requests were in hand at once");
        let of = |name: &str| counts.get(name).copied().unwrap_or(0);
        let creates = of("POST addressleases");
        // One for each address, a few that were lost, and spares that come while the pool is empty and go when it is used.
        ensure!(creates * 4 <= PODS_AT_ONCE * 5, "{creates} creates for {PODS_AT_ONCE} addresses");
        ensure!(of("GET addressleases") <= PODS_AT_ONCE / 10, "{} reads of leases", of("GET addressleases"));
        let all: usize = counts.iter().filter(|(name, _)| !name.starts_with("WATCH")).map(|(_, n)| n).sum();
        ensure!(all <= 8 * PODS_AT_ONCE, "{all} requests for {PODS_AT_ONCE} pods: {counts:?}");
        all_gone(w)
    });
}

#[test]
fn a_pool_that_runs_empty_in_the_middle_fails_the_rest_until_some_are_freed() {
    judged(|w| {
        let (count, room) = more_than_room();
        pool(w, "small", &format!("172.18.51.1-172.18.51.{room}"));
        burst(w, "small", count)?;
        until_running(w, room)?;
        // The rest asks again and again, as a kubelet does, without a storm.
        let window = Duration::from_secs(10);
        w.proxy.take_counts();
        std::thread::sleep(window);
        let (counts, _) = w.proxy.take_counts();
        ensure!(running(&w.cluster)? == room, "more run than there are addresses");
        let warned = warnings(&w.cluster)?;
        let clear = |line: &&String| line.contains("small") && line.contains("address");
        ensure!(warned.iter().any(|l| clear(&l)), "nobody is told that pool small has no address: {:?}", warned.last());
        // Each of the rest tries some five times in that window: none of that may cost more than a few requests.
        let all: usize = counts.iter().filter(|(name, _)| !name.starts_with("WATCH")).map(|(_, n)| n).sum();
        println!("an empty pool, {} pods that ask: {all} requests in {} s: {counts:?}", count - room, window.as_secs());
        ensure!(all <= (count - room) * 10, "{all} requests in {} s: {counts:?}", window.as_secs());
        oracle::settled(&w.lab, &w.product, 30).context("with an empty pool")?;
        let pods = w.cluster.list(PODS)?;
        let up = pods.iter().filter(|p| text(p, "/status/phase") == "Running" && text(p, "/metadata/name").starts_with("burst-"));
        for pod in up.take((count - room) / 2) {
            w.cluster.delete(PODS, &text(pod, "/metadata/name"))?;
        }
        until_running(w, room)?;
        all_gone(w)
    });
}
