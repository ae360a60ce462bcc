//! What can be killed, gone, torn or full, while pods come and go: after each, the oracle is silent and every pod that was up
//! has ping and TCP. `make kill-rounds` runs all rounds (MOORING_KILL_ROUNDS=full); the lab's lane has fewer of each kind.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::cluster::{PODS, text};
use integration_tests::product::wait_until;
use integration_tests::proxy::Fault;
use integration_tests::rounds::{Dice, Load, PATIENCE, Rounds};

fn start() -> Rounds {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab"));
    Rounds::start(exe, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")).unwrap_or_else(|e| panic!("{e:#}"))
}

/// All rounds, or those of the lane.
fn full() -> bool {
    std::env::var_os("MOORING_KILL_ROUNDS").is_some_and(|v| v == "full")
}

/// Runs `work` in a world, which is settled afterwards.
fn in_world(work: impl FnOnce(&mut Rounds) -> Result<()>) {
    let mut rounds = start();
    let done = work(&mut rounds).and_then(|()| rounds.settled()).and_then(|()| rounds.product.check());
    done.unwrap_or_else(|e| panic!("{:#}", rounds.explained(e)));
}

/// The build of the agent that stops at a step of its work.
const STOPPING: &str = "mooring-agent-stopping";

/// Ends the agent of n1, and starts it so that it stops at step `k` of the next call of `verb`.
fn arm(w: &mut Rounds, verb: &str, k: u64) -> Result<()> {
    if let Ok(agent) = w.product.take_agent(&w.lab.nodes[0]) {
        agent.stop()?;
    }
    w.product.start_agent_as(&w.lab, &w.lab.nodes[0], STOPPING, &[("MOORING_STOP_AT", &format!("{verb}:{k}"))])?;
    // What it lists when it starts is no part of the call.
    std::thread::sleep(Duration::from_millis(500));
    Ok(())
}

/// Whether the agent of n1 ended before `other` came about; then the next life has begun.
fn stopped(w: &mut Rounds, other: impl Fn(&Rounds) -> bool) -> Result<Option<String>> {
    let mut deadline = Instant::now() + PATIENCE;
    let mut came = false;
    loop {
        let ended = w.product.agent(&w.lab.nodes[0])?.check().is_err();
        if ended {
            let log = w.product.take_agent(&w.lab.nodes[0])?.log();
            let line =
                log.lines().rev().find(|l| l.starts_with("stopped at step")).context("it ended by something else")?.to_owned();
            w.product.start_agent(&w.lab, &w.lab.nodes[0])?;
            return Ok(Some(line));
        }
        if !came && other(w) {
            // What is written behind the reply has its steps as well.
            (came, deadline) = (true, Instant::now() + Duration::from_millis(1500));
        }
        if came && Instant::now() > deadline {
            // One that is still armed could end while it is judged.
            let over = w.product.take_agent(&w.lab.nodes[0])?.stop().is_err();
            w.product.start_agent(&w.lab, &w.lab.nodes[0])?;
            return Ok(over.then(|| "stopped at a step of what is written behind".to_owned()));
        }
        ensure!(Instant::now() < deadline, "the agent neither stops nor ends the call");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_agent_that_ends_at_any_step_of_add_or_del_leaves_nothing() {
    in_world(|w| {
        // The lane takes some of them, always the same ones.
        let stride = if full() { 1 } else { 11 };
        let (mut k, mut rounds) = (0, 0);
        loop {
            let name = format!("step-{k}");
            arm(w, "ADD", k)?;
            w.pod(&name, "n1")?;
            let runs =
                |w: &Rounds| w.cluster.get(PODS, Some("default"), &name).is_ok_and(|p| text(&p, "/status/phase") == "Running");
            let added = stopped(w, runs).with_context(|| format!("ADD:{k}"))?;
            let say = |what: &Option<String>| what.clone().unwrap_or_else(|| "it went to its end".to_owned());
            let at = format!("ADD:{k} ({})", say(&added));
            w.running(&name).and_then(|_| w.settled()).with_context(|| at.clone())?;
            arm(w, "DEL", k)?;
            w.cluster.delete(PODS, &name)?;
            let gone = |w: &Rounds| w.cluster.get(PODS, Some("default"), &name).is_err();
            let deleted = stopped(w, gone).with_context(|| format!("DEL:{k}"))?;
            let at = format!("DEL:{k} ({})", say(&deleted));
            w.gone(&name).and_then(|()| w.settled()).with_context(|| at.clone())?;
            println!("{k}: {} | {}", say(&added), say(&deleted));
            rounds += 1;
            if added.is_none() && deleted.is_none() {
                println!("{rounds} rounds, every {stride}. step");
                return Ok(());
            }
            k += stride;
        }
    });
}

#[test]
fn the_shipped_agent_knows_no_steps_to_stop_at() {
    let mut w = start();
    let node = &w.lab.nodes[0];
    w.product.take_agent(node).unwrap().stop().unwrap();
    w.product.start_agent_as(&w.lab, node, "mooring-agent", &[("MOORING_STOP_AT", "ADD:0")]).unwrap();
    w.pod("a", "n1").unwrap();
    w.running("a").unwrap_or_else(|e| panic!("{:#}", w.explained(e)));
    w.product.check().unwrap();
    let has = |program: &str| {
        let file = PathBuf::from(env!("CARGO_BIN_EXE_mooring-lab")).with_file_name(program);
        let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        bytes.windows(15).any(|w| w == b"MOORING_STOP_AT")
    };
    assert!(!has("mooring-agent"), "the shipped agent has the feature");
    assert!(has(STOPPING), "the stopping agent has it not: this test would find nothing");
    w.settled().unwrap_or_else(|e| panic!("{:#}", w.explained(e)));
}

#[test]
fn agents_killed_at_random_under_load_leave_nothing() {
    in_world(|w| {
        let kills = if full() { 200 } else { 8 };
        let mut dice = Dice::new(4);
        let (mut names, mut number) = (Vec::new(), 0);
        let began = Instant::now();
        for kill in 0..kills {
            let load = Load::start(w, dice.clone(), names, number)?;
            // A few kills in a row, so that a start is killed as well.
            for _ in 0..=dice.below(3) {
                std::thread::sleep(Duration::from_millis(dice.below(700)));
                let node = usize::try_from(dice.below(2))?;
                w.crash_agent(node)?;
            }
            let (left, next) = load.stop(w).with_context(|| format!("kill {kill}"))?;
            (names, number) = (left, next);
            w.settled().with_context(|| format!("after kill {kill}"))?;
        }
        println!("{kills} kills and more, {number} pods were made, {:.0} s", began.elapsed().as_secs_f32());
        Ok(())
    });
}

#[test]
fn controller_and_open_vswitch_killed_under_load_leave_nothing() {
    in_world(|w| {
        let mut dice = Dice::new(5);
        let (mut names, mut number) = (Vec::new(), 0);
        for round in 0..if full() { 10 } else { 1 } {
            for what in ["controller", "ovs-vswitchd", "ovsdb-server", "both", "controller and agent"] {
                let load = Load::start(w, dice.clone(), names, number)?;
                std::thread::sleep(Duration::from_millis(300 + dice.below(700)));
                let node = usize::try_from(dice.below(2))?;
                let (db, switch) = (matches!(what, "ovsdb-server" | "both"), matches!(what, "ovs-vswitchd" | "both"));
                if what.starts_with("controller") {
                    w.product.crash_controller(&w.lab)?;
                }
                if what.ends_with("agent") {
                    w.crash_agent(node)?;
                }
                if switch {
                    w.lab.nodes[node].kill_vswitchd()?;
                }
                if db {
                    w.lab.nodes[node].kill_ovsdb()?;
                }
                std::thread::sleep(Duration::from_millis(dice.below(1500)));
                w.lab.revive_ovs(node + 1, db, switch)?;
                let at = || format!("round {round}: {what} killed on n{}", node + 1);
                (names, number) = load.stop(w).with_context(at)?;
                w.settled().with_context(at)?;
            }
        }
        println!("{number} pods were made");
        Ok(())
    });
}

#[test]
fn an_api_that_is_gone_slow_or_refuses_holds_up_no_del_and_leaves_nothing() {
    in_world(|w| {
        let minute = Duration::from_secs(if full() { 60 } else { 8 });
        let short = Duration::from_secs(if full() { 20 } else { 3 });
        let faults = [
            ("slow", Fault::Slow(Duration::from_secs(2)), Duration::from_secs(10)),
            ("too-many", Fault::Refuse(429), short),
            ("error", Fault::Refuse(500), short),
            ("mute", Fault::Mute, short),
            ("gone", Fault::Gone, minute),
        ];
        for (name, fault, time) in faults {
            let (before, during) = (format!("{name}-before"), format!("{name}-during"));
            w.pod(&before, "n1")?;
            w.running(&before)?;
            let up: Vec<_> = w.up()?.into_iter().filter(|u| u.name.starts_with("up-")).collect();
            w.proxy.set(fault);
            let began = Instant::now();
            w.pod(&during, "n1")?;
            w.cluster.delete(PODS, &before)?;
            let work = |w: &mut Rounds| -> Result<()> {
                // DEL needs no API.
                w.gone(&before)?;
                let took = began.elapsed();
                ensure!(took < Duration::from_secs(20), "DEL took {took:?}");
                if fault == Fault::Gone {
                    w.crash_agent(1)?;
                }
                w.reach(&up)?;
                std::thread::sleep(time.saturating_sub(began.elapsed()));
                w.reach(&up)
            };
            work(w).with_context(|| format!("while the API is {name}"))?;
            w.proxy.set(Fault::None);
            w.running(&during).and_then(|_| w.settled()).with_context(|| format!("after the API was {name}"))?;
            println!("{name} for {:.0} s", began.elapsed().as_secs_f32());
        }
        Ok(())
    });
}

#[test]
fn a_journal_that_is_torn_costs_no_pod_its_network() {
    in_world(|w| {
        let mut dice = Dice::new(6);
        for round in 0..if full() { 30 } else { 6 } {
            w.product.take_agent(&w.lab.nodes[0])?.kill()?;
            let path = w.lab.nodes[0].path("/run/mooring/journal");
            let mut bytes = std::fs::read(&path)?;
            // Whatever a write that did not end leaves behind the last record: noise, or a record's beginning.
            let what = if round % 2 == 0 {
                let more = dice.below(400);
                bytes.extend((0..more).map(|_| dice.below(256) as u8));
                "noise behind it"
            } else {
                let last = bytes[..bytes.len() - 1].rsplit(|b| *b == b'\n').next().unwrap_or_default().to_vec();
                bytes.extend(&last[..usize::try_from(dice.below(last.len() as u64))?]);
                "half a record behind it"
            };
            std::fs::write(&path, &bytes)?;
            w.product.start_agent(&w.lab, &w.lab.nodes[0])?;
            let (name, before) = (format!("torn-{round}"), format!("torn-{}", round - 1));
            w.pod(&name, "n1")?;
            let at = || format!("round {round}: {what}");
            w.running(&name).and_then(|_| w.settled()).with_context(at)?;
            // The next life knows what the one before it made.
            w.cluster.delete(PODS, &before)?;
            w.gone(&before).and_then(|()| w.settled()).with_context(at)?;
        }
        Ok(())
    });
}

#[test]
fn a_journal_that_lost_entries_costs_no_pod_its_network() {
    in_world(|w| {
        let path = w.lab.nodes[0].path("/run/mooring/journal");
        let up: Vec<String> = (0..4).map(|i| format!("lost-{i}")).collect();
        for name in &up {
            w.pod(name, "n1")?;
        }
        for name in &up {
            w.running(name)?;
        }
        // Which of so many lines are left.
        type Keep = fn(usize, usize) -> bool;
        let rounds: &[(&str, Keep)] = &[
            ("emptied", |_, _| false),
            ("its first half", |line, all| line < all / 2),
            ("every second entry", |line, _| line % 2 == 0),
            ("emptied again", |_, _| false),
        ];
        for (round, (what, keep)) in rounds.iter().enumerate() {
            // A start writes the file anew: one record for each entry, in its last state.
            w.crash_agent(0)?;
            let before = w.reach(&w.up()?).and_then(|()| addresses(w))?;
            w.product.take_agent(&w.lab.nodes[0])?.kill()?;
            let text = std::fs::read_to_string(&path)?;
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            let all = lines.len();
            // Addresses of two NICs at least.
            ensure!(all >= w.up()?.iter().filter(|u| u.node == 0).count() * 2, "only {all} entries");
            let left: String = lines.iter().enumerate().filter(|(i, _)| keep(*i, all)).map(|(_, l)| *l).collect();
            std::fs::write(&path, left)?;
            w.product.start_agent(&w.lab, &w.lab.nodes[0])?;
            let at = || format!("round {round}: of {all} entries {what}");
            // New pods get none of the addresses that live.
            let name = format!("lost-new-{round}");
            w.pod(&name, "n1")?;
            let began = Instant::now();
            w.running(&name).and_then(|_| w.settled()).with_context(at)?;
            println!("round {round}: of {all} entries {what}; a new pod runs after {:.1} s", began.elapsed().as_secs_f32());
            let after = addresses(w)?;
            ensure!(before.iter().all(|a| after.contains(a)), "{}: {before:?} became {after:?}", at());
            // DEL of what was lost leaves nothing, and what it had is given again: the oracle knows.
            w.cluster.delete(PODS, &up[round])?;
            w.gone(&up[round]).and_then(|()| w.settled()).with_context(at)?;
        }
        Ok(())
    });
}

/// Name, NIC and address of all pods that run.
fn addresses(w: &Rounds) -> Result<Vec<String>> {
    let mut all: Vec<String> =
        w.up()?.iter().flat_map(|u| u.addresses.iter().map(|(nic, ip)| format!("{} {nic} {ip}", u.name))).collect();
    all.sort();
    Ok(all)
}

#[test]
fn full_disks_fail_what_cannot_be_noted_and_leave_nothing() {
    in_world(|w| {
        let sh = |w: &Rounds, script: &str| w.lab.nodes[0].space.run("sh", &["-ec", script]);
        w.product.take_agent(&w.lab.nodes[0])?.stop()?;
        // Small ones of their own, with what is there already.
        for dir in ["/run/mooring", "/var/lib/mooring"] {
            sh(
                w,
                &format!("cp -a {dir} /run/was; mount -t tmpfs -o size=512k tmpfs {dir}; cp -a /run/was/. {dir}; rm -r /run/was"),
            )?;
        }
        w.product.start_agent(&w.lab, &w.lab.nodes[0])?;
        w.pod("full-a", "n1")?;
        w.pod("full-b", "n1")?;
        w.running("full-a")?;
        w.running("full-b")?;
        let fill = |dir: &str| format!("head -c 1M /dev/zero > {dir}/fill 2>/dev/null || true");

        // The journal's: an ADD that cannot be noted fails and says so, a DEL is done.
        sh(w, &fill("/run/mooring"))?;
        w.pod("full-c", "n1")?;
        w.cluster.delete(PODS, "full-a")?;
        let told = || -> Result<()> {
            let warning = w.warning("full-c")?;
            ensure!(warning.contains("journal"), "warning: {warning:?}");
            Ok(())
        };
        wait_until("the full journal is told", PATIENCE, told)?;
        w.gone("full-a").context("DEL with a full journal")?;
        w.reachable().context("with a full journal")?;
        // A start then.
        w.product.take_agent(&w.lab.nodes[0])?.kill()?;
        let up = w.product.start_agent(&w.lab, &w.lab.nodes[0]).is_ok();
        println!("an agent starts with a full run directory: {up}");
        w.reachable().context("after a start with a full journal")?;
        sh(w, "rm /run/mooring/fill")?;
        if !up {
            w.product.start_agent(&w.lab, &w.lab.nodes[0])?;
        }
        w.running("full-c").and_then(|_| w.settled()).context("after the journal was full")?;

        // The spool's: a DEL that cannot be written down fails, and the runtime asks again.
        sh(w, &fill("/var/lib/mooring"))?;
        w.product.take_agent(&w.lab.nodes[0])?.kill()?;
        w.cluster.delete(PODS, "full-b")?;
        let refused = || -> Result<()> {
            let warning = w.warning("full-b")?;
            ensure!(warning.contains("spool"), "warning: {warning:?}");
            Ok(())
        };
        wait_until("the full spool is told", PATIENCE, refused)?;
        w.product.start_agent(&w.lab, &w.lab.nodes[0]).context("with a full state directory")?;
        w.gone("full-b").context("with a full state directory")?;
        w.settled().context("with a full state directory")?;
        sh(w, "rm /var/lib/mooring/fill").map(|_| ())
    });
}
