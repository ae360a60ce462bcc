//! What an administrator does with a real API server: installs the CRDs, the accounts and the policy, applies the examples and
//! reads tables; and the API suite, of which the real server is the measure.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use integration_tests::kube::{ADMIN, AGENT, CONTROLLER, Machine, NAMESPACE};
use integration_tests::space::Inside;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn machine() -> Machine {
    let machine =
        Machine::start(Path::new(env!("CARGO_BIN_EXE_mooring-lab")), &root().join("deploy")).unwrap_or_else(|e| panic!("{e:#}"));
    println!("kube-apiserver was ready after {:.1} s", machine.kube.took.as_secs_f32());
    machine
}

fn refused<T: std::fmt::Debug>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

/// The header of a table, its cells as kubectl prints them.
fn header(table: &str) -> Vec<&str> {
    let line = table.lines().next().unwrap_or_default();
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn examples_apply_strictly_and_print_the_columns_of_the_quick_start() {
    let m = machine();
    let established = m.kubectl(&["get", "crd", "-o", "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Established\")].status}/{.status.conditions[?(@.type==\"NamesAccepted\")].status}/{.status.conditions[?(@.type==\"NonStructuralSchema\")].status}{\"\\n\"}{end}"]).unwrap();
    let files = std::fs::read_dir(root().join("deploy/crds")).unwrap().count();
    assert_eq!(established.lines().count(), files, "{established}");
    assert!(established.lines().all(|l| l.ends_with("=True/True/")), "{established}");

    for folder in ["underlay-ovs", "macvlan-second-nic"] {
        let folder = root().join("examples").join(folder).display().to_string();
        let said = m.kubectl(&["apply", "--validate=strict", "-f", &folder]).unwrap();
        assert!(said.lines().all(|l| l.ends_with(" created")), "{said}");
        let again = m.kubectl(&["apply", "--validate=strict", "-f", &folder]).unwrap();
        assert!(again.lines().all(|l| l.ends_with(" unchanged")), "{again}");
    }

    // An endpoint and a NodeNetwork, so that their tables have a header.
    let rest = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderEndpoint
metadata: {name: nginx-1, namespace: default}
status:
  ownerControllerType: Pod
  ownerControllerName: nginx-1
  current: {node: n1, uid: u, ips: [{interface: net1, ipv4: 10.6.212.202/16, ipv4Pool: 10-6-v4}]}
---
apiVersion: mooring.dev/v1alpha1
kind: NodeNetwork
metadata: {name: n1}
spec: {bridges: []}
"#;
    m.kube.kubectl_with(&m.space, ADMIN, &["apply", "--validate=strict", "-f", "-"], Some(rest)).unwrap();
    let pools = ["NAME", "VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT", "DEFAULT", "DISABLE"];
    let endpoints = ["NAME", "INTERFACE", "IPV4POOL", "IPV4", "IPV6POOL", "IPV6", "NODE"];
    for (kind, columns) in [("spiderippool", &pools[..]), ("sp", &pools), ("spiderendpoint", &endpoints), ("se", &endpoints)] {
        let table = m.kubectl(&["get", kind]).unwrap();
        assert_eq!(header(&table), columns, "{table}");
    }
    let endpoint = m.kubectl(&["get", "se", "nginx-1"]).unwrap();
    let cells: Vec<&str> = endpoint.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, ["nginx-1", "net1", "10-6-v4", "10.6.212.202/16", "n1"]);
    for (kind, first) in [("bridges", ["NAME", "READY", "DESIRED"]), ("nodenetworks", ["NAME", "BRIDGES", "PHASES"])] {
        let table = m.kubectl(&["get", kind]).unwrap();
        assert_eq!(header(&table)[..3], first, "{table}");
    }
    // A misspelled field is named, not dropped.
    let typo = "apiVersion: mooring.dev/v1alpha1\nkind: Bridge\nmetadata: {name: br2}\nspec: {uplinks: {interface: eth0}}\n";
    let said = refused(m.kube.kubectl_with(&m.space, ADMIN, &["apply", "--validate=strict", "-f", "-"], Some(typo)));
    assert!(said.contains("unknown field \"spec.uplinks\""), "{said}");
}

#[test]
fn only_our_accounts_delete_leases_and_each_may_do_only_its_own() {
    let m = machine();
    let lease = "apiVersion: mooring.dev/v1alpha1\nkind: AddressLease\nmetadata: {name: default.v4-10-6-212-202}\n\
                 spec: {pool: p, address: 10.6.212.202, node: n1, agentID: u}\n";
    // A new policy is obeyed a moment after it was stored.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let said = loop {
        let created = m.kube.kubectl_with(&m.space, AGENT, &["create", "--validate=ignore", "-f", "-"], Some(lease));
        assert!(created.is_ok() || refused(created).contains("AlreadyExists"), "the agent may create leases");
        match m.kubectl(&["delete", "addresslease", "default.v4-10-6-212-202"]) {
            Err(e) => break format!("{e:#}"),
            Ok(_) => assert!(std::time::Instant::now() < patience, "an administrator may delete a lease"),
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    assert!(said.contains("account \"admin\" may not delete it: only the controller and the agents may"), "{said}");
    assert!(
        refused(m.kubectl(&["delete", "addressleases", "--all"])).contains("may not delete it"),
        "a collection goes the same way"
    );
    m.kube.kubectl(&m.space, AGENT, &["delete", "addresslease", "default.v4-10-6-212-202"]).unwrap();

    let may = |account: &str, verb: &str, what: &str| {
        let name = format!("system:serviceaccount:{NAMESPACE}:{account}");
        let (what, part) = what.split_once('/').unwrap_or((what, ""));
        let part = format!("--subresource={part}");
        m.kubectl(&["auth", "can-i", verb, what, &part, "--as", &name, "-A"]).is_ok_and(|said| said.trim() == "yes")
    };
    for (verb, what) in [
        ("patch", "nodes"),
        ("patch", "nodes/status"),
        ("create", "nodenetworks.mooring.dev"),
        ("create", "poolmaps.mooring.dev"),
        ("create", "events"),
        ("patch", "spiderippools.spiderpool.spidernet.io/status"),
    ] {
        assert!(may(CONTROLLER, verb, what), "the controller may not {verb} {what}");
        assert!(what == "events" || !may(AGENT, verb, what), "the agent may {verb} {what}");
    }
    for (account, what) in
        [(AGENT, "secrets"), (CONTROLLER, "secrets"), (AGENT, "configmaps"), (CONTROLLER, "configmaps"), (CONTROLLER, "pods")]
    {
        for verb in ["get", "list", "watch", "create", "update", "patch", "delete"] {
            assert!(!may(account, verb, what), "{account} may {verb} {what}");
        }
    }
    // "No rule has a star" is what makes the lists above whole.
    let roles = m.kubectl(&["get", "clusterroles", CONTROLLER, AGENT, "-o", "json"]).unwrap();
    assert!(!roles.contains("\"*\""), "{roles}");
}

#[test]
fn the_real_server_passes_the_api_suite() {
    let suite =
        std::env::var_os("MOORING_API_SUITE").expect("MOORING_API_SUITE names no test program: run `make test LANE=kube`");
    let m = machine();
    let mut command = Command::new(suite);
    command
        .args(["real_server_passes_the_suite", "--exact", "--nocapture"])
        .env("MOORING_API_SUITE_KUBECONFIG", m.kube.kubeconfig(ADMIN));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = m.space.spawn(Inside::Network, &mut command).unwrap().wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{}", m.tails(10));
    assert!(!text.contains("skipped"), "{text}");
}
