//! One node with a fake host, an API server, pods and calls.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::mooring::{AddressLease, PoolMap, PoolMapSpec};
use api::nad::NetworkAttachmentDefinitionSpec;
use api::{NetworkAttachmentDefinition, SpiderEndpoint, SpiderIPPool};
use bridge_agent::attach::{Agent, Me};
use bridge_agent::caches::Caches;
use bridge_agent::cni_server::{Abort, Handler, RunError, Runner};
use bridge_agent::endpoints::Endpoints;
use bridge_agent::events::Events;
use bridge_agent::journal::Journal;
use bridge_agent::leases::Leases;
use bridge_agent::sandboxes::looker;
use cni::Verb;
use cni::wire::{Call, Exec, ExecDone, PROTOCOL};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use model::observed::{NetnsState, Ovs};
use model::{MacAddr, PodRef};
use plumbing::FakeHost;
use runtime::Shutdown;
use serde_json::{Value, json};

pub const NODE: &str = "n1";
pub const RUNTIME: &str = "/usr/bin/containerd";

/// What a change on the host or in the API has to be undone to.
#[derive(Debug, PartialEq)]
pub struct Before {
    pub host: NetnsState,
    pub pod: NetnsState,
    pub ovs: Option<Ovs>,
    pub leases: Vec<String>,
}

pub struct World {
    pub server: standalone::Server,
    pub client: Client,
    pub host: FakeHost,
    pub agent: Arc<Agent<FakeHost>>,
    pub shutdown: Shutdown,
    pub dir: Arc<tempfile::TempDir>,
}

impl World {
    /// NICs ens192 and ens224, bridge br1 over ens224, namespace default.
    pub async fn new() -> Self {
        let server = standalone::Server::new(standalone::kinds::builtin(), api::crds::all()).unwrap();
        let client = server.client("mooring-agent");
        Self::with_client(server, client).await
    }

    pub async fn with_client(server: standalone::Server, client: Client) -> Self {
        let mac = |n| MacAddr::from_bytes([0x52, 0x54, 0, 0, 0, n]);
        let host =
            FakeHost::new().with_nic("ens192", mac(1)).with_nic("ens224", mac(2)).with_ovs().with_bridge("br1", &["ens224"]);
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join("netns")).unwrap();
        std::fs::create_dir(dir.path().join("net.d")).unwrap();
        Self::start(server, client, host, dir).await
    }

    /// An agent on what is there: the first one, or one after a restart.
    pub async fn start(server: standalone::Server, client: Client, host: FakeHost, dir: Arc<tempfile::TempDir>) -> Self {
        let shutdown = Shutdown::new();
        let agent_id = bridge_agent::agent_id::load(&dir.path().join("state")).unwrap().to_string();
        let (journal, _) = Journal::open(&dir.path().join("journal")).unwrap();
        let caches = Caches::start(&client, NODE, &shutdown);
        let endpoints = Arc::new(Endpoints::new(client.clone()));
        let events = Arc::new(Events::start(client.clone(), NODE, shutdown.clone()));
        let journal = Arc::new(journal);
        let netns_dir = dir.path().join("netns");
        let look = looker(Arc::new(host.clone()), netns_dir.clone());
        let leases = Leases::new(client.clone(), caches.clone(), events.clone(), NODE, &agent_id, journal.clone(), look);
        let me = Me {
            node: NODE.into(),
            agent_id,
            namespace: "kube-system".into(),
            cni_conf_dir: dir.path().join("net.d"),
            primary: Some("cluster".into()),
            spool: dir.path().join("spool"),
            netns_dir,
            ovsdb: Some("unix:/run/openvswitch/db.sock".into()),
        };
        // Its own process's start is `spool.prepare`, `drain_at_start`, `sweep`; tests call the last two where they are about them.
        let agent =
            Arc::new(Agent::new(me, Arc::new(host.clone()), client.clone(), caches, journal, leases, endpoints.clone(), events));
        agent.spool.prepare().unwrap();
        {
            let (a, s) = (agent.clone(), shutdown.clone());
            tokio::spawn(async move { a.leases.run(s).await });
            let s = shutdown.clone();
            tokio::spawn(async move { endpoints.run(s).await });
        }
        Self { server, client, host, agent, shutdown, dir }
    }

    /// The process ends and another one begins on the same disk and host.
    pub async fn restart(self) -> Self {
        self.shutdown.trigger();
        Self::start(self.server.clone(), self.client.clone(), self.host.clone(), self.dir.clone()).await
    }

    pub async fn pool(&self, name: &str, spec: Value) {
        let api: Api<SpiderIPPool> = Api::all(self.client.clone());
        let pool = serde_json::from_value(
            json!({"apiVersion":"spiderpool.spidernet.io/v2beta1","kind":"SpiderIPPool","metadata":{"name":name},"spec":spec}),
        );
        api.create(&PostParams::default(), &pool.unwrap()).await.unwrap();
        self.until("the pool is seen", || self.agent.caches.pools().iter().any(|p| p.name_any() == name)).await;
    }

    /// A pool 10.6.0.0/16 of these addresses, with gateway 10.6.0.1.
    pub async fn v4(&self, name: &str, ips: &str) {
        self.pool(name, json!({"subnet":"10.6.0.0/16","ips":[ips],"gateway":"10.6.0.1"})).await;
    }

    /// The controller's map: all of these are free.
    pub async fn map(&self, pool: &str, free: &[&str]) {
        let mut bits = std::collections::BTreeMap::<std::net::IpAddr, [u8; 32]>::new();
        for ip in free {
            let ip = ip.parse().unwrap();
            let base = api::mooring::lease::chunk_base(ip);
            let last = match ip {
                std::net::IpAddr::V4(v4) => v4.octets()[3],
                std::net::IpAddr::V6(v6) => v6.octets()[15],
            };
            bits.entry(base).or_default()[usize::from(last) / 8] |= 1 << (last % 8);
        }
        let chunks = bits.iter().map(|(base, b)| api::mooring::Chunk::new(*base, b)).collect();
        let map = PoolMap::new(pool, PoolMapSpec { pool: pool.into(), chunks, ..PoolMapSpec::default() });
        Api::<PoolMap>::all(self.client.clone()).create(&PostParams::default(), &map).await.unwrap();
    }

    pub async fn nad(&self, namespace: &str, name: &str, config: Value) {
        let mut nad =
            NetworkAttachmentDefinition::new(name, NetworkAttachmentDefinitionSpec { config: Some(config.to_string()) });
        nad.metadata.namespace = Some(namespace.into());
        Api::<NetworkAttachmentDefinition>::namespaced(self.client.clone(), namespace)
            .create(&PostParams::default(), &nad)
            .await
            .unwrap();
    }

    pub async fn pod(&self, name: &str, annotations: Value) -> PodRef {
        self.pod_of(name, annotations, Value::Null).await
    }

    pub async fn pod_of(&self, name: &str, annotations: Value, owner: Value) -> PodRef {
        let mut pod = json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":name,"namespace":"default","annotations":annotations},
            "spec":{"nodeName":NODE,"containers":[{"name":"c","image":"i"}]}});
        if !owner.is_null() {
            pod["metadata"]["ownerReferences"] = json!([owner]);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let made = api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        PodRef { namespace: "default".into(), name: name.into(), uid: made.uid().unwrap() }
    }

    pub async fn delete_pod(&self, name: &str) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        api.delete(name, &now).await.unwrap();
        self.until("the pod is gone", || self.agent.caches.pod_now("default", name).is_none()).await;
    }

    /// Path of a sandbox's namespace; it stays the same one until `end_sandbox`.
    pub fn netns(&self, container: &str) -> PathBuf {
        let path = self.dir.path().join("netns").join(container);
        if !path.exists() {
            std::os::unix::fs::symlink("/proc/self/ns/net", &path).unwrap();
        }
        path
    }

    pub fn end_sandbox(&self, container: &str) {
        std::fs::remove_file(self.dir.path().join("netns").join(container)).unwrap();
    }

    pub fn call(&self, verb: Verb, container: &str, ifname: &str, conf: Value, pod: Option<&PodRef>) -> Call {
        let args = pod
            .map(|p| format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}", p.namespace, p.name, p.uid));
        Call {
            version: PROTOCOL,
            verb,
            container_id: container.into(),
            netns: Some(self.netns(container).to_string_lossy().into_owned()),
            ifname: ifname.into(),
            args: args.unwrap_or_default(),
            path: "/opt/cni/bin".into(),
            stdin: conf,
            runtime: RUNTIME.into(),
        }
    }

    pub async fn run(&self, call: &Call, runner: &mut impl Runner) -> Result<Value, cni::Error> {
        self.run_until(call, runner, &Abort::new()).await
    }

    pub async fn run_until(&self, call: &Call, runner: &mut impl Runner, abort: &Abort) -> Result<Value, cni::Error> {
        let fd = call.netns.as_ref().and_then(|p| File::open(p).ok()).map(OwnedFd::from);
        self.agent.call(call, fd, runner, abort).await
    }

    pub async fn add(&self, container: &str, ifname: &str, conf: &Value, pod: Option<&PodRef>) -> Result<Value, cni::Error> {
        self.run(&self.call(Verb::Add, container, ifname, conf.clone(), pod), &mut Hands::default()).await
    }

    pub async fn del(&self, container: &str, ifname: &str, conf: &Value, pod: Option<&PodRef>) -> Result<Value, cni::Error> {
        self.run(&self.call(Verb::Del, container, ifname, conf.clone(), pod), &mut Hands::default()).await
    }

    pub async fn check(
        &self,
        container: &str,
        ifname: &str,
        conf: &Value,
        prev: &Value,
        pod: Option<&PodRef>,
    ) -> Result<Value, cni::Error> {
        let mut conf = conf.clone();
        conf["prevResult"] = prev.clone();
        self.run(&self.call(Verb::Check, container, ifname, conf, pod), &mut Hands::default()).await
    }

    pub async fn leases(&self) -> Vec<AddressLease> {
        Api::<AddressLease>::all(self.client.clone()).list(&ListParams::default()).await.unwrap().items
    }

    pub async fn lease(&self, name: &str) -> Option<AddressLease> {
        Api::<AddressLease>::all(self.client.clone()).get_opt(name).await.unwrap()
    }

    /// Another node's.
    pub async fn foreign_lease(&self, pool: &str, ip: &str, spec: Value) {
        let ip: std::net::IpAddr = ip.parse().unwrap();
        let name = api::mooring::lease_name("default", ip);
        let mut all = json!({"pool":pool,"address":ip.to_string(),"node":"n2","agentID":"other",
            "holder":{"podNamespace":"default","podName":"there","podUID":"u","interface":"eth0","containerID":"far"}});
        for (k, v) in spec.as_object().into_iter().flatten() {
            all[k] = v.clone();
        }
        let lease = json!({"apiVersion":"mooring.dev/v1alpha1","kind":"AddressLease",
            "metadata":{"name":name,"labels":{"mooring.dev/chunk":api::mooring::chunk_label(ip),"mooring.dev/pool":pool,"mooring.dev/node":all["node"]}},"spec":all});
        Api::<AddressLease>::all(self.client.clone())
            .create(&PostParams::default(), &serde_json::from_value(lease).unwrap())
            .await
            .unwrap();
    }

    pub async fn endpoint(&self, name: &str) -> Option<SpiderEndpoint> {
        Api::<SpiderEndpoint>::namespaced(self.client.clone(), "default").get_opt(name).await.unwrap()
    }

    pub async fn before(&self, container: &str) -> Before {
        let leases = self.leases().await.iter().map(ResourceExt::name_any).collect();
        Before {
            host: self.host.host(),
            pod: self.host.pod(&self.netns(container).to_string_lossy()),
            ovs: self.host.ovs(),
            leases,
        }
    }

    pub async fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..3000 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("waited 60 s until {what}");
    }

    pub async fn until_async<F: Future<Output = bool>>(&self, what: &str, done: impl Fn() -> F) {
        for _ in 0..3000 {
            if done().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("waited 60 s until {what}");
    }
}

/// Others' plugins, by a script: what each answers to ADD. Records every execution.
#[derive(Debug, Default)]
pub struct Hands {
    pub executed: Vec<(String, &'static str, String)>,
    pub inputs: Vec<Value>,
    pub answers: std::collections::HashMap<String, Result<Value, Value>>,
}

impl Hands {
    pub fn with(mut self, plugin: &str, answer: Result<Value, Value>) -> Self {
        self.answers.insert(plugin.into(), answer);
        self
    }

    pub fn log(&self) -> Vec<String> {
        self.executed.iter().map(|(p, v, i)| format!("{v} {p} {i}")).collect()
    }
}

impl Runner for Hands {
    async fn exec(&mut self, what: Exec) -> Result<ExecDone, RunError> {
        self.executed.push((what.plugin.clone(), what.command.as_str(), what.ifname));
        self.inputs.push(what.stdin);
        let done =
            |ok, stdout: String| ExecDone { ok, stdout, stderr: String::new(), code: Some(i32::from(!ok)), missing: false };
        Ok(match self.answers.get(&what.plugin) {
            None => ExecDone { missing: true, ..ExecDone::default() },
            Some(_) if what.command != Verb::Add => done(true, String::new()),
            Some(Ok(v)) => done(true, v.to_string()),
            Some(Err(v)) => done(false, v.to_string()),
        })
    }
}

pub fn ovs(more: Value) -> Value {
    with(
        json!({"cniVersion":"1.0.0","name":"ovs-net","type":"cni-ovs","bridge":"br1","vlan":100,"ipam":{"type":"spiderpool"}}),
        more,
    )
}

pub fn macvlan(more: Value) -> Value {
    with(
        json!({"cniVersion":"1.0.0","name":"mv-net","type":"cni-macvlan","master":"ens192","mode":"bridge","ipam":{"type":"spiderpool"}}),
        more,
    )
}

pub fn with(mut conf: Value, more: Value) -> Value {
    for (k, v) in more.as_object().into_iter().flatten() {
        if v.is_null() {
            conf.as_object_mut().unwrap().remove(k);
        } else {
            conf[k] = v.clone();
        }
    }
    conf
}
