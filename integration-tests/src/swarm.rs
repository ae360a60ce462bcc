//! Ten agents on one machine, the shipped program, called over their sockets as an IPAM plugin, which plugs nothing: what the
//! allocation of addresses alone does to an API. Used by the bench and by the tests on a real API server.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::figures::Times;
use crate::bench::world::pod;
use crate::cluster::{self, Cluster, POOLS, text};
use crate::daemon::Daemon;
use crate::kube::{AGENT, CONTROLLER, Kube};
use crate::product::wait_until;
use crate::run::Run;
use crate::space::Space;

/// How many agents there are.
pub const AGENTS: usize = 10;
const PODS_EACH: usize = 100;
/// How many pods there are, and addresses.
pub const PODS: usize = AGENTS * PODS_EACH;
/// Calls that one agent has in hand at once.
const CALLERS_EACH: usize = 10;

/// The API that agents and controller have.
#[derive(Debug, Clone, Copy)]
pub enum Server<'a> {
    /// A standalone one, by its socket.
    Standalone(&'a Path),
    /// A real one, each process under its own account.
    Kube(&'a Kube),
}

impl Server<'_> {
    fn point(&self, command: &mut Command, account: &str) {
        match self {
            Server::Standalone(socket) => command.arg("--api-socket").arg(socket),
            Server::Kube(kube) => command.env("KUBECONFIG", kube.kubeconfig(account)),
        };
    }
}

/// The agents, and a controller.
#[derive(Debug)]
pub struct Swarm {
    /// The API as a person sees it.
    pub cluster: Cluster,
    sockets: Vec<PathBuf>,
    uids: HashMap<String, String>,
    daemons: Vec<Daemon>,
}

impl Swarm {
    /// Makes the pool of 1,000 addresses, nodes and pods, and starts everything. `bin`: the directory of the binaries.
    ///
    /// # Errors
    /// Something does not come up: with the end of its log.
    pub fn start(run: &Run, space: &Space, bin: &Path, cluster: Cluster, server: Server<'_>) -> Result<Self> {
        let dir = run.dir().join("swarm");
        std::fs::create_dir(&dir)?;
        let mut swarm = Self { cluster, sockets: Vec::new(), uids: HashMap::new(), daemons: Vec::new() };
        let mut command = Command::new(bin.join("mooring-controller"));
        server.point(&mut command, CONTROLLER);
        swarm.daemons.push(Daemon::start(run, space, "swarm-controller", &mut command)?);
        swarm.cluster.apply_text(&swarm_objects())?;
        swarm.make_pods()?;
        for agent in 0..AGENTS {
            let (own, name) = (dir.join(format!("a{agent}")), format!("a{agent}"));
            let (cni, conf) = (own.join("cni.sock"), own.join("conf"));
            std::fs::create_dir_all(&conf)?;
            let mut command = Command::new(bin.join("mooring-agent"));
            command.args(["--node", &name, "--ovsdb", "", "--log", "warn"]).arg("--cni-socket").arg(&cni);
            command.arg("--state-dir").arg(own.join("state")).arg("--run-dir").arg(own.join("run"));
            server.point(command.arg("--cni-conf-dir").arg(&conf), AGENT);
            let mut daemon = Daemon::start(run, space, &format!("swarm-{name}"), &mut command)?;
            daemon.wait_for(&cni)?;
            swarm.daemons.push(daemon);
            swarm.sockets.push(cni);
        }
        wait_until("the pool is counted", Duration::from_secs(120), || {
            let total = text(&swarm.cluster.get(POOLS, None, "thousand")?, "/status/totalIPCount");
            ensure!(total == "1000", "{total}");
            Ok(())
        })?;
        // Agents spread the first lists of their watches over a second or two.
        std::thread::sleep(Duration::from_secs(3));
        Ok(swarm)
    }

    /// Makes the pods that are not there, and learns who they are.
    ///
    /// # Errors
    /// One is refused.
    pub fn make_pods(&mut self) -> Result<()> {
        let all = (0..AGENTS).flat_map(|a| (0..PODS_EACH).map(move |i| pod(&format!("a{a}-{i}"), &format!("a{a}"), &json!({}))));
        self.cluster.apply_text(&all.collect::<String>())?;
        let pods = self.cluster.list(cluster::PODS)?;
        self.uids = pods.iter().map(|p| (text(p, "/metadata/name"), text(p, "/metadata/uid"))).collect();
        Ok(())
    }

    /// All processes still run.
    ///
    /// # Errors
    /// The first that ended, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        self.daemons.iter_mut().try_for_each(Daemon::check)
    }

    /// Stops all of it in good order.
    ///
    /// # Errors
    /// Something had ended before, or had to be killed.
    pub fn stop(mut self) -> Result<()> {
        self.check()?;
        self.daemons.into_iter().rev().try_for_each(Daemon::stop)
    }

    /// One verb for all pods, each agent called by some callers at once.
    ///
    /// # Errors
    /// None in practice: what a call failed with is in the result.
    pub fn all(&self, verb: &str, round: u32) -> Result<Done> {
        let (sockets, uids) = (&self.sockets, &self.uids);
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
                            done.order.push(took);
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
}

/// What came of one verb for all pods.
#[derive(Debug, Default)]
pub struct Done {
    /// From the first call to the last answer.
    pub wall: Duration,
    /// Of each call.
    pub times: Times,
    /// The same in the order of the answers.
    pub order: Vec<Duration>,
    /// Addresses of ADD.
    pub answers: Vec<String>,
    /// What calls failed with.
    pub failed: Vec<String>,
}

impl Done {
    /// Different addresses that were given.
    pub fn addresses(&self) -> usize {
        self.answers.iter().collect::<BTreeSet<_>>().len()
    }

    /// Answers that gave an address which another one had given.
    pub fn twice(&self) -> usize {
        self.answers.len() - self.addresses()
    }

    /// Calls a second that did not fail.
    pub fn rate(&self) -> f64 {
        (PODS - self.failed.len()) as f64 / self.wall.as_secs_f64()
    }

    /// For a table's cell.
    pub fn text(&self) -> String {
        let (failed, twice) = (self.failed.len(), self.twice());
        let times = (self.times.text(), self.times.percentile(0.99));
        format!("{:.0}/s; {failed} failed, {twice} twice; each {}, p99 {:.0} ms", self.rate(), times.0, times.1)
    }
}

fn swarm_objects() -> String {
    let pool = json!({
        "apiVersion": POOLS.0, "kind": POOLS.1, "metadata": {"name": "thousand"},
        "spec": {"subnet": "10.6.0.0/16", "gateway": "10.6.0.1", "ips": ["10.6.16.1-10.6.19.232"]},
    });
    let node = |a| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("a{a}")}});
    std::iter::once(pool).chain((0..AGENTS).map(node)).map(|o| format!("---\n{o}\n")).collect()
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
