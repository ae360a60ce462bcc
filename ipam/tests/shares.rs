//! How many creates an address costs when a pool is taken to its last address in less time than two maps come: machines of
//! many nodes against one table of leases. Counts requests; knows no latency but that of a map.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam::machine::{Ask, Machine, Map, Output, Owner, PoolOfAsk, Reply, Request, What};
use ipam::{Family, Holder, Lease, Name, Ranges, Window, share};

const POOL: &str = "thousand";

/// Addresses that were given, creates that this took.
struct Tally {
    given: usize,
    creates: usize,
    lists: usize,
}

/// `users` of `nodes` nodes take the whole pool in equal parts, `at_once` ADDs each; a map comes with every 450th create.
fn run(nodes: usize, users: usize, at_once: usize) -> Tally {
    let ranges = Arc::new(Ranges::parse(&["10.6.16.1-10.6.19.232"], Family::V4, None).unwrap());
    let pool = PoolOfAsk { name: POOL.into(), domain: "d".into(), ranges: ranges.clone() };
    let names: Vec<String> = (0..nodes).map(|i| format!("node-{i}")).collect();
    let mut leases: BTreeMap<Name, Lease> = BTreeMap::new();
    let map = |leases: &BTreeMap<Name, Lease>, version: usize| {
        let taken: BTreeSet<IpAddr> = leases.keys().map(|n| n.ip).collect();
        Map {
            version: version.to_string().into(),
            window: Window::build(&ranges, &taken),
            spares_per_node: 0,
            recall: Vec::new(),
            nodes: share::marks(names.iter().map(String::as_str)),
        }
    };
    let mut now = Duration::ZERO;
    let mut tally = Tally { given: 0, creates: 0, lists: 0 };
    let mut machines: Vec<Machine> = (0..users)
        .map(|i| {
            let me = Owner { node: names[i].as_str().into(), agent_id: format!("agent-{i}").into() };
            let mut m = Machine::new(me, [], i as u64, now);
            m.map(now, POOL, Some(map(&leases, 0)));
            m
        })
        .collect();
    let each = 1000 / users;
    let mut asked = vec![0; users];
    let ask = |m: &mut Machine, now, node: usize, n: usize| {
        let holder = Holder {
            namespace: "default".into(),
            pod: format!("p{node}-{n}"),
            uid: format!("u{node}-{n}"),
            nic: "eth0".into(),
            container: format!("c{node}-{n}"),
        };
        m.take(now, Ask { holder: Arc::new(holder), identity: None, what: What::Any(vec![pool.clone()]) });
    };
    for (i, m) in machines.iter_mut().enumerate() {
        for _ in 0..at_once {
            ask(m, now, i, asked[i]);
            asked[i] += 1;
        }
    }
    // Requests are answered in the order in which they were made, a few of each machine in turn.
    let mut wire = VecDeque::new();
    let mut maps = 0;
    while tally.given < each * users {
        for (i, m) in machines.iter_mut().enumerate() {
            while let Some(out) = m.pop() {
                match out {
                    Output::Request(id, r) if !matches!(r, Request::ListNode) => wire.push_back((i, id, r)),
                    Output::Request(id, _) => m.reply(now, id, Reply::Leases(Vec::new())),
                    Output::Taken(..) => {
                        tally.given += 1;
                        if asked[i] < each {
                            ask(m, now, i, asked[i]);
                            asked[i] += 1;
                        }
                    }
                    Output::Failed(_, e) => panic!("node {i}: {e} after {} addresses", tally.given),
                    _ => {}
                }
            }
        }
        now += Duration::from_millis(2);
        if now.as_millis() / 1000 > maps as u128 {
            maps += 1;
            machines.iter_mut().for_each(|m| m.map(now, POOL, Some(map(&leases, maps))));
        }
        machines.iter_mut().for_each(|m| m.tick(now));
        let Some((i, id, request)) = wire.pop_front() else { continue };
        let reply = match request {
            Request::Create(mut l) => {
                tally.creates += 1;
                if leases.contains_key(&l.name) {
                    Reply::Conflict
                } else {
                    (l.uid, l.version) = ("u".into(), tally.creates.to_string().into());
                    leases.insert(l.name.clone(), l.clone());
                    Reply::Done(l)
                }
            }
            Request::Get(name) => Reply::Done(leases[&name].clone()),
            Request::ListChunk { .. } => {
                tally.lists += 1;
                Reply::Addresses(leases.keys().map(|n| n.ip).collect())
            }
            other => panic!("{other:?}"),
        };
        machines[i].reply(now, id, reply);
    }
    assert_eq!(leases.len(), tally.given, "one lease for each");
    tally
}

#[test]
fn nodes_that_use_a_pool_evenly_lose_no_create() {
    for (nodes, at_once) in [(1, 100), (4, 25), (10, 10), (50, 5), (100, 10)] {
        let t = run(nodes, nodes, at_once);
        assert!(t.creates <= t.given * 11 / 10 && t.lists == 0, "{nodes} nodes: {} creates, {} lists", t.creates, t.lists);
    }
}

#[test]
fn few_users_among_many_nodes_fare_no_worse_than_at_random() {
    for nodes in [20, 100, 1000, 2000] {
        let t = run(nodes, 10, 10);
        println!("{nodes} nodes: {} creates, {} lists for {}", t.creates, t.lists, t.given);
        // At random out of maps that are a second old: 1.7 to 2.0.
        assert!(t.creates <= t.given * 5 / 2 && t.lists == 0, "{nodes} nodes: {} creates, {} lists", t.creates, t.lists);
    }
}
