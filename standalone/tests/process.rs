//! The program as users run it: socket, snapshot, signals, and what survives `kill -9`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// A running program; it does not outlive the test.
struct Program {
    child: Child,
    socket: PathBuf,
}

impl Program {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("api.sock");
        let _ = std::fs::remove_file(&socket);
        let child = Command::new(env!("CARGO_BIN_EXE_mooring-standalone"))
            .args(["--log", "warn", "--socket"])
            .arg(&socket)
            .arg("--snapshot")
            .arg(directory.join("snapshot.json"))
            .spawn()
            .unwrap();
        for _ in 0..1000 {
            if socket.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(socket.exists(), "the program did not begin to serve within 10 s");
        Self { child, socket }
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::default_namespaced(standalone::client::unix(&self.socket, "test"))
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config_map(name: &str, size: usize) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"a": "x".repeat(size)}})).unwrap()
}

fn version(object: &ConfigMap) -> u64 {
    object.metadata.resource_version.as_deref().unwrap().parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_survive_a_restart_and_versions_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path());
    assert_eq!(mode(&program.socket), 0o600);
    let made = program.api().create(&PostParams::default(), &config_map("a", 1)).await.unwrap();
    let socket = program.socket.clone();
    assert!(program.end(Signal::SIGTERM).success());
    assert!(!socket.exists());
    assert_eq!(mode(&directory.path().join("snapshot.json")), 0o600);

    let program = Program::start(directory.path());
    let api = program.api();
    assert_eq!(api.get("a").await.unwrap(), made);
    let next = api.create(&PostParams::default(), &config_map("b", 1)).await.unwrap();
    assert!(version(&next) > version(&made) + 1);
    // Who watched the predecessor has to list anew.
    let old = version(&made).to_string();
    let mut events = Box::pin(api.watch(&WatchParams::default(), &old).await.unwrap());
    match events.next().await.unwrap().unwrap() {
        WatchEvent::Error(status) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
    drop(events);
    assert!(program.end(Signal::SIGTERM).success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_properly_when_the_server_stops() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path());
    let mut events = Box::pin(program.api().watch(&WatchParams::default(), "0").await.unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = std::time::Instant::now();
    assert!(program.end(Signal::SIGTERM).success());
    assert!(started.elapsed() < Duration::from_secs(2), "a watch held up the stop");
    assert!(events.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_any_moment_leaves_a_whole_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot.json");
    let mut newest = 0;
    let mut hit_a_write = 0;
    for round in 0..8_u64 {
        let program = Program::start(directory.path());
        let api = program.api();
        let kept = api.list(&ListParams::default()).await.unwrap();
        assert!(round == 0 || kept.items.len() >= 100, "round {round}: {} objects", kept.items.len());
        // Big enough that writing the file takes a good part of the time.
        for i in 0..if round == 0 { 100 } else { 8 } {
            let made = api.create(&PostParams::default(), &config_map(&format!("r{round}-{i}"), 100_000)).await.unwrap();
            assert!(version(&made) > newest, "version {} was given out twice", version(&made));
            newest = version(&made);
        }
        if round == 0 {
            while !std::fs::read(&snapshot).is_ok_and(|bytes| bytes.len() > 10_000_000) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } else {
            // The write begins half a second after the first change; kill around that.
            tokio::time::sleep(Duration::from_millis(440 + round * 20)).await;
        }
        hit_a_write += u32::from(directory.path().join("snapshot.json.tmp").exists());
        assert!(!program.end(Signal::SIGKILL).success());
        let server = standalone::Server::new(standalone::kinds::builtin(), Vec::new()).unwrap();
        assert!(server.load(&snapshot).unwrap(), "no snapshot after round {round}");
    }
    println!("{hit_a_write} of 8 kills came while the file was being written");
}

#[test]
fn a_snapshot_that_is_none_stops_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot.json");
    let unknown = r#"{"format":1,"resourceVersion":1,"objects":[{"apiVersion":"x/v1","kind":"Y","metadata":{"name":"z"}}]}"#;
    for (content, wanted) in [
        ("{", "is not readable"),
        (r#"{"format":9,"resourceVersion":1,"objects":[]}"#, "has format 9, this program reads 1"),
        (unknown, r#"holds x/v1/Y "z", a kind that is not served"#),
    ] {
        std::fs::write(&snapshot, content).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_mooring-standalone"))
            .arg("--socket")
            .arg(directory.path().join("api.sock"))
            .arg("--snapshot")
            .arg(&snapshot)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(wanted), "{text}");
        assert_eq!(std::fs::read_to_string(&snapshot).unwrap(), content);
    }
}
