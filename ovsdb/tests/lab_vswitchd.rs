//! The client together with a real ovs-vswitchd (userspace datapath, its own network namespace).

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails, as it should")]

#[path = "lab/daemons.rs"]
mod daemons;

use std::time::Duration;

use daemons::{Lab, SOON, until};
use ovsdb::unixctl::unixctl;
use ovsdb::{Condition, Error, Mutation, OpResult, Operation, Replica, Value, columns};

/// Starting a datapath thread takes its time on a loaded machine.
const APPLIED: Duration = Duration::from_secs(30);

fn add_port(bridge: &str, name: &str, kind: &str) -> Vec<Operation> {
    vec![
        Operation::insert("Interface", columns([("name", name.into()), ("type", kind.into())])).named("interface"),
        Operation::insert("Port", columns([("name", name.into()), ("interfaces", Value::named_uuid("interface"))])).named("port"),
        Operation::mutate(
            "Bridge",
            vec![Condition::equal("name", bridge)],
            vec![Mutation::insert("ports", Value::named_uuid("port"))],
        ),
    ]
}

fn add_bridge(name: &str) -> Vec<Operation> {
    let mut operations = add_port(name, name, "internal");
    operations.truncate(2);
    let row = [("name", name.into()), ("datapath_type", "netdev".into()), ("ports", Value::named_uuid("port"))];
    operations.push(Operation::insert("Bridge", columns(row)).named("bridge"));
    operations.push(Operation::mutate("Open_vSwitch", vec![], vec![Mutation::insert("bridges", Value::named_uuid("bridge"))]));
    operations
}

async fn start() -> (Lab, Replica) {
    let mut lab = Lab::start();
    lab.start_vswitchd();
    let (_client, replica) = lab.replica().await;
    let results = replica.transact_and_wait(add_bridge("br0"), APPLIED).await.unwrap();
    assert_eq!(results.len(), 4);
    assert!(matches!(results[3], OpResult::Count(1)));
    (lab, replica)
}

#[tokio::test]
async fn bridge_and_port_are_made_by_one_transaction_and_their_ofport_is_awaited() {
    let (lab, replica) = start().await;
    replica.client().transact(add_port("br0", "p0", "internal")).await.unwrap();
    let ofport = replica.wait_for(APPLIED, |db| db.interface("p0")?.ofport.filter(|ofport| *ofport > 0)).await.unwrap();
    assert_eq!(lab.vsctl(&["get", "interface", "p0", "ofport"]), ofport.to_string());
    replica.with(|db| {
        let root = db.open_vswitch().unwrap();
        assert!(root.datapath_types.contains("netdev") && root.iface_types.contains("internal"));
        assert!(root.cur_cfg >= 1);
        assert_eq!(db.bridge("br0").unwrap().datapath_id.as_ref().map(String::len), Some(16));
        let interface = db.interface("p0").unwrap();
        assert!(interface.mac_in_use.is_some() && interface.error.is_none());
    });
}

#[tokio::test]
async fn device_that_does_not_exist_is_told_by_error_and_ofport() {
    let (_lab, replica) = start().await;
    replica.transact_and_wait(add_port("br0", "nowhere", ""), APPLIED).await.unwrap();
    let (ofport, error) = replica
        .wait_for(SOON, |db| {
            let interface = db.interface("nowhere")?;
            Some((interface.ofport, interface.error.clone()?))
        })
        .await
        .unwrap();
    assert_eq!(ofport, Some(-1));
    assert!(error.contains("nowhere"), "{error}");
}

#[tokio::test]
async fn control_socket_answers_and_refuses() {
    let (lab, _replica) = start().await;
    let socket = lab.path("vswitchd.ctl");
    until("the control socket is there", || socket.exists());
    let table = unixctl(&socket, "fdb/show", &["br0"]).await.unwrap();
    assert!(table.contains("VLAN"), "{table}");
    let trace = unixctl(&socket, "ofproto/trace", &["br0", "in_port=LOCAL"]).await.unwrap();
    assert!(trace.contains("Datapath actions"), "{trace}");
    let error = unixctl(&socket, "fdb/show", &["br9"]).await.unwrap_err();
    assert_eq!(error.to_string(), "OVSDB server refused unixctl: no such bridge");
    let error = unixctl(&lab.path("absent.ctl"), "fdb/show", &[]).await.unwrap_err();
    assert!(matches!(error, Error::Unixctl { .. }), "{error}");
}
