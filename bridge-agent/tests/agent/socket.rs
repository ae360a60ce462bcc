//! The socket with real connections.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bridge_agent::cni_server::{Server, ServerError};
use cni::request::{RawCall, Request};
use cni::shim::{Agent, Timeouts, forward};
use cni::wire::{Call, Reply, ToAgent, ToClient, decode, encode};
use cni::{Error, Verb};
use runtime::Shutdown;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use crate::world::{World, ovs};

async fn serve(w: &World) -> (PathBuf, tokio::task::JoinHandle<()>, Shutdown) {
    let path = w.dir.path().join("cni.sock");
    let server = Server::bind(&path).unwrap();
    let stop = Shutdown::new();
    let task = tokio::spawn(server.run(w.agent.clone(), stop.clone()));
    (path, task, stop)
}

async fn forwarded(path: &Path, call: Call) -> Result<Value, Error> {
    let at = Agent { socket: path.to_string_lossy().into_owned(), spool: path.with_file_name("spool") };
    let raw = call.raw();
    tokio::task::spawn_blocking(move || {
        let request = Request::from_value(&raw, call.stdin.clone())?;
        let s = Duration::from_secs;
        forward(&at, &raw, &request, Timeouts { connect: s(2), reply: s(20), exec: s(20) })
    })
    .await
    .unwrap()
}

/// Sends a call as a plugin does and returns the connection.
fn send(path: &Path, call: &Call, netns: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    let frame = encode(&ToAgent::Call(call.clone())).unwrap();
    let file = std::fs::File::open(netns).unwrap();
    let fds = [file.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let n = rustix::net::sendmsg(&stream, &[std::io::IoSlice::new(&frame[..1])], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(n, 1);
    (&stream).write_all(&frame[1..]).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_served_over_the_socket() {
    use std::os::unix::fs::PermissionsExt;
    let w = World::new().await;
    let (path, task, stop) = serve(&w).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let conf = ovs(json!({"ipam":null}));
    let result = forwarded(&path, w.call(Verb::Add, "c1", "eth0", conf.clone(), None)).await.unwrap();
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    let e = forwarded(&path, w.call(Verb::Add, "c1", "eth0", conf.clone(), None)).await.unwrap_err();
    assert_eq!(e.code, Error::CONFLICT);
    assert_eq!(forwarded(&path, w.call(Verb::Del, "c1", "eth0", conf, None)).await.unwrap(), Value::Null);
    stop.trigger();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_while_it_waits_gets_nothing_and_nothing_stays() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let (path, task, stop) = serve(&w).await;
    let conf = ovs(json!({"ipam":{"type":"spiderpool","default_ipv4_ippool":["p"]}}));
    let nobody = model::PodRef { namespace: "default".into(), name: "late".into(), uid: "u".into() };
    let before = w.before("c1").await;
    // The agent waits for a pod that does not come; the caller goes.
    let stream = send(&path, &w.call(Verb::Add, "c1", "eth0", conf.clone(), Some(&nobody)), &w.netns("c1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(w.before("c1").await, before);
    assert!(w.agent.journal.is_empty());

    // It goes right after it asked. Mostly that is before the reply, and all is undone; a reply that was already on its way
    // counts as told, and then the runtime's DEL finds everything.
    let pod = w.pod("a", json!({})).await;
    for _ in 0..20 {
        drop(send(&path, &w.call(Verb::Add, "c1", "eth0", conf.clone(), Some(&pod)), &w.netns("c1")));
    }
    // Connections get their turn in any order: a DEL may come before the last of them.
    w.until_async("nothing is left", || async {
        forwarded(&path, w.call(Verb::Del, "c1", "eth0", conf.clone(), Some(&pod))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        w.agent.journal.is_empty() && w.leases().await.is_empty()
    })
    .await;
    stop.trigger();
    task.await.unwrap();
    assert_eq!(w.before("c1").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_container_are_serial_and_a_nested_one_does_not_wait_for_the_outer() {
    let w = World::new().await;
    w.v4("p", "10.6.1.10").await;
    let (path, task, stop) = serve(&w).await;
    let pod = w.pod("a", json!({"ipam.spidernet.io/ippool":r#"{"ipv4":["p"]}"#})).await;
    let conf = json!({"cniVersion":"1.0.0","name":"cluster","type":"bridge","ipam":{"type":"spiderpool"}});
    std::fs::write(w.dir.path().join("net.d/10-cluster.conf"), conf.to_string()).unwrap();
    let outer = json!({"cniVersion":"1.0.0","name":"mooring","type":"mooring","clusterNetwork":"cluster"});
    let (p, netns) = (path.clone(), w.netns("c1"));
    let (outer, inner) = (w.call(Verb::Add, "c1", "eth0", outer, Some(&pod)), w.call(Verb::Add, "c1", "eth0", conf, Some(&pod)));
    // As the meta plugin's binary would: asked to execute `bridge`, which executes `spiderpool`, which calls the agent.
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || {
        let mut stream = send(&p, &outer, &netns);
        let ToClient::Exec(exec) = read(&mut stream) else { panic!("expected to be asked to execute a plugin") };
        assert_eq!((exec.plugin.as_str(), exec.command), ("bridge", Verb::Add));
        let given = handle.block_on(forwarded(&p, inner)).unwrap();
        let result = json!({"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":given["ips"]});
        let done = cni::wire::ExecDone { ok: true, stdout: result.to_string(), code: Some(0), ..Default::default() };
        stream.write_all(&encode(&ToAgent::ExecDone(done)).unwrap()).unwrap();
        let ToClient::Reply(reply) = read(&mut stream) else { panic!("expected the reply") };
        reply
    })
    .await
    .unwrap();
    assert_eq!(Reply::into_result(done).unwrap()["ips"][0]["address"], "10.6.1.10/16");
    stop.trigger();
    task.await.unwrap();
}

fn read(stream: &mut UnixStream) -> ToClient {
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; cni::wire::body_len(head).unwrap()];
    stream.read_exact(&mut body).unwrap();
    decode(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_or_dropped_and_the_next_caller_is_served() {
    let w = World::new().await;
    let (path, task, stop) = serve(&w).await;
    for bytes in [&b"\0\0\0\x02{}"[..], b"\0\0\0\x04nope", b"\xff\xff\xff\xff", b"\0\0", b""] {
        let p = path.clone();
        let bytes = bytes.to_vec();
        tokio::task::spawn_blocking(move || {
            let mut s = UnixStream::connect(&p).unwrap();
            s.write_all(&bytes).unwrap();
            s.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            s.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
            // The agent may close before it read all: a reset is as good as an end.
            let _ = s.read_to_end(&mut answer);
            if !answer.is_empty() {
                assert!(matches!(decode::<ToClient>(&answer[4..]).unwrap(), ToClient::Reply(Reply::Failed { code: 6, .. })));
            }
        })
        .await
        .unwrap();
    }
    // A call without a descriptor, and one whose environment is wrong.
    let raw = RawCall {
        command: "ADD".into(),
        container_id: "c1".into(),
        netns: "/nowhere".into(),
        ifname: "eth0".into(),
        ..RawCall::default()
    };
    let conf = ovs(json!({"ipam":null}));
    let call = |raw: &RawCall| Call {
        version: 1,
        verb: Verb::Add,
        container_id: raw.container_id.clone(),
        netns: Some(raw.netns.clone()),
        ifname: raw.ifname.clone(),
        args: String::new(),
        path: String::new(),
        stdin: conf.clone(),
        runtime: String::new(),
    };
    for (raw, message) in [
        (raw.clone(), "CNI_NETNS \"/nowhere\": its descriptor did not come with the call"),
        (
            RawCall { ifname: "a-name-that-is-too-long".into(), ..raw },
            "CNI_IFNAME: interface name \"a-name-that-is-too-long\" has 23 bytes, at most 15 are allowed",
        ),
    ] {
        let (p, c) = (path.clone(), call(&raw));
        let reply = tokio::task::spawn_blocking(move || {
            let mut s = UnixStream::connect(&p).unwrap();
            s.write_all(&encode(&ToAgent::Call(c)).unwrap()).unwrap();
            read(&mut s)
        });
        let ToClient::Reply(reply) = reply.await.unwrap() else { panic!("expected a reply") };
        let e = reply.into_result().unwrap_err();
        assert_eq!((e.code, e.msg.as_str()), (Error::INVALID_ENV, message));
    }
    forwarded(&path, w.call(Verb::Add, "c1", "eth0", conf.clone(), None)).await.unwrap();
    stop.trigger();
    task.await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_not_replaced_and_an_old_socket_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cni.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(&path).unwrap_err(), ServerError::NoSocket(_)));
    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    Server::bind(&path).unwrap();
}
