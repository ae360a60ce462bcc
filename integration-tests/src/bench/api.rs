//! The rows on a real API server, with etcd that forces its writes to disk: what ten agents get out of it against the bare
//! creation of the same leases, and what other nodes' leases cost. The server's audit log says what was asked.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, PostParams};
use serde_json::{Value, json};

use super::exec::Process;
use super::figures::{Row, Times, verdict};
use crate::apply;
use crate::audit::{Audit, Call};
use crate::cluster::{Cluster, LEASES, POOLS};
use crate::kube::{ADMIN, AGENT, Machine, Options, inside};
use crate::swarm::{Done, PODS, Server, Swarm};

/// Connections of the bare creation.
const CONNECTIONS: usize = 16;
/// Leases of other nodes: few, and many.
const OTHERS: [usize; 2] = [1_000, 50_000];
/// Until everything behind the replies is written, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// All rows. `deploy`: the folder of the manifests.
///
/// # Errors
/// The tools are not there, something does not come up, or a call fails where it must not.
pub fn rows(exe: &Path, deploy: &Path) -> Result<Vec<Row>> {
    let m = Machine::start_with(exe, deploy, Options { fsync: true, audit: true })?;
    measured(&m, exe).with_context(|| m.tails(8))
}

fn measured(m: &Machine, exe: &Path) -> Result<Vec<Row>> {
    let bin = exe.parent().context("the lab's program has no directory")?;
    let cluster = Cluster::on_kube(&m.kube.kubeconfig(ADMIN), &m.space)?;
    let mut swarm = Swarm::start(m.run(), &m.space, bin, cluster, Server::Kube(&m.kube))?;
    let mut audit = Audit::new(m.kube.audit());
    audit.until_quiet(AGENT, PATIENCE)?;
    let (mut rows, mut writes) = (Vec::new(), Vec::new());
    // Of another network: the pool's own addresses rest on the agents' nodes between two rounds.
    let leases: Vec<Value> = (0..PODS).map(|i| lease("bare", [10, 200, (i + 1) / 256, (i + 1) % 256], i)).collect();
    for (what, number) in [("1,000 pods take 1,000 addresses by 10 agents", 1), ("all deleted, and made again", 2)] {
        let bare = PODS as f64 / bare(m, AGENT, &leases, true)?.as_secs_f64();
        // The controller's maps come to rest.
        std::thread::sleep(Duration::from_secs(3));
        let round = round(m, &mut swarm, &mut audit, number)?;
        rows.extend(round.rows(&format!("kube-apiserver, etcd with fsync: {what}"), bare));
        writes.push(round.writes().count());
    }
    let life = writes.iter().sum::<usize>() as f64 / (writes.len() * PODS) as f64;
    let what = "writes by our accounts for each pod's life, of both rounds (audit log)";
    rows.push(Row::alone(what, format!("{life:.3}"), verdict(life <= 3.0, "at most 3"), writes.len() * PODS));
    let pool = json!({
        "apiVersion": POOLS.0, "kind": POOLS.1, "metadata": {"name": "others"},
        "spec": {"subnet": "10.128.0.0/16", "ips": ["10.128.0.1-10.128.255.254"]},
    });
    swarm.cluster.apply_text(&pool.to_string())?;
    let (mut have, mut costs) = (0, Vec::new());
    for (number, others) in OTHERS.into_iter().enumerate() {
        let more: Vec<Value> = (have..others).map(|i| lease("others", [10, 128, (i + 1) / 256, (i + 1) % 256], i)).collect();
        bare(m, ADMIN, &more, false)?;
        have = others;
        std::thread::sleep(Duration::from_secs(5));
        costs.push(round(m, &mut swarm, &mut audit, 3 + u32::try_from(number)?)?.cpu.as_secs_f64() * 1e3 / PODS as f64);
    }
    let text = |i: usize| (costs[i], format!("{:.2}", costs[i]));
    let what = "CPU of kube-apiserver for each pod's life, 50,000 leases of other nodes";
    rows.push(Row::ratio(what, text(1), "the same, 1,000 leases", text(0), Some(1.3), PODS.to_string()));
    swarm.stop()?;
    Ok(rows)
}

/// One life of all pods' addresses.
struct Round {
    add: Done,
    /// From the first ADD to the last write behind one.
    settled: Duration,
    calls: Vec<Call>,
    during: usize,
    cpu: Duration,
}

fn round(m: &Machine, swarm: &mut Swarm, audit: &mut Audit, number: u32) -> Result<Round> {
    audit.calls()?;
    let server = Process::of(m.kube.server_pid());
    let (before, began) = (server.cpu()?, SystemTime::now());
    let add = swarm.all("ADD", number)?;
    let mut calls = audit.calls()?;
    let during = calls.len();
    calls.extend(audit.until_quiet(AGENT, PATIENCE)?);
    let last = calls.iter().filter(|c| c.user == AGENT && c.is_write()).map(|c| SystemTime::from(c.at)).max();
    let settled = last.and_then(|l| l.duration_since(began).ok()).context("the agents wrote nothing")?;
    let del = swarm.all("DEL", number)?;
    ensure!(del.failed.is_empty(), "{} DELs failed: {}", del.failed.len(), del.failed[0]);
    calls.extend(audit.until_quiet(AGENT, PATIENCE)?);
    let cpu = server.cpu()?.saturating_sub(before);
    Ok(Round { add, settled, calls, during, cpu })
}

impl Round {
    /// By our accounts, and not what is for people to read.
    fn writes(&self) -> impl Iterator<Item = &Call> {
        let for_people = ["events", "pods", "pods/status"];
        self.calls.iter().filter(move |c| c.is_write() && !for_people.contains(&c.resource.as_str()))
    }

    fn rows(&self, what: &str, bare: f64) -> Vec<Row> {
        let clean = self.add.failed.is_empty() && self.add.twice() == 0;
        let against = "bare creates of such leases, 16 connections";
        let part = |what: &str, ours: f64, text: String, least: f64, more: &str| {
            let ratio = ours / bare;
            let goal = verdict(clean && ratio >= least, &format!("at least {least}{more}"));
            let takes = format!("{bare:.0}/s");
            Row::new([what.to_owned(), text, against.to_owned(), takes, format!("{ratio:.2}"), goal, PODS.to_string()])
        };
        let settled = PODS as f64 / self.settled.as_secs_f64();
        let mut last = Times::default();
        self.add.order.iter().rev().take(PODS / 100).for_each(|t| last.push(*t));
        let p99 = last.percentile(0.99);
        let agents = |verb: &str, resource: &str, calls: &[Call]| {
            calls.iter().filter(|c| c.user == AGENT && c.verb == verb && c.resource == resource).count()
        };
        let creates = agents("create", "addressleases", &self.calls) as f64 / PODS as f64;
        let lists = agents("list", "addressleases", &self.calls[..self.during]);
        let life = self.writes().count() as f64 / PODS as f64;
        // Not by the pod but by the clock: who leads, what a pool has left.
        let controllers = self.writes().filter(|c| c.user != AGENT).count();
        let calls_text = format!(
            "{creates:.2} creates, {life:.3} writes by our accounts, {controllers} of all the controller's; {lists} lists"
        );
        vec![
            part(what, self.add.rate(), self.add.text(), 0.3, ", none failed"),
            part("the same until all writes were settled", settled, format!("{settled:.0}/s"), 0.2, ""),
            Row::alone(
                "ADD for the last 1 % of that pool, p99",
                format!("{p99:.0}"),
                verdict(p99 <= 2000.0, "at most 2000 ms"),
                last.len(),
            ),
            Row::alone(
                "calls for each address (audit log)",
                calls_text,
                verdict(creates <= 1.1 && life <= 3.0 && lists == 0, "at most 1.1 creates, 3 writes, no list"),
                PODS,
            ),
        ]
    }
}

/// A lease as an agent makes it.
fn lease(pool: &str, ip: [usize; 4], i: usize) -> Value {
    let [a, b, c, d] = ip;
    json!({
        "apiVersion": LEASES.0, "kind": LEASES.1,
        "metadata": {"name": format!("default.v4-{a}-{b}-{c}-{d}"), "labels": {
            "mooring.dev/pool": pool, "mooring.dev/node": "elsewhere", "mooring.dev/chunk": format!("v4-{a}-{b}-{c}-0"),
        }},
        "spec": {
            "pool": pool, "address": format!("{a}.{b}.{c}.{d}"), "node": "elsewhere",
            "agentID": "6f1c2b5e-0000-4000-8000-000000000001",
            "holder": {"podNamespace": "default", "podName": format!("e{i}"), "podUID": format!("uid-{i}"),
                       "interface": "eth0", "containerID": format!("{i:064x}")},
        },
    })
}

/// Creates them over some connections at once, each one after the other; and deletes them after, which is not measured.
fn bare(m: &Machine, account: &str, leases: &[Value], delete: bool) -> Result<Duration> {
    inside(&m.space, async || {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = m.kube.client(account).await?;
            // A connection, before the clock runs.
            client.apiserver_version().await?;
            clients.push(apply::api(&client, LEASES.0, LEASES.1, None));
        }
        let shares: Vec<Vec<DynamicObject>> = (0..CONNECTIONS)
            .map(|i| leases.iter().skip(i).step_by(CONNECTIONS).map(|l| serde_json::from_value(l.clone())).collect())
            .collect::<Result<_, _>>()?;
        let began = Instant::now();
        let each = clients.iter().zip(&shares).map(async |(api, share): (&Api<DynamicObject>, &Vec<DynamicObject>)| {
            for l in share {
                api.create(&PostParams::default(), l).await?;
            }
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(each).await?;
        let took = began.elapsed();
        if delete {
            let each = clients.iter().zip(&shares).map(async |(api, share): (&Api<DynamicObject>, &Vec<DynamicObject>)| {
                for l in share {
                    api.delete(l.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default()).await?;
                }
                anyhow::Ok(())
            });
            futures_util::future::try_join_all(each).await?;
        }
        Ok(took)
    })
}
