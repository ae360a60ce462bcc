//! Steps of Open vSwitch while its database dies and comes back, while others rewrite what we write to, and while the switch
//! is late or says no. Judged by `ovs-vsctl`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../netlink/tests/support/netns.rs"]
mod common;
#[path = "lab/switch.rs"]
mod switch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{ip, netns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ovsdb::{Client, Condition, Config, Endpoint, Operation, Value, columns};
use planner::Step;
use planner::step::PortSet;
use plumbing::{Host, LinuxHost, StepError, Undo};
use switch::{Switch, apply, bridge, plan, port, tag, veth, wait_until};

fn signal(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// A port that needs no link of the kernel: ovs-vswitchd makes the device.
fn internal(name: &str) -> Step {
    let mut step = port("br1", name, tag(7));
    if let Step::AddPort { port, .. } = &mut step {
        port.interfaces[0].kind = "internal".into();
    }
    step
}

fn ports(switch: &Switch) -> BTreeSet<String> {
    switch.vsctl("--no-wait list-ports br1").lines().map(str::to_owned).collect()
}

/// Ports of the bridge are these, each with one Port and one Interface row, and forwarded for.
fn are(switch: &Switch, expected: &BTreeSet<String>) {
    let differ: Vec<String> = ports(switch).symmetric_difference(expected).cloned().collect();
    assert!(differ.is_empty(), "not as told: {differ:?}");
    // The bridge's local port besides.
    let rows = |table: &str| switch.vsctl(&format!("--columns=name -f csv --no-headings list {table}")).lines().count();
    assert_eq!((rows("Port"), rows("Interface")), (expected.len() + 1, expected.len() + 1));
    wait_until("all are forwarded for", || {
        let text = switch.vsctl("--columns=ofport -f csv --no-headings list Interface");
        text.lines().all(|ofport| ofport.parse::<i64>().is_ok_and(|n| n > 0))
    });
}

/// Until it is certainly gone; an error may mean that nobody answers just now.
async fn settle(host: &LinuxHost, step: &Step) {
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(e) = host.apply(None, &plan([step.inverse().unwrap()])).await {
        assert!(Instant::now() < until, "{e}");
    }
}

#[derive(Debug, Default)]
struct Ends {
    done: AtomicUsize,
    undone: AtomicUsize,
    settled: AtomicUsize,
}

/// Adds so many ports, and takes every second away again.
async fn work(worker: usize, host: LinuxHost, ends: Arc<Ends>, rounds: Arc<AtomicUsize>) -> BTreeSet<String> {
    let mut there = BTreeSet::new();
    let count = |counter: &AtomicUsize| _ = counter.fetch_add(1, Ordering::Relaxed);
    for n in 0.. {
        if n >= rounds.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("w{worker}n{n}");
        let step = internal(&name);
        match host.apply(None, &plan([step.clone()])).await {
            Ok(()) => {
                count(&ends.done);
                there.insert(name.clone());
            }
            Err(e) if e.undone() => count(&ends.undone),
            Err(e) => {
                assert!(matches!(e.undo, Undo::Incomplete(_)));
                settle(&host, &step).await;
                count(&ends.settled);
            }
        }
        if n % 2 == 0 && there.contains(&name) {
            settle(&host, &step).await;
            there.remove(&name);
        }
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_port_is_doubled_or_lost_while_the_database_dies_and_comes_back() {
    let mut switch = Switch::start();
    let host = switch.host().await;
    apply(&host, &netns(), [bridge("br1")]).await.unwrap();
    let (ends, rounds) = (Arc::new(Ends::default()), Arc::new(AtomicUsize::new(usize::MAX)));
    let mut workers: Vec<_> =
        (0..6).map(|worker| tokio::spawn(work(worker, host.clone(), ends.clone(), rounds.clone()))).collect();
    for round in 0..10 {
        // ovs-vswitchd takes a second to come back to its database.
        tokio::time::sleep(Duration::from_millis(1300 + round * 37 % 200)).await;
        // It hangs for a moment, so that what is sent then is certainly under way when it ends.
        signal(&switch.ovsdb, Signal::SIGSTOP);
        for _ in 0..4 {
            let once = Arc::new(AtomicUsize::new(1));
            workers.push(tokio::spawn(work(workers.len(), host.clone(), ends.clone(), once)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        signal(&switch.ovsdb, if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGTERM });
        signal(&switch.ovsdb, Signal::SIGCONT);
        switch.ovsdb.wait().unwrap();
        switch.restart_ovsdb();
    }
    rounds.store(0, Ordering::Relaxed);
    let mut expected = BTreeSet::new();
    for worker in workers {
        expected.extend(worker.await.unwrap());
    }
    println!("{ends:?}, {} ports", expected.len());
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert!(count(&ends.done) > 10 && count(&ends.undone) + count(&ends.settled) > 10, "{ends:?}");
    are(&switch, &expected);
    let marked = host.find_marked(None).await.unwrap();
    assert_eq!(marked.len(), expected.len(), "each port can be found by its mark");
}

/// Reads the ports of the bridge, and writes them all back with one more or one less, as NetworkManager does: if they are still
/// what was read.
async fn rewrite(client: &Client, add: Option<&str>, del: Option<&str>) -> bool {
    let this = || vec![Condition::equal("name", "br1")];
    let read = client.transact(vec![
        Operation::select_columns("Bridge", this(), &["ports"]),
        Operation::select_columns("Port", vec![Condition::equal("name", del.unwrap_or_default())], &["_uuid"]),
    ]);
    let read = read.await.unwrap();
    let before = read[0].rows().unwrap()[0]["ports"].clone();
    let gone = read[1].rows().unwrap().first().map(|row| row["_uuid"].as_atom().unwrap().clone());
    let mut after = before.as_set().unwrap().to_vec();
    after.retain(|port| Some(port) != gone.as_ref());
    let mut operations = vec![Operation::expect("Bridge", this(), &["ports"], vec![columns([("ports", before)])])];
    if let Some(add) = add {
        let interface = columns([("name", add.into()), ("type", "internal".into())]);
        operations.push(Operation::insert("Interface", interface).named("i"));
        let row = columns([("name", add.into()), ("interfaces", Value::named_uuid("i"))]);
        operations.push(Operation::insert("Port", row).named("p"));
        after.push(ovsdb::Atom::NamedUuid("p".into()));
    }
    operations.push(Operation::update("Bridge", this(), columns([("ports", Value::set(after))])));
    match client.transact(operations).await {
        Ok(_) => true,
        Err(e) => {
            assert!(e.is_timed_out(), "{e}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_loses_a_port_to_those_who_write_all_ports_anew() {
    let switch = Switch::start();
    let host = switch.host().await;
    apply(&host, &netns(), [bridge("br1")]).await.unwrap();
    let (ends, rounds) = (Arc::new(Ends::default()), Arc::new(AtomicUsize::new(usize::MAX)));
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4).map(|worker| tokio::spawn(work(worker, host.clone(), ends.clone(), rounds.clone()))).collect();
    let rival = tokio::spawn({
        let (endpoint, stop) = (Endpoint::Unix(switch.sock()), stop.clone());
        async move {
            let client = Client::connect(endpoint, Config::default());
            client.connected(Duration::from_secs(60)).await.unwrap();
            let (mut there, mut lost) = (BTreeSet::new(), 0);
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("rival{n}");
                let del = there.first().filter(|_| there.len() > 5).cloned();
                if rewrite(&client, Some(&name), del.as_deref()).await {
                    there.insert(name);
                    del.map(|del| there.remove(&del));
                } else {
                    lost += 1;
                }
            }
            (there, lost)
        }
    });
    // And the tool that people use, in this thread's namespace or another: it only needs the socket.
    let mut expected = BTreeSet::new();
    let until = Instant::now() + Duration::from_secs(6);
    for n in 0.. {
        if Instant::now() > until {
            break;
        }
        let set = format!("-- set Interface tool{n} type=internal");
        let del = if n >= 5 { format!("-- del-port br1 tool{}", n - 5) } else { String::new() };
        switch.vsctl(&format!("--no-wait add-port br1 tool{n} {set} {del}"));
        expected.insert(format!("tool{n}"));
        expected.remove(&format!("tool{}", n - 5));
    }
    stop.store(true, Ordering::Relaxed);
    rounds.store(0, Ordering::Relaxed);
    for worker in workers {
        expected.extend(worker.await.unwrap());
    }
    let (theirs, lost) = rival.await.unwrap();
    expected.extend(theirs);
    println!("{ends:?}, {} ports, the rival had to try again {lost} times", expected.len());
    assert_eq!(ends.undone.load(Ordering::Relaxed) + ends.settled.load(Ordering::Relaxed), 0, "ours do not lose: {ends:?}");
    are(&switch, &expected);
}

#[tokio::test]
async fn a_switch_that_is_late_is_waited_for() {
    let (switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1")]).await.unwrap();
    signal(&switch.vswitchd, Signal::SIGSTOP);
    let began = Instant::now();
    let [add, up] = veth("veth1", "net1");
    let (applied, ()) = tokio::join!(apply(&host, &pod, [add, up, port("br1", "veth1", tag(7))]), async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        signal(&switch.vswitchd, Signal::SIGCONT);
    });
    applied.unwrap();
    assert!(began.elapsed() > Duration::from_secs(4));
    assert!(switch.vsctl("get Interface veth1 ofport").parse::<i64>().unwrap() > 0);
}

#[tokio::test]
async fn what_a_late_switch_says_no_to_is_undone() {
    let (switch, pod) = (Switch::start(), netns());
    let host = switch.host().await;
    apply(&host, &pod, [bridge("br1")]).await.unwrap();
    let before = switch.picture();
    // A device that the switch will not find, once it looks.
    signal(&switch.vswitchd, Signal::SIGSTOP);
    let [add, up] = veth("veth1", "net1");
    let steps = [add, up, port("br1", "veth1", tag(7)), port("br1", "absent0", PortSet::default())];
    let (applied, ()) = tokio::join!(apply(&host, &pod, steps), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        signal(&switch.vswitchd, Signal::SIGCONT);
    });
    let e = applied.unwrap_err();
    assert!(e.index == 3 && e.undone() && matches!(*e.cause, StepError::Interface { .. }), "{e}");
    wait_until("undone", || switch.picture() == before);

    // `ofport` alone says no: some versions write no `error`.
    signal(&switch.vswitchd, Signal::SIGSTOP);
    let [add, up] = veth("veth2", "net2");
    let refuse = std::thread::spawn({
        let (netns, sock) = (switch.netns.clone(), switch.sock());
        move || {
            let db = format!("--db=unix:{}", sock.display());
            let args = [&db, "--no-wait", "--timeout=10", "--", "wait-until", "Interface", "veth2", "name=veth2"];
            common::run(&netns, "ovs-vsctl", &[&args[..], &["--", "set", "Interface", "veth2", "ofport=-1"]].concat()).unwrap();
        }
    });
    let applied = apply(&host, &pod, [add, up, port("br1", "veth2", tag(7))]).await;
    refuse.join().unwrap();
    signal(&switch.vswitchd, Signal::SIGCONT);
    let e = applied.unwrap_err();
    assert!(e.undone(), "{e}");
    assert_eq!(
        e.to_string(),
        "failed to add port veth2 to bridge br1 tag 7: open vswitch could not use interface veth2: ofport is -1"
    );
    wait_until("undone", || switch.picture() == before);
    assert_eq!(ip(&pod, "link show").as_array().unwrap().len(), 1, "only lo");
}
