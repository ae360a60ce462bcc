//! The rows that are measured on a node: both sides' plugins take turns, so that whatever else the machine does hits both
//! alike. Runs in the node's namespaces and prints each row as it is there.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::exec::{Plugin, PodName, Process, Sandbox, at_once, children_cpu, version};
use super::figures::{Row, Times, verdict};
use super::is_asked;
use super::world::World;
use crate::cluster::{POOLS, text};
use crate::product::wait_until;

/// Runs that only fill caches.
pub(super) const WARM: usize = 3;
const GO_MACVLAN: &str = "Go macvlan + host-local";
const GO_BRIDGE: &str = "Go bridge + host-local";

/// Measures all rows on the node this runs on.
///
/// # Errors
/// A plugin fails where it must not.
pub fn run(socket: &Path, go: &Path, only: &[String]) -> Result<()> {
    let world = World::new(socket, go)?;
    type Measure = fn(&World) -> Result<Vec<Row>>;
    let rows: [(&str, Measure); 11] = [
        ("VERSION", versions),
        ("macvlan by the agent", macvlan),
        ("macvlan alone", alone),
        ("ovs", ovs),
        ("second NIC", second_nic),
        ("macvlan, 100 at once", burst),
        ("ovs, 100 at once", ovs_burst),
        ("CPU", cpu),
        ("memory", memory),
        ("floor", super::floor::rows),
        // Last: its 4,500 leases stay.
        ("pool nearly used up", full_pool),
    ];
    let mut failed = Vec::new();
    for (name, measure) in rows.into_iter().filter(|(name, _)| is_asked(only, name)) {
        let began = Instant::now();
        match measure(&world) {
            Ok(rows) => rows.iter().for_each(|row| println!("{}", row.to_line())),
            // What fails here says nothing against the rest.
            Err(e) => {
                eprintln!("{name}: {e:#}");
                failed.push(name);
            }
        }
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f32());
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// When a run's DEL comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dels {
    /// Right behind its ADD: a switch has few ports then.
    AtOnce,
    /// Behind all ADDs, as pods come: an address that was just given back rests, and there would soon be no spare in hand.
    AtEnd,
}

/// ADD and DEL times of some plugins that take turns, each run in a fresh namespace made beforehand.
fn in_turn(runs: usize, dels: Dels, sides: &[(&Plugin, &[PodName])]) -> Result<Vec<(Times, Times)>> {
    let mut times = vec![(Times::default(), Times::default()); sides.len()];
    // All that were made are removed only at the end, so that the kernel's work for that falls into no measured time.
    let mut used = Vec::new();
    let del = |run: usize, side: usize, sandbox: &Sandbox, times: &mut Vec<(Times, Times)>| -> Result<()> {
        let del = sides[side].0.must("DEL", sandbox)?;
        if run >= WARM {
            times[side].1.push(del);
        }
        Ok(())
    };
    // Who comes first changes with each round.
    for (run, turn) in (0..WARM + runs).flat_map(|run| (0..sides.len()).map(move |turn| (run, turn))) {
        let side = (run + turn) % sides.len();
        let (plugin, pods) = sides[side];
        // Each has a pod for itself.
        let sandbox = Sandbox::new(&pods[(run + side * (WARM + runs)) % pods.len()])?;
        let add = plugin.must("ADD", &sandbox)?;
        if run >= WARM {
            times[side].0.push(add);
        }
        if dels == Dels::AtOnce {
            del(run, side, &sandbox, &mut times)?;
        }
        used.push((run, side, sandbox));
    }
    if dels == Dels::AtEnd {
        for (run, side, sandbox) in &used {
            del(*run, *side, sandbox, &mut times)?;
        }
    }
    drop(used);
    settle();
    Ok(times)
}

/// The kernel takes namespaces down behind; the agent writes endpoints behind.
pub(super) fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}

fn versions(world: &World) -> Result<Vec<Row>> {
    let files = [world.macvlan("bench").file, world.ovs().file, world.go_file("macvlan")];
    let mut times = vec![Times::default(); files.len()];
    for run in 0..WARM + 200 {
        for turn in 0..files.len() {
            let side = (run + turn) % files.len();
            let time = version(&files[side])?;
            if run >= WARM {
                times[side].push(time);
            }
        }
    }
    Ok(vec![
        Row::medians("cni-macvlan VERSION", &times[0], "Go macvlan", &times[2], Some(0.4)),
        Row::medians("cni-ovs VERSION", &times[1], "Go macvlan", &times[2], None),
    ])
}

fn macvlan(world: &World) -> Result<Vec<Row>> {
    let times = in_turn(60, Dels::AtEnd, &[(&world.macvlan("bench"), &world.pods), (&world.go_macvlan(), &world.pods)])?;
    Ok(vec![
        Row::medians("macvlan ADD by the agent, address of a pool", &times[0].0, GO_MACVLAN, &times[1].0, Some(0.4)),
        Row::medians("macvlan DEL", &times[0].1, GO_MACVLAN, &times[1].1, Some(1.05)),
    ])
}

fn alone(world: &World) -> Result<Vec<Row>> {
    let ours = world.macvlan_host_local();
    let times = world.alone(|| in_turn(60, Dels::AtEnd, &[(&ours, &world.pods), (&world.go_macvlan(), &world.pods)]))?;
    Ok(vec![
        Row::medians("macvlan ADD alone + the same host-local", &times[0].0, GO_MACVLAN, &times[1].0, Some(0.6)),
        Row::medians("macvlan DEL alone + the same host-local", &times[0].1, GO_MACVLAN, &times[1].1, None),
    ])
}

fn ovs(world: &World) -> Result<Vec<Row>> {
    let times = in_turn(100, Dels::AtOnce, &[(&world.ovs(), &world.pods), (&world.go_bridge(), &world.pods)])?;
    let p99 = |t: &Times| (t.percentile(0.99), format!("{:.2} at p99", t.percentile(0.99)));
    Ok(vec![
        Row::medians("ovs ADD by the agent, address of a pool", &times[0].0, GO_BRIDGE, &times[1].0, Some(1.0)),
        Row::ratio("ovs ADD, p99", p99(&times[0].0), GO_BRIDGE, p99(&times[1].0), Some(2.0), "100".into()),
        Row::medians("ovs DEL", &times[0].1, GO_BRIDGE, &times[1].1, None),
    ])
}

fn second_nic(world: &World) -> Result<Vec<Row>> {
    let ours = world.mooring();
    let times = in_turn(50, Dels::AtOnce, &[(&ours, &world.pods_two), (&ours, &world.pods), (&world.go_bridge(), &world.pods)])?;
    let (two, one, bridge) = (&times[0].0, &times[1].0, &times[2].0);
    let difference = two.median() - one.median();
    Ok(vec![
        Row::ratio(
            "second NIC: ADD through mooring with net1 minus without",
            (difference, format!("{difference:.2} = {:.2} - {:.2}", two.median(), one.median())),
            GO_BRIDGE,
            (bridge.median(), bridge.text()),
            Some(0.8),
            "50".into(),
        ),
        Row::medians("ADD through mooring, Go ptp + host-local as eth0", one, GO_BRIDGE, bridge, None),
    ])
}

fn sandboxes(world: &World, count: usize) -> Result<Vec<Sandbox>> {
    ensure!(count <= world.pods.len(), "{count} sandboxes for {} pods", world.pods.len());
    world.pods.iter().take(count).map(Sandbox::new).collect()
}

/// How often everything at once is done; each is 100 calls.
const BURSTS: usize = 3;

fn burst(world: &World) -> Result<Vec<Row>> {
    let sides = [world.macvlan("bench"), world.go_macvlan()];
    let mut times = vec![Times::default(); sides.len()];
    let mut failed = [0, 0];
    for round in 0..BURSTS {
        for turn in 0..sides.len() {
            let side = (round + turn) % sides.len();
            let sandboxes = sandboxes(world, 100)?;
            let (wall, failures) = at_once(&sides[side], "ADD", &sandboxes)?;
            times[side].push(wall);
            failed[side] += failures.len();
            if let Some(text) = failures.first() {
                eprintln!("{}: {} of 100 failed: {}", sides[side].file.display(), failures.len(), text.trim());
            }
            let (_, failures) = at_once(&sides[side], "DEL", &sandboxes)?;
            ensure!(failures.is_empty(), "{} DELs failed: {}", failures.len(), failures[0].trim());
            drop(sandboxes);
            settle();
        }
    }
    let what = format!("100 macvlan ADDs at once, {} of {} failed", failed[0], BURSTS * 100);
    let against = format!("100 of {GO_MACVLAN} at once, {} of {} failed", failed[1], BURSTS * 100);
    Ok(vec![Row::medians(&what, &times[0], &against, &times[1], Some(1.5))])
}

fn ovs_burst(world: &World) -> Result<Vec<Row>> {
    let plugin = world.ovs();
    let (mut one_by_one, mut together) = (Times::default(), Times::default());
    let mut failed = 0;
    for _ in 0..BURSTS {
        let all = sandboxes(world, 100)?;
        let started = Instant::now();
        for sandbox in &all {
            plugin.must("ADD", sandbox)?;
        }
        one_by_one.push(started.elapsed());
        let (_, failures) = at_once(&plugin, "DEL", &all)?;
        ensure!(failures.is_empty(), "{} DELs failed: {}", failures.len(), failures[0].trim());
        drop(all);
        settle();
        let all = sandboxes(world, 100)?;
        let (wall, failures) = at_once(&plugin, "ADD", &all)?;
        together.push(wall);
        failed += failures.len();
        if let Some(text) = failures.first() {
            eprintln!("{} of 100 ovs ADDs at once failed: {}", failures.len(), text.trim());
        }
        let (_, failures) = at_once(&plugin, "DEL", &all)?;
        ensure!(failures.is_empty(), "{} DELs failed: {}", failures.len(), failures[0].trim());
        drop(all);
        settle();
    }
    let what = format!("100 ovs ADDs at once, {failed} of {} failed", BURSTS * 100);
    Ok(vec![Row::medians(&what, &together, "the same one after another", &one_by_one, Some(0.33))])
}

/// Blocks of runs, because the agent's CPU time is counted in hundredths of a second, and some of its work comes behind.
fn cpu(world: &World) -> Result<Vec<Row>> {
    const BLOCK: usize = 50;
    let agent = Process::named("mooring-agent")?;
    let sides = [world.macvlan("bench"), world.go_macvlan()];
    // Plugins and agent, by side.
    let mut spent = [[Duration::ZERO; 2]; 2];
    for block in 0..4 {
        let side = block % 2;
        let all = sandboxes(world, BLOCK)?;
        let (plugins_before, agent_before) = (children_cpu()?, agent.cpu()?);
        for sandbox in &all {
            sides[side].must("ADD", sandbox)?;
            sides[side].must("DEL", sandbox)?;
        }
        std::thread::sleep(Duration::from_millis(1500));
        spent[side][0] += children_cpu()? - plugins_before;
        spent[side][1] += agent.cpu()? - agent_before;
        drop(all);
        settle();
    }
    let ms = |d: Duration| d.as_secs_f64() * 1e3 / (2 * BLOCK) as f64;
    let (ours, agents) = (ms(spent[0][0]), ms(spent[0][1]));
    // What the agent does meanwhile (it sees links come and go) is none of theirs.
    let theirs = ms(spent[1][0]);
    Ok(vec![Row::ratio(
        "CPU of macvlan ADD + DEL",
        (ours + agents, format!("{:.2} = {ours:.2} plugin + {agents:.2} agent", ours + agents)),
        GO_MACVLAN,
        (theirs, format!("{theirs:.2} (agent meanwhile {:.2})", ms(spent[1][1]))),
        Some(0.25),
        (2 * BLOCK).to_string(),
    )])
}

fn memory(world: &World) -> Result<Vec<Row>> {
    const PODS: usize = 250;
    let agent = Process::named("mooring-agent")?;
    let plugin = world.macvlan("bench");
    let all = sandboxes(world, PODS)?;
    for sandbox in &all {
        plugin.must("ADD", sandbox)?;
    }
    settle();
    let mib = agent.rss()? as f64 / 1024.0;
    for sandbox in &all {
        plugin.must("DEL", sandbox)?;
    }
    drop(all);
    settle();
    let goal = verdict(mib <= 25.0, "at most 25 MiB");
    let what = format!("agent's resident memory, {PODS} pods attached");
    Ok(vec![Row::alone(&what, format!("{mib:.1} MiB"), goal, 1)])
}

fn full_pool(world: &World) -> Result<Vec<Row>> {
    const USED: u32 = 4500;
    let first = u32::from(std::net::Ipv4Addr::new(10, 6, 64, 1));
    let mut leases = String::new();
    for i in 0..USED {
        let ip = std::net::Ipv4Addr::from(first + i);
        let spelled = |ip: std::net::Ipv4Addr| format!("v4-{}", ip.to_string().replace('.', "-"));
        let [a, b, c, _] = ip.octets();
        let lease = json!({
            "apiVersion": "mooring.dev/v1alpha1",
            "kind": "AddressLease",
            "metadata": {"name": format!("default.{}", spelled(ip)), "labels": {
                "mooring.dev/pool": "full", "mooring.dev/node": "elsewhere",
                "mooring.dev/chunk": spelled(std::net::Ipv4Addr::new(a, b, c, 0)),
            }},
            "spec": {
                "pool": "full", "address": ip.to_string(), "node": "elsewhere",
                "agentID": "6f1c2b5e-0000-4000-8000-000000000001",
                "holder": {"podNamespace": "default", "podName": format!("e{i}"), "podUID": format!("uid-{i}"),
                           "interface": "eth0", "containerID": format!("{i:064x}")},
            },
        });
        leases.push_str(&format!("---\n{lease}\n"));
        // The YAML reader takes at most 1,024 documents at once.
        if i % 500 == 499 {
            world.cluster.apply_text(&std::mem::take(&mut leases))?;
        }
    }
    world.cluster.apply_text(&leases)?;
    wait_until("4,500 addresses are counted", Duration::from_secs(30), || {
        let pool = world.cluster.get(POOLS, None, "full")?;
        let (allocated, free) = (text(&pool, "/status/allocatedIPCount"), text(&pool, "/status/freeIPCount"));
        ensure!(free == "500", "{allocated} are allocated, {free} free");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(2));
    let times = in_turn(50, Dels::AtEnd, &[(&world.macvlan("full"), &world.pods), (&world.macvlan("bench"), &world.pods)])?;
    Ok(vec![
        Row::medians(
            "macvlan ADD, 4,500 of the pool's 5,000 addresses used",
            &times[0].0,
            "the same, none used",
            &times[1].0,
            Some(1.2),
        ),
        Row::medians("macvlan DEL, the same", &times[0].1, "the same, none used", &times[1].1, None),
    ])
}
