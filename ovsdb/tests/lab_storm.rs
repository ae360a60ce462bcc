//! The client while its server dies, hangs and comes back, and with ten thousand ports under one monitor; `ovs-vsctl` says what
//! is in the database.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails, as it should")]

#[path = "lab/daemons.rs"]
mod daemons;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use daemons::{Lab, SOON};
use nix::sys::signal::Signal;
use ovsdb::{Client, Condition, Config, Connector, Db, MonitorRequest, Mutation, Operation, Replica, Value, columns};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

fn add_bridge(name: &str) -> Vec<Operation> {
    vec![
        Operation::insert("Bridge", columns([("name", name.into()), ("ports", Value::empty())])).named("bridge"),
        Operation::mutate("Open_vSwitch", vec![], vec![Mutation::insert("bridges", Value::named_uuid("bridge"))]),
    ]
}

fn add_ports(names: &[String]) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut references = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let (interface, port) = (format!("i{index}"), format!("p{index}"));
        operations.push(Operation::insert("Interface", columns([("name", name.as_str().into())])).named(&interface));
        let ids = Value::map([("owner", "lab"), ("container", "0123456789abcdef"), ("ifname", "eth0")]);
        let trunks = Value::set([i64::try_from(index).unwrap() % 4000, 4000].map(ovsdb::Atom::Integer));
        let row = [
            ("name", name.as_str().into()),
            ("interfaces", Value::named_uuid(interface)),
            ("external_ids", ids),
            ("trunks", trunks),
        ];
        operations.push(Operation::insert("Port", columns(row)).named(&port));
        references.push(ovsdb::Atom::NamedUuid(port));
    }
    let mutation = Mutation::insert("ports", Value::Set(references));
    operations.push(Operation::mutate("Bridge", vec![Condition::equal("name", "br0")], vec![mutation]));
    operations
}

fn del_port(db: &Db, name: &str) -> Vec<Operation> {
    let uuid = db.port(name).unwrap().uuid;
    vec![Operation::mutate("Bridge", vec![Condition::includes("ports", uuid)], vec![Mutation::delete("ports", uuid)])]
}

/// How transactions ended.
#[derive(Debug, Default)]
struct Ends {
    done: AtomicUsize,
    not_sent: AtomicUsize,
    unknown: AtomicUsize,
    /// Of the unknown ones: those that had been carried out.
    after_all: AtomicUsize,
}

/// Adds ports, and takes every third away again, until `stop`. What is left when all is told.
async fn work(worker: usize, client: Client, replica: Replica, ends: Arc<Ends>, stop: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut there = BTreeSet::new();
    let count = |counter: &AtomicUsize| _ = counter.fetch_add(1, Ordering::Relaxed);
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("w{worker}-{n}");
        let mut steps = vec![true];
        steps.extend((n % 3 == 0).then_some(false));
        for add in steps {
            let operations = match add {
                true => add_ports(std::slice::from_ref(&name)),
                false if there.contains(&name) => replica.with(|db| del_port(db, &name)),
                false => break,
            };
            let is_there = match client.transact(operations).await {
                Ok(_) => {
                    count(&ends.done);
                    add
                }
                Err(error) if error.outcome_unknown() => {
                    count(&ends.unknown);
                    // What the replica says once it follows the server again is how it ended, for good.
                    let is_there = replica.wait_for(Duration::from_secs(30), |db| Some(db.port(&name).is_some())).await.unwrap();
                    if is_there == add {
                        count(&ends.after_all);
                    }
                    is_there
                }
                Err(error @ ovsdb::Error::NotConnected { .. }) => {
                    count(&ends.not_sent);
                    replica.synced(Duration::from_secs(30)).await.unwrap_or_else(|late| panic!("{error}; {late}"));
                    !add
                }
                Err(error) => panic!("{name}: {error}"),
            };
            if is_there {
                there.insert(name.clone());
            } else {
                there.remove(&name);
            }
        }
        tokio::task::yield_now().await;
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transaction_in_flight_ends_once_or_is_unknown_and_settled_by_one_look() {
    let mut lab = Lab::start();
    let config = Config {
        probe_interval: Duration::from_millis(200),
        backoff_min: Duration::from_millis(20),
        backoff_max: Duration::from_millis(100),
        ..Config::default()
    };
    let client = lab.client_with(config);
    let replica = client.monitor(MonitorRequest::vswitch()).await.unwrap();
    replica.synced(SOON).await.unwrap();
    client.transact(add_bridge("br0")).await.unwrap();
    let (ends, stop) = (Arc::new(Ends::default()), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> =
        (0..100).map(|worker| tokio::spawn(work(worker, client.clone(), replica.clone(), ends.clone(), stop.clone()))).collect();
    for round in 0..18 {
        tokio::time::sleep(Duration::from_millis(60 + round * 7 % 40)).await;
        match round % 3 {
            0 => lab.kill_server(),
            1 => lab.end_server(),
            // It hangs until the client has given it up, and then finds what was sent before that.
            _ => {
                let server = lab.server.as_ref().unwrap();
                server.signal(Signal::SIGSTOP);
                let mut state = client.subscribe();
                tokio::time::timeout(SOON, state.wait_for(|state| !state.is_connected())).await.unwrap().unwrap();
                tokio::time::sleep(Duration::from_millis(20 * round)).await;
                server.signal(Signal::SIGCONT);
            }
        }
        if lab.server.is_none() {
            lab.start_server();
        }
        replica.synced(SOON).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut expected = BTreeSet::new();
    for worker in workers {
        expected.extend(worker.await.unwrap());
    }
    println!("{ends:?}");
    assert!(ends.unknown.load(Ordering::Relaxed) >= 18, "each round should catch something in flight: {ends:?}");
    let ports: BTreeSet<String> = lab.vsctl(&["list-ports", "br0"]).lines().map(str::to_owned).collect();
    let differ: Vec<_> = ports.symmetric_difference(&expected).collect();
    assert!(differ.is_empty(), "not as told: {differ:?}");
    let rows = |table: &str| lab.vsctl(&["--columns=name", "--format=csv", "--no-headings", "list", table]).lines().count();
    assert_eq!((rows("port"), rows("interface")), (expected.len(), expected.len()), "no row twice, none that no bridge has");
    assert_eq!(replica.with(|db| db.ports().len()), expected.len());
}

/// A socket that gives few bytes at a time, as a busy server on a slow host does.
struct Sips {
    stream: UnixStream,
    reads: Arc<AtomicUsize>,
}

impl AsyncRead for Sips {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut sip = buffer.take(1000);
        let polled = Pin::new(&mut self.stream).poll_read(context, &mut sip);
        let read = sip.filled().to_vec();
        buffer.put_slice(&read);
        polled
    }
}

impl AsyncWrite for Sips {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

struct Sipping {
    path: std::path::PathBuf,
    reads: Arc<AtomicUsize>,
}

impl Connector for Sipping {
    type Stream = Sips;

    async fn connect(&mut self) -> io::Result<Sips> {
        Ok(Sips { stream: UnixStream::connect(&self.path).await?, reads: self.reads.clone() })
    }

    fn describe(&self) -> String {
        "sips".to_owned()
    }
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Time that this process has had of the processors: unlike the clock it says the same on a busy machine.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the name in brackets, utime and stime are the 12th and 13th field, in hundredths of a second.
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    Duration::from_millis(10 * fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>())
}

/// Columns of a table by name of the row, as `ovs-vsctl --format=json list` gives them.
fn listed(lab: &Lab, table: &str, columns: &[&str]) -> BTreeMap<String, Vec<Value>> {
    let text = lab.vsctl(&["--format=json", &format!("--columns=name,{}", columns.join(",")), "list", table]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = |row: &serde_json::Value| {
        let mut cells = row.as_array().unwrap().iter().cloned();
        let name = cells.next().unwrap().as_str().unwrap().to_owned();
        (name, cells.map(|cell| serde_json::from_value(cell).unwrap()).collect())
    };
    json["data"].as_array().unwrap().iter().map(row).collect()
}

/// Every row and column that we follow and that says something is as the foreign tool lists it.
fn compare(lab: &Lab, replica: &Replica) {
    let ports = listed(lab, "port", &["_uuid", "tag", "trunks", "external_ids", "interfaces"]);
    let interfaces = listed(lab, "interface", &["_uuid", "type", "mtu_request"]);
    let bridges = listed(lab, "bridge", &["ports"]);
    let db = replica.snapshot();
    assert_eq!((db.ports().len(), db.interfaces().len()), (ports.len(), interfaces.len()));
    for (name, cells) in &ports {
        let row = db.port(name).unwrap_or_else(|| panic!("no port {name}"));
        let ours = [
            row.uuid.into(),
            row.tag.into(),
            row.trunks.clone().into(),
            row.external_ids.clone().into(),
            row.interfaces.clone().into(),
        ];
        assert!(cells.iter().zip(&ours).all(|(theirs, ours): (&Value, &Value)| theirs.same(ours)), "{name}: {cells:?}, {row:?}");
    }
    for (name, cells) in &interfaces {
        let row = db.interface(name).unwrap_or_else(|| panic!("no interface {name}"));
        let ours = [row.uuid.into(), Value::from(row.r#type.as_str()), row.mtu_request.into()];
        assert!(cells.iter().zip(&ours).all(|(theirs, ours)| theirs.same(ours)), "{name}: {cells:?}, {row:?}");
    }
    assert!(bridges["br0"][0].same(&db.bridge("br0").unwrap().ports.clone().into()));
}

#[tokio::test]
async fn ten_thousand_ports_are_followed_in_bounded_time_and_memory() {
    let lab = Lab::start();
    let (client, first) = lab.replica().await;
    client.transact(add_bridge("br0")).await.unwrap();
    let names: Vec<String> = (0..10_000).map(|n| format!("veth{n:05}")).collect();
    for batch in names.chunks(1000) {
        client.transact(add_ports(batch)).await.unwrap();
    }
    assert_eq!(first.with(|db| db.ports().len()), 10_000);
    drop((client, first));

    let (before, began, reads) = (resident(), cpu(), Arc::new(AtomicUsize::new(0)));
    let client = Client::connect(Sipping { path: lab.path("db.sock"), reads: reads.clone() }, Config::default());
    let replica = client.monitor(MonitorRequest::vswitch()).await.unwrap();
    replica.synced(Duration::from_secs(60)).await.unwrap();
    let (took, grown) = (cpu() - began, resident().saturating_sub(before));
    println!(
        "first content in {took:?} of processor time, {} reads; {} KiB more in memory",
        reads.load(Ordering::Relaxed),
        grown / 1024
    );
    assert!(reads.load(Ordering::Relaxed) > 3000, "it came in pieces");
    // A decoder that looks at bytes again needs a minute for that many pieces.
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(grown < 96 << 20, "{grown} bytes");
    compare(&lab, &replica);

    // Others change rows in every way that a difference can have.
    let mut changes = vec!["--no-wait".to_owned()];
    for n in 0..400 {
        let port = &names[n * 25];
        let change = match n % 5 {
            0 => format!("-- set port {port} tag={n}"),
            1 => format!("-- set port {port} trunks=1,2,{} external_ids:owner=other external_ids:new=1", n + 10),
            2 => format!("-- remove port {port} external_ids owner -- clear port {port} trunks"),
            3 => format!("-- --if-exists del-port br0 {port}"),
            _ => format!("-- set interface {port} mtu_request={} type=internal", 1000 + n),
        };
        changes.extend(change.split(' ').map(str::to_owned));
    }
    lab.vsctl(&changes.iter().map(String::as_str).collect::<Vec<_>>());
    replica.wait_for(SOON, |db| (db.ports().len() == 9_920).then_some(())).await.unwrap();
    compare(&lab, &replica);

    // The dearest case: a snapshot lives, so each update copies the maps of ports and interfaces.
    let began = cpu();
    for n in 0..100 {
        let _snapshot = replica.snapshot();
        client.transact(add_ports(&[format!("new{n}")])).await.unwrap();
    }
    let each = (cpu() - began) / 100;
    println!("one port more beside 10,000, a snapshot held: {each:?}");
    assert!(each < Duration::from_millis(100), "{each:?}");
    compare(&lab, &replica);
    let grown = resident().saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes after the changes");
}
