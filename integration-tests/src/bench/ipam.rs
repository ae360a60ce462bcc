//! The rows without any network: ten agents' allocation against one API, and the choice of an address out of pools of any
//! size. The agents are the shipped program, called over their sockets as an IPAM plugin, which plugs nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ipam::{Learned, Picker, Ranges, Window};

use super::figures::{Row, Times, verdict};
use crate::cluster::{Cluster, LEASES};
use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::product::program;
use crate::swarm::{self, Done, Server, Swarm};

/// 1,000 pods take 1,000 addresses by ten agents, all are deleted and made again.
///
/// # Errors
/// Something does not come up.
pub fn agents(lab: &Lab) -> Result<Vec<Row>> {
    let bin = lab.exe().parent().context("the lab's program has no directory")?;
    let socket = lab.dir().join("ipam-api.sock");
    let mut command = Command::new(program(lab, "mooring-standalone")?);
    let mut api = Daemon::start(lab.run(), &lab.control, "ipam-api", command.arg("--socket").arg(&socket))?;
    api.wait_for(&socket)?;
    let cluster = Cluster::new(&socket)?;
    let swarm = Swarm::start(lab.run(), &lab.control, bin, cluster, Server::Standalone(&socket))?;
    let mut rows = Vec::new();
    for (what, round) in [("1,000 pods take 1,000 addresses by 10 agents", 1), ("all deleted, and made again", 2)] {
        let add = swarm.all("ADD", round)?;
        let leases = swarm.cluster.list(LEASES)?.len();
        ensure!(leases >= add.addresses(), "{} addresses were given, {leases} leases are there", add.addresses());
        rows.push(rate(what, &add, Some(300.0)));
        let del = swarm.all("DEL", round)?;
        ensure!(del.failed.is_empty(), "{} DELs failed: {}", del.failed.len(), del.failed[0]);
        rows.push(rate("their DEL", &del, None));
        // Spares stay.
        let held = swarm.cluster.list(LEASES)?.iter().filter(|l| l.pointer("/spec/holder").is_some()).count();
        ensure!(held == 0, "{held} leases have a holder after all were deleted");
    }
    swarm.stop()?;
    api.stop()?;
    Ok(rows)
}

fn rate(what: &str, done: &Done, goal: Option<f64>) -> Row {
    let rate = done.rate();
    let clean = done.failed.is_empty() && done.twice() == 0;
    let goal = goal.map_or("-".to_owned(), |least| {
        let met = clean && rate >= least;
        verdict(met, &format!("at least {least}/s, none failed"))
    });
    Row::alone(what, done.text(), goal, swarm::PODS)
}

/// The next candidate out of pools of some sizes, half used (at most a million), against a pool of 256.
///
/// # Errors
/// A pool gives nothing.
pub fn choice() -> Result<Vec<Row>> {
    let v4 = |prefix: u8| Ranges::of_net(&net(Ipv4Addr::new(10, 0, 0, 0).into(), prefix));
    let mut pools = vec![("256".to_owned(), v4(24)), ("1k".into(), v4(22)), ("64k".into(), v4(16)), ("a /8".into(), v4(8))];
    pools.push(("an IPv6 /64".into(), Ranges::of_net(&net(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0).into(), 64))));
    let mut windows = Vec::new();
    for (_, pool) in &pools {
        let used = (pool.len() / 2).min(1_000_000);
        // Every second address: each chunk of the map is half used.
        let leased: BTreeSet<IpAddr> = (0..used).filter_map(|i| pool.nth(i * 2)).collect();
        windows.push(Window::build(pool, &leased));
    }
    const BATCHES: usize = 200;
    const PICKS: u32 = 200;
    let mut times = vec![Times::default(); pools.len()];
    // xorshift64: the cost of the agent's own random source is the same for all pools, and no part of the choice.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let learned = Learned::default();
    for _ in 0..BATCHES {
        for (((_, pool), window), times) in pools.iter().zip(&windows).zip(&mut times) {
            let began = Instant::now();
            for _ in 0..PICKS {
                let picked = Picker::new(Some(window), pool, &learned).next(&mut random);
                std::hint::black_box(picked.context("the pool gives nothing")?);
            }
            times.push(began.elapsed() / PICKS);
        }
    }
    let nanos = |t: &Times| (t.median(), format!("{:.0} ns ({:.0})", t.median() * 1e6, t.percentile(0.9) * 1e6));
    let n = format!("{BATCHES} x {PICKS}");
    let rest = pools.iter().zip(&times).skip(1);
    Ok(rest
        .map(|((name, _), t)| {
            let what = format!("choice of an address in {name}, half used");
            Row::ratio(&what, nanos(t), "a pool of 256", nanos(&times[0]), Some(3.0), n.clone())
        })
        .collect())
}

fn net(ip: IpAddr, prefix: u8) -> model::Cidr {
    model::Cidr::new(ip, prefix).expect("the literals above are networks")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pool_gives_an_address_and_has_a_row() {
        let rows = choice().unwrap();
        assert_eq!(rows.len(), 4);
    }
}
