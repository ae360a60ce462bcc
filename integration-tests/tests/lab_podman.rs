//! A kubelet with our agent and podman 4 with its CNI networks on one host: neither touches what the other made, in life, at
//! the agent's restart, at GC and at the end. podman is Debian's, its containers a static busybox; all is judged by `ip`,
//! `ovs-vsctl` and podman itself.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::cluster::{PODS, text};
use integration_tests::product::From;
use integration_tests::world::World as Started;
use serde_json::{Value, json};

/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// podman's own files, on the machine's memory.
const DIR: &str = "/run/podman-lab";

/// The networks beside podman's built-in bridge, in the directory that it and the kubelet share by default.
fn networks() -> [(&'static str, Value); 3] {
    let ipam = |subnet: &str, range: &str, gateway: &str| {
        json!({"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": subnet, "rangeStart": format!("{range}.1"), "rangeEnd": format!("{range}.9"), "gateway": gateway}]]})
    };
    let six = |range| ipam("10.6.0.0/16", range, "10.6.0.1");
    [
        ("alone-mv", json!({"type": "cni-macvlan", "alone": true, "master": "ens192", "ipam": six("10.6.200")})),
        (
            "alone-ovs",
            json!({"type": "cni-ovs", "alone": true, "bridge": "br1", "ipam": ipam("172.18.0.0/16", "172.18.200", "172.18.0.1")}),
        ),
        // Without `alone` the node's agent makes podman's NIC, and host-local gives the address.
        ("by-agent", json!({"type": "cni-macvlan", "master": "ens192", "ipam": six("10.6.201")})),
    ]
}

struct World {
    podman: Podman,
    started: Started,
}

/// Ends podman's containers before the machine: their processes leave directories in the host's cgroups, and the reference's
/// bridge plugin leaves its bridge.
struct Podman {
    pid: u32,
}

impl Drop for Podman {
    fn drop(&mut self) {
        let enter = ["-t", &self.pid.to_string(), "-a", "--"].map(str::to_owned);
        let end = format!(
            "export CONTAINERS_CONF={DIR}/containers.conf; podman {} rm -f -a -t 0; ip link delete cni-podman0; \
             find /sys/fs/cgroup/mooring-lab-{} -depth -type d -exec rmdir {{}} +",
            options(),
            self.pid
        );
        // The test may have failed before podman ran.
        let _ = std::process::Command::new("nsenter").args(enter).args(["sh", "-c", &end]).output();
    }
}

fn options() -> String {
    format!("--root {DIR}/root --runroot {DIR}/runroot --tmpdir {DIR}/tmp --storage-driver vfs")
}

impl Deref for World {
    type Target = Started;

    fn deref(&self) -> &Started {
        &self.started
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Started {
        &mut self.started
    }
}

impl World {
    fn start() -> Self {
        let started = Started::start(Path::new(env!("CARGO_BIN_EXE_mooring-lab")), 1, PATIENCE).unwrap();
        let world = Self { podman: Podman { pid: started.lab.node(1).space.pid() }, started };
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/underlay-ovs");
        let files = ["00-bridge.yaml", "10-ippool.yaml", "20-network.yaml"].map(|f| dir.join(f));
        world.cluster.apply(&files).unwrap();
        world.cluster.label_node("n1", "bridge.mooring.dev/br1", Some("enabled")).unwrap();
        world.bridge_ready("n1");
        world.install();
        world
    }

    fn wait<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> Result<T>) -> T {
        self.started.wait(what, || ask(self))
    }

    fn on_node(&self, program: &str, args: &[&str]) -> String {
        self.lab.node(1).space.run(program, args).unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.run().tails(30)))
    }

    fn sh(&self, script: &str) -> String {
        self.on_node("sh", &["-c", script])
    }

    /// podman's configuration. The unified hierarchy of cgroups has no controllers where the host uses the old ones; that
    /// suffices for runc, which is told no limits, and needs no directory beside the host's own.
    fn install(&self) {
        let node = &self.lab.node(1).space;
        self.sh(&format!(
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkdir -p {DIR}/rootfs/bin {DIR}/rootfs/proc {DIR}/rootfs/sys {DIR}/rootfs/dev \
             {DIR}/rootfs/etc {DIR}/rootfs/run {DIR}/rootfs/tmp && cp /bin/busybox {DIR}/rootfs/bin/ && \
             for a in sh ip sleep ping; do ln -s busybox {DIR}/rootfs/bin/$a; done"
        ));
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\npids_limit = 0\n\
                    [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
                    [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/opt/cni/bin\", \"/usr/lib/cni\"]\n";
        node.write(&format!("{DIR}/containers.conf"), conf).unwrap();
        for (name, plugin) in networks() {
            let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": [plugin]});
            node.write(&format!("/etc/cni/net.d/80-{name}.conflist"), &list.to_string()).unwrap();
        }
    }

    fn podman(&self, args: &str) -> String {
        self.sh(&format!("export CONTAINERS_CONF={DIR}/containers.conf; podman {} {args}", options()))
    }

    /// A container that sleeps, with a root of its own.
    fn container(&self, name: &str, network: &str) {
        self.sh(&format!("cp -a {DIR}/rootfs {DIR}/rootfs-{name}"));
        self.podman(&format!(
            "run -d --name {name} --network {network} --cgroup-parent /mooring-lab-{} --rootfs {DIR}/rootfs-{name} /bin/sleep 1000",
            self.podman.pid
        ));
    }

    fn pod(&self, name: &str) {
        let annotations = json!({"v1.multus-cni.io/default-network": "kube-system/ovs-conf",
            "ipam.spidernet.io/ippool": json!({"ipv4": ["ippool-test"]}).to_string()});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "c"}]}});
        self.cluster.apply_text(&pod.to_string()).unwrap();
    }

    fn running(&self, name: &str) -> String {
        self.wait(&format!("{name} runs"), |w| {
            let pod = w.cluster.get(PODS, Some("default"), name)?;
            ensure!(text(&pod, "/status/phase") == "Running", "{name} does not run");
            Ok(text(&pod, "/status/podIP"))
        })
    }

    /// What a container has: its links with their marks, and its addresses.
    fn inside(&self, container: &str) -> (Value, Value) {
        let pid = self.podman(&format!("inspect -f '{{{{.State.Pid}}}}' {container}"));
        let net = format!("--net=/proc/{}/ns/net", pid.trim());
        let ask = |what: &str| -> Value {
            let all: Value = serde_json::from_str(&self.on_node("nsenter", &[&net, "ip", "-j", what])).unwrap();
            let known = |l: &Value| {
                json!({"ifname": l["ifname"], "ifalias": l["ifalias"], "address": l["address"],
                "addresses": l["addr_info"].as_array().map(|a| a.iter().map(|i| i["local"].clone()).collect::<Vec<_>>())})
            };
            all.as_array().unwrap().iter().map(known).collect()
        };
        (ask("link"), ask("addr"))
    }

    /// OVS ports that carry a mark: name, attachment, by whom.
    fn ports(&self) -> Vec<[String; 3]> {
        let out = self.on_node("ovs-vsctl", &["--timeout=10", "--format=json", "--columns=name,external_ids", "list", "Port"]);
        let table: Value = serde_json::from_str(&out).unwrap();
        let mut all = Vec::new();
        for row in table["data"].as_array().unwrap() {
            let get = |key: &str| {
                let pairs = row[1][1].as_array().into_iter().flatten();
                pairs.filter(|p| p[0] == key).map(|p| p[1].as_str().unwrap().to_owned()).next()
            };
            if let (Some(id), Some(by)) = (get("mooring-attachment"), get("mooring-by")) {
                all.push([row[0].as_str().unwrap().to_owned(), id, by]);
            }
        }
        all.sort();
        all
    }

    /// All that podman has on this host.
    fn of_podman(&self) -> Value {
        let ports: Vec<_> = self.ports().into_iter().filter(|p| p[2] == "alone").collect();
        let inside: Vec<_> = CONTAINERS.iter().map(|(c, ..)| self.inside(c)).collect();
        let addresses = self.sh("cd /var/lib/cni/networks && find . -type f ! -name lock ! -name 'last_reserved*' | sort");
        let host = self.sh(
            "ip -o link show type bridge | cut -d: -f2; ip -o link show type veth | grep cni-podman0 | cut -d: -f2 | cut -d@ -f1",
        );
        json!({"ports": ports, "inside": inside, "addresses": addresses, "host": host})
    }

    /// Each container reaches its router, and each pod.
    fn all_reach(&self, pods: &[&str]) {
        for (name, _, _, router) in CONTAINERS {
            self.podman(&format!("exec {name} /bin/ping -c 1 -W 2 {router}"));
        }
        for pod in pods {
            From { space: &self.lab.router, netns: None }.ping(pod.parse().unwrap()).unwrap();
        }
    }

    fn gc(&self, plugin: &str, conf: &Value) {
        let exe = self.lab.exe().display().to_string();
        self.on_node(&exe, &["gc", &format!("/opt/cni/bin/{plugin}"), &conf.to_string()]);
    }
}

/// Name, network, what its address begins with, and what it reaches.
const CONTAINERS: [(&str, &str, &str, &str); 4] = [
    ("bridged", "podman", "10.88.", "10.88.0.1"),
    ("mv", "alone-mv", "10.6.200.", "10.6.0.1"),
    ("port", "alone-ovs", "172.18.200.", "172.18.0.1"),
    ("agents", "by-agent", "10.6.201.", "10.6.0.1"),
];

#[test]
fn podman_and_a_kubelet_share_a_host_and_neither_touches_the_other() {
    let mut world = World::start();
    println!("{}", world.on_node("podman", &["--version"]).trim());
    world.pod("a");
    let a = world.running("a");
    let kubelets = world.ports();
    assert_eq!(kubelets.len(), 1, "{kubelets:?}");

    for (name, network, address, _) in CONTAINERS {
        world.container(name, network);
        let (links, addrs) = world.inside(name);
        assert!(addrs.to_string().contains(&format!("\"{address}")), "{name}: {addrs}");
        let alias = links[1]["ifalias"].as_str().unwrap_or_default();
        let want = match network {
            "podman" => alias.is_empty(),
            "by-agent" => alias.starts_with("mooring:1:") && !alias.ends_with(":alone"),
            _ => alias.starts_with("mooring:1:") && alias.ends_with(":alone"),
        };
        assert!(want, "{name}: {alias:?}");
    }
    let by: Vec<_> = world.ports().into_iter().map(|p| p[2].clone()).collect();
    assert_eq!(by.iter().filter(|b| *b == "alone").count(), 1, "{by:?}");
    world.all_reach(&[&a]);
    let before = world.of_podman();

    // A pod comes and goes.
    world.pod("b");
    let b = world.running("b");
    world.all_reach(&[&a, &b]);
    world.cluster.delete(PODS, "b").unwrap();
    world.wait("b is gone", |w| {
        ensure!(w.cluster.list(PODS)?.len() == 1, "b is there");
        Ok(())
    });
    assert_eq!(world.of_podman(), before, "a pod came and went");

    // The agent dies and sweeps at its next start, while podman's containers run.
    world.take_agent(1).unwrap().kill().unwrap();
    world.all_reach(&[&a]);
    world.start_agent(1).unwrap();
    world.wait("the agent answers", |w| {
        w.pod("c");
        w.running("c");
        Ok(())
    });
    assert_eq!(world.of_podman(), before, "the agent was started anew");

    // The kubelet's runtime names what is valid: its own, of each network.
    let valid = |pods: &[&str]| -> Vec<Value> {
        let records = world.sh("cat /var/lib/cni/results/*-eth0");
        let records = serde_json::Deserializer::from_str(&records).into_iter::<Value>().map(Result::unwrap);
        let named = |r: &Value| {
            r["cniArgs"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|a| a[0] == "K8S_POD_NAME" && pods.contains(&a[1].as_str().unwrap()))
        };
        records.filter(named).map(|r| json!({"containerID": r["containerId"], "ifname": "eth0"})).collect()
    };
    let gc_of_pods = |pods: &[&str]| {
        let list = valid(pods);
        assert_eq!(list.len(), pods.len());
        world.gc(
            "mooring",
            &json!({"cniVersion": "1.1.0", "name": "mooring", "type": "mooring", "clusterNetwork": "cluster",
            "cni.dev/valid-attachments": list}),
        );
    };
    gc_of_pods(&["a", "c"]);
    for (name, plugin) in networks() {
        let mut conf = plugin.clone();
        let kind = plugin["type"].as_str().unwrap();
        // An address of host-local is host-local's to collect: it knows no runtimes.
        conf.as_object_mut().unwrap().remove("ipam");
        (conf["cniVersion"], conf["name"], conf["cni.dev/valid-attachments"]) = (json!("1.1.0"), json!(name), json!([]));
        world.gc(kind, &conf);
    }
    assert_eq!(world.of_podman(), before, "the kubelet's runtime collected its garbage");
    let c = world.running("c");
    world.all_reach(&[&a, &c]);
    let ours = || world.ports().into_iter().filter(|p| p[2] == "agent").collect::<Vec<_>>();
    assert_eq!(ours().len(), 2);
    gc_of_pods(&["a"]);
    assert_eq!(ours().len(), 1, "what the kubelet's runtime no longer has is collected");
    assert_eq!(world.of_podman(), before, "and nothing of podman's");
    world.all_reach(&[&a]);

    // podman takes its own down, and nothing else.
    let pods = ours();
    for (name, ..) in CONTAINERS {
        world.podman(&format!("rm -f -t 0 {name}"));
    }
    assert_eq!(ours(), pods);
    assert!(world.ports().iter().all(|p| p[2] == "agent"), "{:?}", world.ports());
    let left = world.sh("cd /var/lib/cni/networks && find . -type f ! -name lock ! -name 'last_reserved*'");
    assert_eq!(left, "", "addresses of podman's networks");
    From { space: &world.lab.router, netns: None }.ping(a.parse().unwrap()).unwrap();
    world.cluster.delete(PODS, "a").unwrap();
    world.cluster.delete(PODS, "c").unwrap();
    world.wait("all is gone", |w| {
        ensure!(w.cluster.list(PODS)?.is_empty() && w.ports().is_empty(), "{:?}", w.ports());
        Ok(())
    });
}
