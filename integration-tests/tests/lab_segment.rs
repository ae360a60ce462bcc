//! What pods say on their segment before and after they use an address, and what becomes of a stranger's address and of a
//! gateway that is not there. The segment's frames are judged by tcpdump on another host of it, which is the stranger too.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::cluster::{EVENTS, LEASES, PODS, POOLS, text};
use integration_tests::product::{Captured, From, captured};
use integration_tests::world::World as Started;
use serde_json::{Value, json};

/// A pod that failed is tried again after some seconds, a few times.
const PATIENCE: Duration = Duration::from_secs(120);
/// The NIC of the router on the pods' segment.
const ROUTER_NIC: &str = "net172";

struct World(Started);

impl Deref for World {
    type Target = Started;

    fn deref(&self) -> &Started {
        &self.0
    }
}

impl World {
    /// One node with br1 on the segment 172.18.0.0/16.
    fn start() -> Self {
        let world = Self(Started::start(Path::new(env!("CARGO_BIN_EXE_mooring-lab")), 1, PATIENCE).unwrap());
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/underlay-ovs");
        let files = ["00-bridge.yaml", "20-network.yaml"].map(|f| dir.join(f));
        world.cluster.apply(&files).unwrap();
        world.cluster.label_node("n1", "bridge.mooring.dev/br1", Some("enabled")).unwrap();
        world.bridge_ready("n1");
        world
    }

    fn wait<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> Result<T>) -> T {
        self.0.wait(what, || ask(self))
    }

    fn pool(&self, name: &str, subnet: &str, ips: &str, gateway: &str, annotations: &Value) {
        let pool = json!({"apiVersion": POOLS.0, "kind": POOLS.1, "metadata": {"name": name, "annotations": annotations},
            "spec": {"subnet": subnet, "ips": [ips], "gateway": gateway}});
        self.cluster.apply_text(&pool.to_string()).unwrap();
    }

    fn pod(&self, name: &str, v4: &str, v6: Option<&str>) {
        let mut pools = json!({"ipv4": [v4]});
        if let Some(v6) = v6 {
            pools["ipv6"] = json!([v6]);
        }
        let annotations =
            json!({"v1.multus-cni.io/default-network": "kube-system/ovs-conf", "ipam.spidernet.io/ippool": pools.to_string()});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "c"}]}});
        self.cluster.apply_text(&pod.to_string()).unwrap();
    }

    fn running(&self, name: &str) -> Value {
        self.wait(&format!("{name} runs"), |w| {
            let pod = w.cluster.get(PODS, Some("default"), name)?;
            ensure!(text(&pod, "/status/phase") == "Running", "{:?}", w.events(name));
            Ok(pod)
        })
    }

    /// Reasons and messages of what was said about a pod.
    fn events(&self, pod: &str) -> Vec<(String, String)> {
        let events = self.cluster.list(EVENTS).unwrap();
        let of = events.iter().filter(|e| text(e, "/involvedObject/name") == pod);
        of.map(|e| (text(e, "/reason"), text(e, "/message"))).collect()
    }

    fn router_mac(&self) -> String {
        let links: Value =
            serde_json::from_str(&self.lab.router.run("ip", &["-j", "link", "show", ROUTER_NIC]).unwrap()).unwrap();
        text(&links, "/0/address")
    }

    /// What passes the router's NIC meanwhile that is about who has an address.
    fn heard(&self, work: impl FnOnce(&Captured)) -> Vec<Heard> {
        let at = From { space: &self.lab.router, netns: None };
        let lines = captured(at, ROUTER_NIC, &["arp or (icmp6 and (ip6[40] == 135 or ip6[40] == 136))"], |seen| {
            work(seen);
            Ok(())
        });
        let lines = lines.unwrap();
        print!("{lines}");
        lines.lines().filter_map(Heard::read).collect()
    }
}

/// A line of tcpdump.
#[derive(Debug)]
struct Heard {
    /// Seconds of the day.
    at: f64,
    what: String,
}

impl Heard {
    fn read(line: &str) -> Option<Self> {
        let (time, what) = line.split_once(' ')?;
        let parts: Vec<f64> = time.split(':').filter_map(|p| p.parse().ok()).collect();
        let [h, m, s] = parts[..] else { return None };
        Some(Self { at: h * 3600.0 + m * 60.0 + s, what: what.to_owned() })
    }
}

/// Times at which this was heard.
fn times(all: &[Heard], what: &str) -> Vec<f64> {
    all.iter().filter(|h| h.what.contains(what)).map(|h| h.at).collect()
}

#[test]
fn a_strangers_address_is_passed_over_and_a_free_one_is_probed_used_and_announced() {
    let world = World::start();
    let both = json!({"mooring.dev/detect-conflict": "true", "mooring.dev/detect-gateway": "true"});
    world.pool("p", "172.18.0.0/16", "172.18.30.131", "172.18.0.1", &both);
    world.pool("six", "fd00:172:18::/64", "fd00:172:18::132", "fd00:172:18::1", &both);
    world.lab.router.ip_batch(&format!("addr add 172.18.30.131/16 dev {ROUTER_NIC}\n")).unwrap();
    let stranger = world.router_mac();

    // All that the pool has is used by a stranger.
    let heard = world.heard(|_| {
        world.pod("a", "p", Some("six"));
        world.wait("the stranger is seen", |w| {
            let lease = w.cluster.get(LEASES, None, "default.v4-172-18-30-131")?;
            ensure!(text(&lease, "/spec/quarantine/mac") == stranger, "{lease}");
            ensure!(text(&lease, "/spec/holder").is_empty() && text(&lease, "/spec/node").is_empty(), "{lease}");
            ensure!(w.events("a").iter().any(|(r, m)| r == "AddressConflict" && m.contains(&stranger)), "{:?}", w.events("a"));
            w.cluster.condition(POOLS, "p", "Quarantined")
        });
    });
    let pool = world.cluster.get(POOLS, None, "p").unwrap();
    assert!(pool.to_string().contains(&stranger), "{pool}");
    assert!(!times(&heard, "who-has 172.18.30.131 tell 0.0.0.0").is_empty());
    assert!(!times(&heard, &format!("172.18.30.131 is-at {stranger}")).is_empty());
    assert!(times(&heard, "172.18.30.131 tell 172.18.30.131").is_empty(), "it is not announced by the pod");

    // With one more address the same pod starts.
    let announcing = "who-has 172.18.30.132 tell 172.18.30.132";
    let advertising = "fd00:172:18::132 > ff02::1: ICMP6, neighbor advertisement, tgt is fd00:172:18::132";
    let heard = world.heard(|seen| {
        world.cluster.patch(POOLS, "p", &json!({"spec": {"ips": ["172.18.30.131-172.18.30.132"]}})).unwrap();
        let pod = world.running("a");
        assert_eq!(
            (text(&pod, "/status/podIPs/0/ip"), text(&pod, "/status/podIPs/1/ip")),
            ("172.18.30.132".into(), "fd00:172:18::132".into())
        );
        // And no more than these: the next ones would follow within a second or two.
        seen.until(|text| text.matches(announcing).count() >= 2 && text.matches(advertising).count() >= 3);
        std::thread::sleep(Duration::from_millis(500));
    });
    let probes = times(&heard, "who-has 172.18.30.132 tell 0.0.0.0");
    let solicitations = times(&heard, ":: > ff02::1:ff00:132: ICMP6, neighbor solicitation, who has fd00:172:18::132");
    assert_eq!((probes.len(), solicitations.len()), (3, 3), "{heard:#?}");
    let gateways = [
        times(&heard, "who-has 172.18.0.1 tell 172.18.30.132"),
        times(&heard, "fd00:172:18::132 > ff02::1:ff00:1: ICMP6, neighbor solicitation, who has fd00:172:18::1"),
    ];
    let announced = times(&heard, announcing);
    let advertised = times(&heard, advertising);
    assert_eq!((announced.len(), advertised.len()), (2, 3), "RFC 5227 section 1.1 and RFC 4861 section 10: {heard:#?}");
    for asked in &gateways {
        assert!(
            asked[0] > probes[2] && asked[0] < announced[0],
            "the gateway is asked between probes and announcement: {heard:#?}"
        );
    }
    // A busy machine may hold up any of them.
    let apart = |times: &[f64], s: f64| times.windows(2).all(|w| (s - 0.5..s + 10.0).contains(&(w[1] - w[0])));
    assert!(apart(&announced, 2.0) && apart(&advertised, 1.0), "{announced:?} {advertised:?}");
    println!("from the first probe to the announcement: {:.0} ms", (announced[0] - probes[0]) * 1000.0);

    // The repetitions did not disturb the pod: it still reaches its gateway, and the router finds it.
    From { space: &world.lab.router, netns: None }.ping("172.18.30.132".parse().unwrap()).unwrap();

    // Who is gone announces nothing.
    let mut until_gone = 0;
    let heard = world.heard(|seen| {
        world.pod("b", "p", None);
        world.cluster.delete(PODS, "a").unwrap();
        world.running("b");
        world.cluster.delete(PODS, "b").unwrap();
        world.wait("b is gone", |w| {
            let pods = w.cluster.list(PODS)?;
            ensure!(pods.is_empty(), "pods are left");
            Ok(())
        });
        std::thread::sleep(Duration::from_millis(300));
        until_gone = seen.text().matches(announcing).count();
        std::thread::sleep(Duration::from_millis(2500));
    });
    // The second one too where all of that took more than 2 s.
    assert!((1..=2).contains(&until_gone), "{heard:#?}");
    assert_eq!(times(&heard, announcing).len(), until_gone, "{heard:#?}");
}

#[test]
fn a_gateway_that_is_absent_holds_a_pod_back_until_it_answers() {
    let world = World::start();
    let gateway = json!({"mooring.dev/detect-gateway": "true"});
    world.pool("p", "172.18.0.0/16", "172.18.30.131-172.18.30.132", "172.18.0.77", &gateway);
    world.pod("a", "p", None);
    world.wait("a word about the gateway", |w| {
        let said = w.events("a");
        ensure!(said.iter().any(|(_, m)| m.contains("gateway 172.18.0.77 does not answer on this segment")), "{said:?}");
        Ok(())
    });
    let ports = world.lab.node(1).space.run("ovs-vsctl", &["--timeout=10", "list-ports", "br1"]).unwrap();
    println!("ports meanwhile: {}", ports.trim());
    world.lab.router.ip_batch(&format!("addr add 172.18.0.77/16 dev {ROUTER_NIC}\n")).unwrap();
    world.running("a");
}
