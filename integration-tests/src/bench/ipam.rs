//! The rows without any network: ten agents' allocation against one API, and the choice of an address out of pools of any
//! size. The agents are the shipped program, called over their sockets as an IPAM plugin, which plugs nothing.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipam::{Learned, Picker, Ranges, Window};
use serde_json::{Value, json};

use super::figures::{Row, Times};
use super::world::pod;
use crate::cluster::{Cluster, LEASES, PODS, POOLS, text};
use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::product::{program, wait_until};

const AGENTS: usize = 10;
const PODS_EACH: usize = 100;
/// Calls that one agent has in hand at once.
const CALLERS_EACH: usize = 10;

/// 1,000 pods take 1,000 addresses by ten agents, all are deleted and made again.
///
/// # Errors
/// Something does not come up.
pub fn agents(lab: &Lab) -> Result<Vec<Row>> {
    let dir = lab.dir().join("ipam");
    std::fs::create_dir(&dir)?;
    let socket = dir.join("api.sock");
    let mut daemons = Vec::new();
    let mut start = |name: &str, program_name: &str, args: &[&str], wait: Option<&Path>| -> Result<()> {
        let mut command = Command::new(program(lab, program_name)?);
        let mut daemon = Daemon::start(lab.run(), &lab.control, name, command.args(args))?;
        if let Some(path) = wait {
            daemon.wait_for(path)?;
        }
        daemons.push(daemon);
        Ok(())
    };
    let path = |p: &Path| p.display().to_string();
    start("ipam-api", "mooring-standalone", &["--socket", &path(&socket)], Some(&socket))?;
    start("ipam-controller", "mooring-controller", &["--api-socket", &path(&socket)], None)?;
    let cluster = Cluster::new(&socket)?;
    let mut objects = format!(
        "---\n{}\n",
        json!({
            "apiVersion": POOLS.0, "kind": POOLS.1, "metadata": {"name": "thousand"},
            "spec": {"subnet": "10.6.0.0/16", "gateway": "10.6.0.1", "ips": ["10.6.16.1-10.6.19.232"]},
        })
    );
    for agent in 0..AGENTS {
        objects.push_str(&format!(
            "---\n{}\n",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("a{agent}")}})
        ));
        for i in 0..PODS_EACH {
            objects.push_str(&pod(&format!("a{agent}-{i}"), &format!("a{agent}"), &json!({})));
        }
    }
    cluster.apply_text(&objects)?;
    let mut sockets = Vec::new();
    for agent in 0..AGENTS {
        let (own, name) = (dir.join(format!("a{agent}")), format!("a{agent}"));
        let (cni, conf) = (own.join("cni.sock"), own.join("conf"));
        std::fs::create_dir_all(&conf)?;
        let args = [
            "--node",
            &name,
            "--api-socket",
            &path(&socket),
            "--cni-socket",
            &path(&cni),
            "--ovsdb",
            "",
            "--state-dir",
            &path(&own.join("state")),
            "--run-dir",
            &path(&own.join("run")),
            "--cni-conf-dir",
            &path(&conf),
            "--log",
            "warn",
        ];
        start(&format!("ipam-{name}"), "mooring-agent", &args, Some(&cni))?;
        sockets.push(cni);
    }
    wait_until("the pool is counted", Duration::from_secs(30), || {
        let total = text(&cluster.get(POOLS, None, "thousand")?, "/status/totalIPCount");
        ensure!(total == "1000", "{total}");
        Ok(())
    })?;
    // Agents spread the first lists of their watches over a second or two.
    std::thread::sleep(Duration::from_secs(3));
    let uids: HashMap<String, String> =
        cluster.list(PODS)?.iter().map(|p| (text(p, "/metadata/name"), text(p, "/metadata/uid"))).collect();

    let mut rows = Vec::new();
    for (what, round) in [("1,000 pods take 1,000 addresses by 10 agents", 1), ("all deleted, and made again", 2)] {
        let add = all_pods(&sockets, &uids, "ADD", round)?;
        let addresses: BTreeSet<&String> = add.answers.iter().collect();
        let leases = cluster.list(LEASES)?.len();
        let duplicates = add.answers.len() - addresses.len();
        ensure!(leases >= addresses.len(), "{} addresses were given, {leases} leases are there", addresses.len());
        rows.push(rate(what, &add, duplicates, Some(300.0)));
        let del = all_pods(&sockets, &uids, "DEL", round)?;
        ensure!(del.failed.is_empty(), "{} DELs failed: {}", del.failed.len(), del.failed[0]);
        rows.push(rate("their DEL", &del, 0, None));
        let left = cluster.list(LEASES)?.len();
        ensure!(left == 0, "{left} leases are left after all were deleted");
    }
    for daemon in &mut daemons {
        daemon.check()?;
    }
    for daemon in daemons.into_iter().rev() {
        daemon.stop()?;
    }
    Ok(rows)
}

fn rate(what: &str, done: &Done, duplicates: usize, goal: Option<f64>) -> Row {
    let count = AGENTS * PODS_EACH;
    let rate = (count - done.failed.len()) as f64 / done.wall.as_secs_f64();
    let clean = done.failed.is_empty() && duplicates == 0;
    let goal = goal.map_or("-".to_owned(), |least| {
        let met = clean && rate >= least;
        format!("{} at least {least}/s, none failed", if met { "met:" } else { "MISSED:" })
    });
    let ours = format!(
        "{rate:.0}/s; {} failed, {duplicates} twice; each {}, p99 {:.0} ms",
        done.failed.len(),
        done.times.text(),
        done.times.percentile(0.99)
    );
    Row::new([what.into(), ours, "-".into(), "-".into(), "-".into(), goal, count.to_string()])
}

#[derive(Default)]
struct Done {
    wall: Duration,
    times: Times,
    answers: Vec<String>,
    failed: Vec<String>,
}

/// One verb for all pods, each agent called by some callers at once.
fn all_pods(sockets: &[PathBuf], uids: &HashMap<String, String>, verb: &str, round: u32) -> Result<Done> {
    let done = Mutex::new(Done::default());
    let barrier = Barrier::new(AGENTS * CALLERS_EACH);
    // From the first call to the last answer, as the callers see it: with more threads than cores another one may get to
    // the clock late.
    let span = Mutex::new(None::<(Instant, Instant)>);
    std::thread::scope(|scope| {
        for (agent, socket) in sockets.iter().enumerate() {
            for caller in 0..CALLERS_EACH {
                let (done, barrier, span) = (&done, &barrier, &span);
                scope.spawn(move || {
                    barrier.wait();
                    for i in (caller..PODS_EACH).step_by(CALLERS_EACH) {
                        let pod = format!("a{agent}-{i}");
                        let uid = uids.get(&pod).map(String::as_str).unwrap_or_default();
                        let began = Instant::now();
                        let answer = call(socket, verb, &pod, uid, round);
                        let ended = Instant::now();
                        let took = ended - began;
                        let mut span = span.lock().unwrap_or_else(PoisonError::into_inner);
                        *span = Some(span.map_or((began, ended), |(b, e)| (b.min(began), e.max(ended))));
                        drop(span);
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done.times.push(took);
                        match answer {
                            Ok(address) => done.answers.extend(address),
                            Err(e) => done.failed.push(format!("{pod}: {e:#}")),
                        }
                    }
                });
            }
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let span = span.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.wall = span.map_or(Duration::ZERO, |(began, ended)| ended - began);
    if let Some(first) = done.failed.first() {
        eprintln!("{} of {verb} failed: {first}", done.failed.len());
    }
    Ok(done)
}

/// What a plugin's program would send to its agent, and the address in the answer.
fn call(socket: &Path, verb: &str, pod: &str, uid: &str, round: u32) -> Result<Option<String>> {
    let id = format!("{pod}-{round}");
    let message = json!({
        "type": "Call", "version": 1, "verb": verb, "containerID": id, "netns": "/run/netns/none", "ifname": "eth0", "path": "/",
        "args": format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"),
        "stdin": {"cniVersion": "1.0.0", "name": "bench", "type": "spiderpool",
                  "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["thousand"]}},
    })
    .to_string();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut frame = u32::try_from(message.len())?.to_be_bytes().to_vec();
    frame.extend(message.as_bytes());
    stream.write_all(&frame)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(head))?];
    stream.read_exact(&mut body)?;
    let reply: Value = serde_json::from_slice(&body)?;
    if reply["ok"] != true {
        bail!("{reply}");
    }
    if verb != "ADD" {
        return Ok(None);
    }
    let address = reply.pointer("/stdout/ips/0/address").and_then(Value::as_str);
    Ok(Some(address.with_context(|| format!("no address in {reply}"))?.to_owned()))
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
