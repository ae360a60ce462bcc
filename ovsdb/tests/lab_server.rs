//! The client against a real ovsdb-server, with `ovs-vsctl` as the judge of what the database holds.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails, as it should")]

#[path = "lab/daemons.rs"]
mod daemons;

use std::process::{Command, Stdio};
use std::time::Duration;

use daemons::{Lab, SOON, installed_schema, run};
use nix::sys::signal::Signal;
use ovsdb::schema::ColumnSchema;
use ovsdb::{
    Bridge, Client, Condition, Config, Endpoint, Error, Function, Interface, MonitorRequest, Mutation, OpResult, OpenVSwitch,
    Operation, Port, Row, Until, Uuid, Value, columns,
};

fn add_bridge(name: &str) -> Vec<Operation> {
    vec![
        Operation::insert("Bridge", columns([("name", name.into()), ("ports", Value::empty())])).named("bridge"),
        Operation::mutate("Open_vSwitch", vec![], vec![Mutation::insert("bridges", Value::named_uuid("bridge"))]),
    ]
}

fn add_ports(bridge: &str, names: impl Iterator<Item = String>) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut references = Vec::new();
    for (index, name) in names.enumerate() {
        let (interface, port) = (format!("i{index}"), format!("p{index}"));
        operations.push(Operation::insert("Interface", columns([("name", name.as_str().into())])).named(&interface));
        let ids = Value::map([("owner", "lab"), ("container", "0123456789abcdef"), ("ifname", "eth0")]);
        let row = [("name", name.into()), ("interfaces", Value::named_uuid(interface)), ("external_ids", ids)];
        operations.push(Operation::insert("Port", columns(row)).named(&port));
        references.push(ovsdb::Atom::NamedUuid(port));
    }
    let mutation = Mutation::insert("ports", Value::Set(references));
    operations.push(Operation::mutate("Bridge", vec![Condition::equal("name", bridge)], vec![mutation]));
    operations
}

fn wait_for_ever() -> Operation {
    Operation::Wait {
        table: "Bridge".into(),
        condition: vec![Condition::equal("name", "never")],
        columns: vec!["name".into()],
        until: Until::NotEqual,
        rows: vec![],
        timeout_ms: None,
    }
}

#[tokio::test]
async fn every_kind_of_operation_leaves_what_ovs_vsctl_reads() {
    let lab = Lab::start();
    let (client, replica) = lab.replica().await;
    let made = client.transact(add_bridge("br0")).await.unwrap();
    assert_eq!(lab.vsctl(&["get", "bridge", "br0", "_uuid"]), made[0].inserted().unwrap().to_string());
    assert_eq!(made[1], OpResult::Count(1));
    client.transact(add_ports("br0", ["p0".to_owned()].into_iter())).await.unwrap();
    assert_eq!(lab.vsctl(&["list-ports", "br0"]), "p0");

    let p0 = || vec![Condition::equal("name", "p0")];
    let [forget, set] = Mutation::set_keys("external_ids", [("owner", "other")]);
    let done = client
        .transact(vec![
            Operation::comment("lab"),
            Operation::update("Port", p0(), columns([("tag", 7.into()), ("trunks", [1, 2].into())])),
            Operation::mutate("Port", p0(), vec![forget, set, Mutation::delete_keys("external_ids", ["ifname"])]),
            Operation::mutate("Port", p0(), vec![Mutation::delete("trunks", 2), Mutation::add("tag", 3)]),
            Operation::select_columns("Port", vec![Condition::new("tag", Function::Greater, 9)], &["name", "tag"]),
            Operation::CommitDurable,
        ])
        .await
        .unwrap();
    assert_eq!(done[..4], [OpResult::Done, OpResult::Count(1), OpResult::Count(1), OpResult::Count(1)]);
    assert_eq!(done[4].rows().unwrap(), [columns([("name", "p0".into()), ("tag", 10.into())])]);
    assert_eq!(lab.vsctl(&["get", "port", "p0", "tag", "trunks"]), "10\n[1]");
    assert_eq!(lab.vsctl(&["get", "port", "p0", "external_ids"]), "{container=\"0123456789abcdef\", owner=other}");
    let port = replica.with(|db| db.port("p0").cloned()).unwrap();
    assert_eq!((port.tag, port.trunks.len(), port.external_ids["owner"].as_str()), (Some(10), 1, "other"));

    let remove = Mutation::delete("ports", port.uuid);
    let gone = client
        .transact(vec![
            Operation::mutate("Bridge", vec![], vec![remove]),
            Operation::delete("Port", vec![Condition::uuid(port.uuid)]),
        ])
        .await
        .unwrap();
    assert_eq!(gone[1], OpResult::Count(1));
    assert_eq!(lab.vsctl(&["list-ports", "br0"]), "");
    assert!(replica.with(|db| db.interface("p0").is_none()));
}

#[tokio::test]
async fn unmet_guard_stops_the_whole_transaction() {
    let lab = Lab::start();
    let client = lab.client();
    client.connected(SOON).await.unwrap();
    client.transact(add_bridge("br0")).await.unwrap();
    let named = |name: &str| vec![Condition::equal("name", name)];
    let guards = [
        Operation::expect_none("Bridge", named("br0")),
        Operation::expect_some("Bridge", named("br1")),
        Operation::expect("Bridge", named("br0"), &["fail_mode"], vec![columns([("fail_mode", "secure".into())])]),
    ];
    for guard in guards {
        let mut operations = add_bridge("br2");
        operations.insert(1, guard);
        let error = client.transact(operations).await.unwrap_err();
        assert!(matches!(error, Error::Operation { index: 1, .. }) && error.is_timed_out(), "{error}");
    }
    let mut operations = vec![
        Operation::expect_some("Bridge", named("br0")),
        Operation::expect_none("Bridge", named("br2")),
        Operation::expect("Bridge", named("br0"), &["fail_mode"], vec![columns([("fail_mode", Value::empty())])]),
    ];
    assert_eq!(lab.vsctl(&["list-br"]), "br0");
    operations.extend(add_bridge("br2"));
    client.transact(operations).await.unwrap();
    assert_eq!(lab.vsctl(&["list-br"]), "br0\nbr2");
}

#[tokio::test]
async fn refusals_of_the_server_say_which_operation_or_that_it_was_the_commit() {
    let lab = Lab::start();
    let client = lab.client();
    client.connected(SOON).await.unwrap();
    client.transact(add_bridge("br0")).await.unwrap();
    client.transact(add_ports("br0", ["p0".to_owned()].into_iter())).await.unwrap();

    let range = Operation::update("Port", vec![], columns([("tag", 5000.into())]));
    let error = client.transact(vec![Operation::comment("x"), range, Operation::comment("y")]).await.unwrap_err();
    assert!(matches!(&error, Error::Operation { index: 1, operation, .. } if operation == "update Port"), "{error}");
    assert!(error.is_constraint_violation(), "{error}");

    let error = client.transact(add_bridge("br0")).await.unwrap_err();
    assert!(matches!(error, Error::Commit { .. }) && error.is_constraint_violation(), "{error}");

    let error = client.transact(vec![Operation::delete("Port", vec![])]).await.unwrap_err();
    assert!(matches!(error, Error::Commit { .. }) && error.is_referential_integrity_violation(), "{error}");

    let error = client.transact(vec![Operation::delete("Nothing", vec![])]).await.unwrap_err();
    assert!(matches!(&error, Error::Operation { index: 0, error, .. } if error == "syntax error"), "{error}");

    let error = client.transact(vec![Operation::assert("nobody")]).await.unwrap_err();
    assert_eq!(error.server_error(), Some("not owner"), "{error}");
    assert_eq!(lab.vsctl(&["list-ports", "br0"]), "p0");

    let other = lab.client_with(Config { database: "Nothing".into(), ..Config::default() });
    let mut state = other.subscribe();
    let refused = state.wait_for(|state| match state {
        ovsdb::State::Disconnected { reason } => reason.contains("unknown database"),
        ovsdb::State::Connected { .. } => panic!("connected to a database that is not there"),
    });
    tokio::time::timeout(SOON, refused).await.unwrap().unwrap();
    assert!(client.list_dbs().await.unwrap().contains(&"Open_vSwitch".to_owned()));
}

#[tokio::test]
async fn changes_by_others_appear_in_the_replica() {
    let lab = Lab::start();
    let (_client, replica) = lab.replica().await;
    let vsctl = |arguments: &[&str]| lab.vsctl(&[&["--no-wait"], arguments].concat());
    vsctl(&["add-br", "br0", "--", "add-port", "br0", "p0", "trunks=1,2,3", "--", "set", "port", "p0", "external_ids:a=1"]);
    let port = replica.wait_for(SOON, |db| db.port("p0").cloned()).await.unwrap();
    assert_eq!(port.trunks, [1, 2, 3].into());
    assert_eq!(port.external_ids.get("a").map(String::as_str), Some("1"));
    replica.with(|db| assert_eq!(db.bridge_of(port.uuid).unwrap().name, "br0"));

    vsctl(&["set", "port", "p0", "trunks=2,3,4", "tag=5", "external_ids:a=2", "external_ids:b=3", "vlan_mode=trunk"]);
    let port = replica.wait_for(SOON, |db| db.port("p0").filter(|port| port.tag.is_some()).cloned()).await.unwrap();
    assert_eq!(port.trunks, [2, 3, 4].into());
    assert_eq!(port.external_ids.values().collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(port.vlan_mode.as_deref(), Some("trunk"));

    vsctl(&["set", "port", "p0", "tag=6"]);
    replica.wait_for(SOON, |db| db.port("p0").filter(|port| port.tag == Some(6)).map(drop)).await.unwrap();
    vsctl(&[
        "clear",
        "port",
        "p0",
        "tag",
        "--",
        "remove",
        "port",
        "p0",
        "external_ids",
        "a",
        "--",
        "clear",
        "port",
        "p0",
        "trunks",
    ]);
    let port = replica.wait_for(SOON, |db| db.port("p0").filter(|port| port.tag.is_none()).cloned()).await.unwrap();
    assert_eq!((port.trunks.len(), port.external_ids.len()), (0, 1));

    vsctl(&["add-bond", "br0", "bond0", "e1", "e2", "lacp=active"]);
    replica.wait_for(SOON, |db| db.port("bond0").map(drop)).await.unwrap();
    replica.with(|db| assert_eq!(db.port_of(db.interface("e2").unwrap().uuid).unwrap().name, "bond0"));
    vsctl(&["del-br", "br0"]);
    replica.wait_for(SOON, |db| db.ports().is_empty().then_some(())).await.unwrap();
    replica.with(|db| assert!(db.bridges().is_empty() && db.interfaces().is_empty()));
}

#[tokio::test]
async fn what_this_client_committed_is_in_its_replica_when_the_reply_comes() {
    let lab = Lab::start();
    let (client, replica) = lab.replica().await;
    for index in 0..300 {
        let name = format!("br{index}");
        client.transact(add_bridge(&name)).await.unwrap();
        assert!(replica.with(|db| db.bridge(&name).is_some()), "{name}");
    }
}

#[tokio::test]
async fn killed_server_leaves_calls_unknown_and_its_return_is_followed_by_all_replicas() {
    let mut lab = Lab::start();
    let (client, replica) = lab.replica().await;
    client.transact(add_bridge("br0")).await.unwrap();
    let under_way = {
        let client = client.clone();
        tokio::spawn(async move { client.transact(vec![wait_for_ever()]).await })
    };
    client.echo().await.unwrap();
    lab.kill_server();
    let error = under_way.await.unwrap().unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    assert!(!replica.status().synced && replica.with(|db| db.bridge("br0").is_some()));
    let error = client.transact(add_bridge("br1")).await.unwrap_err();
    assert!(matches!(error, Error::NotConnected { .. }), "{error}");

    lab.start_server();
    // Before or after the client is back: either way the replica must end with both changes.
    lab.vsctl(&["--no-wait", "del-br", "br0", "--", "add-br", "br2"]);
    replica.wait_for(SOON, |db| (db.bridge("br0").is_none() && db.bridge("br2").is_some()).then_some(())).await.unwrap();
    client.transact(add_bridge("br1")).await.unwrap();
    assert!(replica.with(|db| db.bridge("br1").is_some()));
    assert_eq!(lab.vsctl(&["list-br"]), "br1\nbr2");
}

#[tokio::test]
async fn hanging_server_on_a_unix_socket_is_noticed_by_our_probe() {
    let lab = Lab::start();
    let client = lab.client_with(Config { probe_interval: Duration::from_secs(1), ..Config::default() });
    let replica = client.monitor(MonitorRequest::vswitch()).await.unwrap();
    replica.synced(SOON).await.unwrap();
    // Several probes are answered first.
    let mut state = client.subscribe();
    state.mark_unchanged();
    assert!(tokio::time::timeout(Duration::from_millis(3500), state.changed()).await.is_err());
    let server = lab.server.as_ref().unwrap();
    server.signal(Signal::SIGSTOP);
    let error = tokio::time::timeout(SOON, client.transact(add_bridge("br0"))).await.unwrap().unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    server.signal(Signal::SIGCONT);
    replica.synced(SOON).await.unwrap();
}

/// ovsdb-server probes TCP sessions every 5 s and drops those that do not answer.
#[test]
fn idle_tcp_connection_outlives_the_probes_of_both_sides() {
    // A thread of its own, because it moves to a namespace in which it may listen.
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the lab needs root: it makes network namespaces");
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let lab = Lab::start();
        let mut relay = Command::new("setpriv");
        relay.args(["--pdeathsig", "KILL", "ovsdb-server"]).stdin(Stdio::null());
        run(Command::new("ovsdb-tool").arg("create").arg(lab.path("tcp.db")).arg(installed_schema()));
        relay.arg(lab.path("tcp.db")).arg("--remote=ptcp:6640:127.0.0.1").args(["-vsyslog:off", "-vconsole:off"]);
        relay.arg(format!("--unixctl={}", lab.path("tcp.ctl").display()));
        let mut server = relay.spawn().unwrap();
        let ended = std::panic::catch_unwind(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let endpoint: Endpoint = "tcp:127.0.0.1:6640".parse().unwrap();
                // Our own probe out of the way: only the server's keeps this alive.
                let quiet =
                    Client::connect(endpoint.clone(), Config { probe_interval: Duration::from_secs(60), ..Config::default() });
                let probing = Client::connect(endpoint, Config { probe_interval: Duration::from_secs(1), ..Config::default() });
                quiet.connected(SOON).await.unwrap();
                probing.connected(SOON).await.unwrap();
                let (mut one, mut two) = (quiet.subscribe(), probing.subscribe());
                one.mark_unchanged();
                two.mark_unchanged();
                tokio::select! {
                    _ = one.changed() => panic!("{:?}", quiet.state()),
                    _ = two.changed() => panic!("{:?}", probing.state()),
                    () = tokio::time::sleep(Duration::from_secs(13)) => {}
                }
                quiet.echo().await.unwrap();
                probing.echo().await.unwrap();
            });
        });
        let _ = server.kill();
        let _ = server.wait();
        ended.unwrap();
    });
    thread.join().unwrap();
}

#[tokio::test]
async fn two_clients_see_each_other_and_share_a_lock_one_at_a_time() {
    let lab = Lab::start();
    let (one, first) = lab.replica().await;
    let (two, second) = lab.replica().await;
    one.transact(add_bridge("br1")).await.unwrap();
    two.transact(add_bridge("br2")).await.unwrap();
    for replica in [&first, &second] {
        replica.wait_for(SOON, |db| (db.bridges().len() == 2).then_some(())).await.unwrap();
    }
    let mut held = one.lock("lab_lock").await.unwrap();
    held.acquired().await;
    let mut waiting = two.lock("lab_lock").await.unwrap();
    two.echo().await.unwrap();
    assert!(!waiting.held());
    one.transact(vec![Operation::assert("lab_lock")]).await.unwrap();
    assert_eq!(two.transact(vec![Operation::assert("lab_lock")]).await.unwrap_err().server_error(), Some("not owner"));
    drop((held, one, first));
    tokio::time::timeout(SOON, waiting.acquired()).await.unwrap();
    two.transact(vec![Operation::assert("lab_lock")]).await.unwrap();
}

#[tokio::test]
async fn a_lock_given_back_goes_to_the_next_while_its_client_lives() {
    let lab = Lab::start();
    let (one, two) = (lab.client(), lab.client());
    let mut held = one.lock("lab_lock").await.unwrap();
    held.acquired().await;
    let mut waiting = two.lock("lab_lock").await.unwrap();
    drop(held);
    tokio::time::timeout(SOON, waiting.acquired()).await.unwrap();
    one.echo().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_share_one_connection() {
    let lab = Lab::start();
    let (client, replica) = lab.replica().await;
    let calls: Vec<_> = (0..1000)
        .map(|_| {
            let client = client.clone();
            let add = Operation::mutate("Open_vSwitch", vec![], vec![Mutation::add("next_cfg", 1)]);
            tokio::spawn(async move { client.transact(vec![add]).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), [OpResult::Count(1)]);
    }
    assert_eq!(lab.vsctl(&["get", "open", ".", "next_cfg"]), "1000");
    assert_eq!(replica.with(|db| db.open_vswitch().unwrap().next_cfg), 1000);
}

/// More than may be in flight at once: what is given up must be cancelled at the server, not pile up.
#[tokio::test]
async fn transactions_given_up_while_they_wait_leave_room_for_others() {
    let lab = Lab::start();
    let client = lab.client();
    client.connected(SOON).await.unwrap();
    for _ in 0..1200 {
        let waiting = client.transact(vec![wait_for_ever()]);
        tokio::select! {
            biased;
            result = waiting => panic!("{result:?}"),
            () = tokio::task::yield_now() => {}
        }
        client.echo().await.unwrap();
    }
    tokio::time::timeout(SOON, client.transact(add_bridge("br0"))).await.unwrap().unwrap();
}

#[tokio::test]
async fn configuration_that_nobody_applies_is_reported() {
    let lab = Lab::start();
    let (_client, replica) = lab.replica().await;
    let error = replica.transact_and_wait(add_bridge("br0"), Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, Error::NotApplied { next_cfg: 1, waited_ms: 200 }), "{error}");
    assert_eq!(lab.vsctl(&["list-br"]), "br0");
}

#[tokio::test]
async fn older_server_without_some_columns_is_followed_all_the_same() {
    let mut schema: serde_json::Value = serde_json::from_slice(&std::fs::read(installed_schema()).unwrap()).unwrap();
    let mut without = |table: &str, column: &str| {
        schema["tables"][table]["columns"].as_object_mut().unwrap().remove(column).expect("the column is in the schema");
    };
    without("Interface", "mtu_request");
    without("Bridge", "rstp_enable");
    without("Open_vSwitch", "datapath_types");
    let old = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(old.path(), schema.to_string()).unwrap();
    let lab = Lab::with_schema(old.path());
    let (client, replica) = lab.replica().await;
    client.transact(add_bridge("br0")).await.unwrap();
    assert!(replica.with(|db| db.bridge("br0").is_some() && !db.schema().has("Interface", "mtu_request")));
}

#[tokio::test]
async fn columns_without_a_field_are_kept_and_tables_without_a_struct_too() {
    let lab = Lab::start();
    let client = lab.client();
    let request = MonitorRequest::vswitch()
        .table("Port", &["rstp_status", "qos", "cvlans", "no_such_column"])
        .table("Mirror", &["name", "select_all"])
        .table("No_Such_Table", &["x"]);
    let replica = client.monitor(request).await.unwrap();
    replica.synced(SOON).await.unwrap();
    lab.vsctl(&["--no-wait", "add-br", "br0", "--", "set", "port", "br0", "cvlans=1,2"]);
    lab.vsctl(&["--no-wait", "--", "--id=@m", "create", "mirror", "name=m0", "--", "set", "bridge", "br0", "mirrors=@m"]);
    lab.vsctl(&["--no-wait", "set", "port", "br0", "cvlans=2,3", "--", "set", "mirror", "m0", "select_all=true"]);
    let cvlans = |db: &ovsdb::Db| db.port("br0")?.other.get("cvlans").cloned();
    replica.wait_for(SOON, |db| cvlans(db).filter(|found| found.same(&[2, 3].into()))).await.unwrap();
    replica.with(|db| {
        let mirror = db.other("Mirror").unwrap().iter().next().unwrap();
        assert!(mirror.columns["select_all"].same(&true.into()));
        assert_eq!(db.bridge("br0").unwrap().mirrors, [mirror.uuid].into());
        assert!(db.other("No_Such_Table").is_none());
    });
}

/// The fields against the schema of the installed server, so that a wrong Rust type is found before a wrong value is.
#[tokio::test]
async fn fields_have_the_shape_that_the_schema_gives_them() {
    fn check<R: Row>(schema: &ovsdb::Schema, table: &str) {
        for name in R::COLUMNS {
            let column = schema.column(table, name).unwrap_or_else(|| panic!("{table} has no {name}"));
            let takes = |value: Value| R::check(name, &value).is_ok();
            let ColumnSchema { key, value, min, max } = column;
            let (one, several): (Value, Value) = match key.as_str() {
                "integer" => (1.into(), [1, 2].into()),
                "boolean" => (true.into(), [true, false].into()),
                "string" => ("a".into(), ["a", "b"].into()),
                "uuid" => (Uuid::ZERO.into(), [Uuid::ZERO, Uuid::from_bytes([1; 16])].into()),
                other => panic!("{table}.{name} is of type {other}"),
            };
            if value.is_some() {
                assert!(takes(Value::map([("a", "b")])) && takes(Value::empty()) && !takes(one), "{table}.{name}");
                continue;
            }
            assert!(takes(one), "{table}.{name}");
            assert_eq!(takes(several), *max > 1, "{table}.{name}");
            // A composite column takes the empty set as a difference whatever its least size is.
            assert_eq!(takes(Value::empty()), *min == 0 || *max > 1, "{table}.{name}");
        }
    }
    let lab = Lab::start();
    let schema = lab.client().connected(SOON).await.unwrap();
    check::<OpenVSwitch>(&schema, "Open_vSwitch");
    check::<Bridge>(&schema, "Bridge");
    check::<Port>(&schema, "Port");
    check::<Interface>(&schema, "Interface");
}
