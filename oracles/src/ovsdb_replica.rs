//! The OVSDB client against a server that says anything: the first line is the content of the monitored tables, each
//! further one an `update2`, or, after a `+`, a message as it stands. Table `T` is also followed by a naive model.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use ovsdb::codec::JsonCodec;
use ovsdb::{Client, Config, Connector, MonitorRequest, Replica, Uuid, Value};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio_util::codec::FramedRead;

/// Nothing in a run waits for time to pass.
const NEVER: Duration = Duration::from_secs(3600);
/// Bounds a run; both directions of the pipe hold it.
const MAX: usize = 16 * 1024;
const MARK: &str = "ffffffff-0000-0000-0000-000000000000";

const COLUMNS: [&str; 4] = ["s", "n", "set", "map"];

fn schema() -> Json {
    let uuids = json!({"type": {"key": "uuid", "min": 0, "max": "unlimited"}});
    let map = json!({"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}});
    let (string, int) = (json!({"type": "string"}), json!({"type": {"key": "integer", "min": 0, "max": 1}}));
    json!({"name": "Open_vSwitch", "version": "8.3.1", "tables": {
        "Open_vSwitch": {"columns": {"bridges": uuids, "cur_cfg": {"type": "integer"}, "external_ids": map}},
        "Bridge": {"columns": {"name": string, "ports": uuids, "external_ids": map}},
        "Port": {"columns": {"name": string, "interfaces": uuids, "tag": int, "external_ids": map,
            "trunks": {"type": {"key": "integer", "min": 0, "max": 4096}}}},
        "Interface": {"columns": {"name": string, "type": string, "ofport": int, "external_ids": map,
            "error": {"type": {"key": "string", "min": 0, "max": 1}}}},
        "T": {"columns": {"s": string, "n": int, "map": map,
            "set": {"type": {"key": "integer", "min": 0, "max": "unlimited"}}}},
        "Done": {"columns": {"s": string}},
    }})
}

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.len() > MAX {
        return;
    }
    let mut lines = text.lines();
    let initial = lines.next().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_else(|| json!({}));
    let mut model = Model { plain: true, ..Model::default() };
    let mut script = Vec::new();
    model.update(&initial);
    for line in lines {
        match (line.strip_prefix('+'), serde_json::from_str::<Json>(line)) {
            (Some(raw), _) => {
                model.plain = false;
                script.push(Message::Raw(raw.to_owned()));
            }
            (None, Ok(update)) => {
                model.update(&update);
                script.push(Message::Update(update));
            }
            (None, Err(_)) => {}
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
    runtime.block_on(run(initial, script, model));
}

enum Message {
    Raw(String),
    Update(Json),
}

/// One stream, and no second.
struct Once(Option<DuplexStream>);

impl Connector for Once {
    type Stream = DuplexStream;

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        self.0.take().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    fn describe(&self) -> String {
        "pipe".to_owned()
    }
}

struct Server {
    frames: FramedRead<ReadHalf<DuplexStream>, JsonCodec>,
    writer: WriteHalf<DuplexStream>,
}

impl Server {
    /// None: the client has hung up.
    async fn next(&mut self) -> Option<Json> {
        let frame = self.frames.next().await?.expect("the client sends whole messages");
        serde_json::from_slice::<serde::de::IgnoredAny>(&frame).expect("the client sends JSON");
        // An echo's id goes back as it came, also a number (1e999) for which serde_json has no value.
        Some(serde_json::from_slice(&frame).unwrap_or_default())
    }

    async fn send(&mut self, text: &str) {
        // One that has hung up reads nothing more.
        let _ = self.writer.write_all(text.as_bytes()).await;
    }
}

async fn run(initial: Json, script: Vec<Message>, model: Model) {
    let (ours, theirs) = tokio::io::duplex(4 * MAX);
    let config = Config {
        probe_interval: NEVER,
        connect_timeout: NEVER,
        backoff_min: NEVER,
        backoff_max: NEVER,
        max_message_len: 2 * MAX,
        ..Config::default()
    };
    let client = Client::connect(Once(Some(ours)), config);
    let request = MonitorRequest::vswitch().table("T", &COLUMNS).table("Done", &["s"]);
    let replica = client.monitor(request).await.expect("the connection's task runs");
    let (reader, writer) = tokio::io::split(theirs);
    let mut server = Server { frames: FramedRead::new(reader, JsonCodec::default()), writer };
    let reply = |id: &Json, result: Json| json!({"id": id, "result": result, "error": null}).to_string();
    let asked = server.next().await.expect("the client begins with get_schema");
    server.send(&reply(&asked["id"], schema())).await;
    let asked = server.next().await.expect("the client goes on with monitor_cond");
    assert_eq!(asked["method"], "monitor_cond");
    let id = asked["params"][1].clone();
    server.send(&reply(&asked["id"], initial)).await;
    for message in script {
        match message {
            Message::Raw(text) => server.send(&text).await,
            Message::Update(update) => {
                server.send(&json!({"method": "update2", "id": null, "params": [id, update]}).to_string()).await
            }
        }
    }
    let done = json!({"method": "update2", "id": null, "params": [id, {"Done": {MARK: {"insert": {}}}}]});
    server.send(&done.to_string()).await;
    // The end of the stream is the end of a run, also where what was sent last is half a message; what the replica has
    // followed until then it keeps.
    let _ = server.writer.shutdown().await;
    while server.next().await.is_some() {}
    let mark: Uuid = MARK.parse().expect("a UUID");
    let followed = replica.with(|db| db.other("Done").is_some_and(|done| done.get(mark).is_some()));
    judge(&replica, followed, &model);
}

fn judge(replica: &Replica, followed: bool, model: &Model) {
    let db = replica.snapshot();
    if model.plain && model.fits {
        assert!(followed, "updates that fit broke the connection");
        let found: BTreeMap<Uuid, Row> =
            db.other("T").map(|t| t.iter().map(|row| (row.uuid, Row::of(&row.columns))).collect()).unwrap_or_default();
        assert_eq!(found, model.rows);
    }
    if model.must_break {
        assert!(!followed, "an update of an unknown row was taken");
    }
}

/// A row of `T`, every column present.
#[derive(Debug, Clone, Default, PartialEq)]
struct Row {
    s: String,
    n: Option<i64>,
    set: BTreeSet<i64>,
    map: BTreeMap<String, String>,
}

impl Row {
    fn of(columns: &ovsdb::Columns) -> Self {
        let get = |c: &str| columns.get(c).cloned().unwrap_or_else(Value::empty);
        let text = |a: &ovsdb::Atom| a.as_str().expect("a string").to_owned();
        let ints = |v: &Value| v.as_set().expect("a set").iter().map(|a| a.as_integer().expect("an integer")).collect();
        let set: BTreeSet<i64> = ints(&get("n"));
        Self {
            s: get("s").as_atom().map(text).unwrap_or_default(),
            n: set.first().copied(),
            set: ints(&get("set")),
            map: get("map").as_map().expect("a map").iter().map(|(k, v)| (text(k), text(v))).collect(),
        }
    }
}

/// What the updates mean, written anew.
#[derive(Debug, Default)]
struct Model {
    rows: BTreeMap<Uuid, Row>,
    /// Only updates were sent.
    plain: bool,
    /// Not one of them was odd, so `rows` is what the replica must hold.
    fits: bool,
    /// One modifies a row that was never announced, and everything before it fits.
    must_break: bool,
    begun: bool,
}

impl Model {
    fn update(&mut self, update: &Json) {
        if !std::mem::replace(&mut self.begun, true) {
            self.fits = true;
        }
        if self.fits {
            let done = self.tables(update);
            self.fits = done.is_some();
        }
    }

    /// None: something in it is not what a server with this schema sends.
    fn tables(&mut self, update: &Json) -> Option<()> {
        let tables = update.as_object()?;
        if tables.keys().any(|t| t != "T") {
            return None;
        }
        let Some(rows) = tables.get("T") else { return Some(()) };
        let (mut seen, mut unknown) = (BTreeSet::new(), false);
        let mut next = self.rows.clone();
        for (uuid, change) in rows.as_object()? {
            let uuid: Uuid = uuid.parse().ok()?;
            let change = change.as_object().filter(|c| c.len() == 1)?;
            let (kind, columns) = change.iter().next()?;
            if !seen.insert(uuid) {
                return None;
            }
            match kind.as_str() {
                "initial" | "insert" => {
                    let mut row = Row::default();
                    row.set(columns, false)?;
                    next.insert(uuid, row);
                }
                "modify" => {
                    let mut row = self.rows.get(&uuid).cloned().unwrap_or_default();
                    row.set(columns, true)?;
                    unknown |= !self.rows.contains_key(&uuid);
                    next.insert(uuid, row);
                }
                "delete" if columns.is_null() => drop(next.remove(&uuid)),
                _ => return None,
            }
        }
        if unknown {
            self.must_break = self.plain;
            return None;
        }
        self.rows = next;
        Some(())
    }
}

impl Row {
    fn set(&mut self, columns: &Json, diff: bool) -> Option<()> {
        for (column, value) in columns.as_object()? {
            match column.as_str() {
                "s" => self.s = value.as_str()?.to_owned(),
                "n" => {
                    let set = ints(value)?;
                    self.n = if set.len() > 1 { return None } else { set.first().copied() };
                }
                "set" if diff => self.set = self.set.symmetric_difference(&ints(value)?).copied().collect(),
                "set" => self.set = ints(value)?,
                "map" if diff => {
                    for (k, v) in pairs(value)? {
                        if self.map.get(&k) == Some(&v) {
                            self.map.remove(&k)
                        } else {
                            self.map.insert(k, v)
                        };
                    }
                }
                "map" => self.map = pairs(value)?,
                _ => return None,
            }
        }
        Some(())
    }
}

/// `5` or `["set",[1,2]]`, each once.
fn ints(value: &Json) -> Option<BTreeSet<i64>> {
    if let Some(n) = value.as_i64() {
        return Some(BTreeSet::from([n]));
    }
    let list = tagged(value, "set")?;
    let set: BTreeSet<i64> = list.iter().map(Json::as_i64).collect::<Option<_>>()?;
    (set.len() == list.len()).then_some(set)
}

/// `["map",[["a","b"]]]`, each key once.
fn pairs(value: &Json) -> Option<BTreeMap<String, String>> {
    let list = tagged(value, "map")?;
    let pair = |p: &Json| match p.as_array().map(Vec::as_slice) {
        Some([Json::String(k), Json::String(v)]) => Some((k.clone(), v.clone())),
        _ => None,
    };
    let map: BTreeMap<_, _> = list.iter().map(pair).collect::<Option<_>>()?;
    (map.len() == list.len()).then_some(map)
}

fn tagged<'a>(value: &'a Json, tag: &str) -> Option<&'a Vec<Json>> {
    match value.as_array().map(Vec::as_slice) {
        Some([Json::String(t), Json::Array(list)]) if t == tag => Some(list),
        _ => None,
    }
}
