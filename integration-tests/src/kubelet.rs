//! A stand-in for the kubelet and its container runtime: registers the node, gives every pod of the node a network
//! namespace by the node's CNI configuration, and reports what came of it. It does not know the product: only pods,
//! nodes, events and CNI.
//!
//! One task owns each pod, from its first sight to its end, so that calls for one sandbox never overlap. Cancelling is
//! the death of the machine.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::{Event as PodEvent, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cni_runtime::{NetworkList, Runtime, Sandbox};
use crate::echo;

/// What the stand-in is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// The node's address, for its Node object and its pods' `hostIP`.
    pub address: String,
    /// `/etc/cni/net.d`
    pub cni_conf_dir: PathBuf,
    /// Plugins and cache.
    pub runtime: Runtime,
    /// The lab's helper program, for the pods' echo servers.
    pub exe: PathBuf,
}

/// Between two tries of what has to succeed. A kubelet waits longer; a test's patience is short.
const RETRY: Duration = Duration::from_millis(500);

/// What a pod's task is to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Running,
    Gone,
}

/// Runs until the API cannot be reached any more.
///
/// # Errors
/// The node cannot be registered, or the watch of pods ends for good.
pub async fn run(client: Client, config: Config) -> Result<()> {
    register(&client, &config).await?;
    let pods: Api<Pod> = Api::all(client.clone());
    let selection = watcher::Config::default().fields(&format!("spec.nodeName={}", config.node));
    let mut events = Box::pin(watcher(pods, selection));
    let mut tasks: HashMap<String, watch::Sender<Wanted>> = HashMap::new();
    let mut listed = Vec::new();
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(()),
            Err(e) => {
                eprintln!("watch of pods: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        match event {
            Event::Init => listed.clear(),
            Event::InitDone => {
                for (uid, task) in &tasks {
                    if !listed.contains(uid) {
                        task.send_replace(Wanted::Gone);
                    }
                }
            }
            Event::Delete(pod) => {
                if let Some(task) = tasks.get(&pod.uid().unwrap_or_default()) {
                    task.send_replace(Wanted::Gone);
                }
            }
            Event::Apply(pod) | Event::InitApply(pod) => {
                let uid = pod.uid().unwrap_or_default();
                listed.push(uid.clone());
                let wanted = if pod.metadata.deletion_timestamp.is_some() { Wanted::Gone } else { Wanted::Running };
                tasks.retain(|_, task| !task.is_closed());
                match tasks.get(&uid) {
                    Some(task) => {
                        task.send_replace(wanted);
                    }
                    None => {
                        let (sender, receiver) = watch::channel(wanted);
                        tasks.insert(uid, sender);
                        tokio::spawn(own(client.clone(), config.clone(), pod, receiver));
                    }
                }
            }
        }
    }
}

async fn register(client: &Client, config: &Config) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": config.node, "labels": {"kubernetes.io/hostname": config.node, "kubernetes.io/os": "linux"}},
    }))?;
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(e) => return Err(e).context("failed to register the node"),
    }
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": config.address}, {"type": "Hostname", "address": config.node}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "lab",
                        "lastHeartbeatTime": now, "lastTransitionTime": now}],
    }});
    nodes.patch_status(&config.node, &PatchParams::default(), &Patch::Merge(status)).await.context("failed to report Ready")?;
    Ok(())
}

/// A pod's sandbox on this node.
struct Running {
    list: NetworkList,
    sandbox: Sandbox,
    netns: String,
    server: Option<Child>,
}

/// One pod's life.
async fn own(client: Client, config: Config, pod: Pod, mut wanted: watch::Receiver<Wanted>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let mut running = None;
    let mut pause = Duration::from_millis(200);
    while *wanted.borrow() == Wanted::Running {
        match start(&config, &pod).await {
            Ok((sandbox, addresses)) => {
                running = Some(sandbox);
                while let Err(e) = report(&pods, &config, &pod, &addresses).await {
                    eprintln!("{name}: status: {e:#}");
                    let over = tokio::time::timeout(RETRY, wanted.wait_for(|w| *w == Wanted::Gone)).await;
                    if over.is_ok() {
                        break;
                    }
                }
                break;
            }
            Err(Failed { error: e, left }) => {
                // What the runtime could not take back it keeps, and tries again beside the next sandbox.
                if let Some(left) = left {
                    tokio::spawn(end(client.clone(), config.clone(), pod.clone(), *left));
                }
                eprintln!("{name}: {e:#}");
                warn(&client, &pod, &config.node, &format!("Failed to create pod sandbox: {e:#}")).await;
                // A kubelet's own pause grows as well; 2 s keeps a test's patience short.
                let _ = tokio::time::timeout(pause, wanted.wait_for(|w| *w == Wanted::Gone)).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
    if wanted.wait_for(|w| *w == Wanted::Gone).await.is_err() {
        return;
    }
    if let Some(sandbox) = running {
        end(client.clone(), config.clone(), pod.clone(), sandbox).await;
    }
    let mut gone = DeleteParams::default().grace_period(0);
    gone.preconditions = pod.uid().map(|uid| kube::api::Preconditions { uid: Some(uid), resource_version: None });
    loop {
        match pods.delete(&name, &gone).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return,
            Err(e) => eprintln!("{name}: failed to end the pod: {e}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// DEL of one sandbox, again until it succeeds.
async fn end(client: Client, config: Config, pod: Pod, mut sandbox: Running) {
    let name = pod.name_any();
    loop {
        let stopping = config.clone();
        match blocking(move || Ok(stop(&stopping, sandbox))).await {
            Ok(Ok(())) => return,
            Ok(Err((left, e))) => {
                eprintln!("{name}: {e:#}");
                warn(&client, &pod, &config.node, &format!("Failed to stop sandbox: {e:#}")).await;
                tokio::time::sleep(RETRY).await;
                sandbox = *left;
            }
            Err(e) => return eprintln!("{name}: {e:#}"),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a blocking task panicked")?
}

/// A sandbox that did not come up, and what DEL could not take back of it.
struct Failed {
    error: anyhow::Error,
    left: Option<Box<Running>>,
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self { error, left: None }
    }
}

async fn start(config: &Config, pod: &Pod) -> Result<(Running, Vec<String>), Failed> {
    let (config, pod) = (config.clone(), pod.clone());
    let made = blocking(move || Ok(make(&config, &pod)));
    made.await?
}

fn make(config: &Config, pod: &Pod) -> Result<(Running, Vec<String>), Failed> {
    // As the runtime does, the configuration is read anew for each sandbox, and remembered for its end.
    let list = NetworkList::first_in(&config.cni_conf_dir)?;
    let id = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let netns = format!("cni-{}", uuid::Uuid::new_v4());
    command("ip", &["netns", "add", &netns])?;
    let sandbox = Sandbox {
        args: format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
            pod.namespace().unwrap_or_default(),
            pod.name_any(),
            pod.uid().unwrap_or_default()
        ),
        netns: format!("/run/netns/{netns}"),
        id,
        ifname: "eth0".into(),
        capabilities: Default::default(),
    };
    let mut running = Running { list, sandbox, netns, server: None };
    match bring_up(config, &mut running) {
        Ok(addresses) => Ok((running, addresses)),
        // The runtime takes back a failed sandbox with DEL before it says so.
        Err(error) => match stop(config, running) {
            Ok(()) => Err(Failed { error, left: None }),
            Err((left, also)) => Err(Failed { error: error.context(format!("and then DEL: {also:#}")), left: Some(left) }),
        },
    }
}

fn bring_up(config: &Config, running: &mut Running) -> Result<Vec<String>> {
    command("ip", &["-n", &running.netns, "link", "set", "lo", "up"])?;
    let result = config.runtime.add(&running.list, &running.sandbox)?;
    let addresses = addresses(&result);
    let mut server = Command::new("nsenter");
    server.arg(format!("--net={}", running.sandbox.netns)).arg(&config.exe).args(["echo", "--port", &echo::PORT.to_string()]);
    running.server = Some(server.stdin(Stdio::null()).spawn().context("failed to start the echo server")?);
    Ok(addresses)
}

/// The addresses of the sandbox's own NIC: those that name it, or name no NIC.
fn addresses(result: &Value) -> Vec<String> {
    let list = |key: &str| result.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let interfaces = list("interfaces");
    let in_pod = |ip: &Value| match ip.get("interface").and_then(Value::as_u64) {
        Some(index) => interfaces
            .get(usize::try_from(index).unwrap_or(usize::MAX))
            .is_some_and(|i| i.get("sandbox").and_then(Value::as_str).is_some_and(|s| !s.is_empty())),
        None => true,
    };
    let address = |ip: &Value| Some(ip.get("address")?.as_str()?.split('/').next()?.to_owned());
    list("ips").iter().filter(|ip| in_pod(ip)).filter_map(address).collect()
}

fn stop(config: &Config, mut running: Running) -> Result<(), (Box<Running>, anyhow::Error)> {
    if let Some(mut server) = running.server.take() {
        let _ = server.kill();
        let _ = server.wait();
    }
    if let Err(e) = config.runtime.del(&running.list, &running.sandbox) {
        return Err((Box::new(running), e));
    }
    command("ip", &["netns", "del", &running.netns]).map_err(|e| (Box::new(running), e))
}

fn command(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("failed to start {program}"))?;
    anyhow::ensure!(output.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

async fn report(pods: &Api<Pod>, config: &Config, pod: &Pod, addresses: &[String]) -> Result<()> {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let containers = pod.spec.as_ref().map(|s| s.containers.clone()).unwrap_or_default();
    let containers: Vec<Value> = containers
        .iter()
        .map(|c| {
            json!({"name": c.name, "image": c.image, "imageID": "", "ready": true, "restartCount": 0, "started": true,
                   "state": {"running": {"startedAt": now}}})
        })
        .collect();
    let status = json!({"status": {
        "phase": "Running",
        "hostIP": config.address,
        "podIP": addresses.first(),
        "podIPs": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        "startTime": now,
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now},
                       {"type": "ContainersReady", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": containers,
    }});
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// The Event by which people see why a pod does not start.
async fn warn(client: &Client, pod: &Pod, node: &str, message: &str) {
    let events: Api<PodEvent> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let event = json!({
        "metadata": {"name": format!("{}.{}", pod.name_any(), uuid::Uuid::new_v4().simple()), "namespace": pod.namespace()},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "namespace": pod.namespace(), "uid": pod.uid()},
        "type": "Warning", "reason": "FailedCreatePodSandBox", "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "kubelet", "host": node},
    });
    let written = match serde_json::from_value(event) {
        Ok(event) => events.create(&PostParams::default(), &event).await.map(|_| ()).map_err(anyhow::Error::from),
        Err(e) => Err(e.into()),
    };
    if let Err(e) = written {
        eprintln!("{}: event: {e:#}", pod.name_any());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_addresses_are_those_of_nics_in_the_sandbox() {
        let result = json!({
            "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.244.1.1/24", "interface": 0}, {"address": "10.244.1.2/24", "interface": 1}, {"address": "fd00::2/64"}],
        });
        assert_eq!(addresses(&result), ["10.244.1.2", "fd00::2"]);
    }
}
