//! The plugin's side of the agent's socket, against an agent of a few lines in the same process.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use cni::request::RawCall;
use cni::shim::{Agent, Timeouts, forward, spool};
use cni::wire::{self, Call, Reply, ToAgent, ToClient};
use cni::{Error, Request};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

/// An agent that answers may do so on a busy machine.
const PATIENT: Timeouts =
    Timeouts { connect: Duration::from_secs(60), reply: Duration::from_secs(60), exec: Duration::from_secs(60) };
const QUICK: Timeouts =
    Timeouts { connect: Duration::from_millis(300), reply: Duration::from_millis(300), exec: Duration::from_millis(300) };

fn call(command: &str, netns: &str) -> (RawCall, Request) {
    let raw = RawCall {
        command: command.into(),
        container_id: "c1".into(),
        netns: netns.into(),
        ifname: "eth0".into(),
        args: "MAC=0a:00:00:00:00:01".into(),
        path: "/opt/cni/bin".into(),
    };
    let stdin = json!({"cniVersion":"1.1.0","name":"n","type":"cni-macvlan","prevResult":{},"extra":7}).to_string();
    let request = Request::new(&raw, stdin.as_bytes()).unwrap();
    (raw, request)
}

/// One connection: reads a frame, with the descriptor that came with its first byte.
fn accept(listener: &UnixListener) -> (UnixStream, Call, Option<String>) {
    let (stream, _) = listener.accept().unwrap();
    let mut first = [0; 4];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut iov = [IoSliceMut::new(&mut first)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty()).unwrap();
    assert_eq!(message.bytes, 4);
    let fd = message.cmsgs().unwrap().find_map(|c| match c {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let path = fd.map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().to_str().unwrap().to_owned());
    let mut body = vec![0; wire::body_len(first).unwrap()];
    (&stream).read_exact(&mut body).unwrap();
    let ToAgent::Call(call) = wire::decode(&body).unwrap() else { panic!("not a call") };
    (stream, call, path)
}

/// Runs `forward` against `agent`, which gets the connection.
fn talk(
    command: &str,
    netns: &str,
    agent: impl FnOnce(UnixStream, Call, Option<String>) + Send + 'static,
) -> Result<Value, Error> {
    talk_within(PATIENT, command, netns, agent)
}

fn talk_within(
    timeouts: Timeouts,
    command: &str,
    netns: &str,
    agent: impl FnOnce(UnixStream, Call, Option<String>) + Send + 'static,
) -> Result<Value, Error> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let agent = std::thread::spawn(move || {
        let (stream, call, fd) = accept(&listener);
        agent(stream, call, fd);
    });
    let (raw, request) = call(command, netns);
    let answer = forward(&at(&socket), &raw, &request, timeouts);
    agent.join().unwrap();
    answer
}

/// An agent at that socket whose spool is beside it.
fn at(socket: &Path) -> Agent {
    Agent { socket: socket.to_str().unwrap().into(), spool: socket.with_file_name("spool") }
}

fn nowhere() -> Agent {
    at(Path::new("/run/no-dir/no-socket"))
}

fn answer(mut stream: UnixStream, reply: Reply) {
    stream.write_all(&wire::encode(&ToClient::Reply(reply)).unwrap()).unwrap();
}

#[test]
fn the_agent_gets_the_whole_call_and_the_namespace() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let expected = path.clone();
    let result = talk("ADD", &path, move |stream, call, fd| {
        assert_eq!(fd.as_deref(), Some(expected.as_str()));
        assert_eq!((call.version, call.verb, call.container_id.as_str()), (1, cni::Verb::Add, "c1"));
        assert_eq!((call.netns.as_deref(), call.ifname.as_str()), (Some(expected.as_str()), "eth0"));
        assert_eq!((call.args.as_str(), call.path.as_str()), ("MAC=0a:00:00:00:00:01", "/opt/cni/bin"));
        assert_eq!(call.stdin["extra"], 7);
        answer(stream, Reply::done(json!({"cniVersion":"1.1.0"})));
    });
    assert_eq!(result, Ok(json!({"cniVersion":"1.1.0"})));
}

#[test]
fn an_error_of_the_agent_is_handed_on_as_it_is() {
    let e = Error::new(101, "name taken").with_details("by eth0");
    let sent = e.clone();
    assert_eq!(talk("ADD", "/dev/null", move |s, _, _| answer(s, Reply::failed(&sent))), Err(e));
}

#[test]
fn del_goes_without_a_namespace_that_is_gone() {
    for netns in ["", "/run/netns/nobody-has-this"] {
        let asked = netns.to_owned();
        let result = talk("DEL", netns, move |s, call, fd| {
            assert_eq!(fd, None);
            // The path is told all the same: it says which namespace was meant.
            assert_eq!(call.netns.unwrap_or_default(), asked);
            answer(s, Reply::done(Value::Null));
        });
        assert_eq!(result, Ok(Value::Null));
    }
}

#[test]
fn add_and_check_need_their_namespace() {
    for command in ["ADD", "CHECK"] {
        let (raw, request) = call(command, "/run/netns/nobody-has-this");
        let e = forward(&nowhere(), &raw, &request, QUICK).unwrap_err();
        assert_eq!(e.code, 3);
        assert_eq!(e.msg, "CNI_NETNS \"/run/netns/nobody-has-this\": failed to open: No such file or directory (os error 2)");
    }
}

#[test]
fn an_agent_that_is_away_is_tried_again_later() {
    let (raw, request) = call("ADD", "/dev/null");
    let started = Instant::now();
    let e = forward(&nowhere(), &raw, &request, QUICK).unwrap_err();
    assert!(started.elapsed() >= QUICK.connect, "it waits for an agent that is being replaced");
    assert_eq!(e.code, 11);
    assert!(e.msg.starts_with("failed to reach the node's agent at /run/no-dir/no-socket"), "{e}");
    let raw = RawCall { command: "STATUS".into(), path: "/opt/cni/bin".into(), ..RawCall::default() };
    let request = Request::new(&raw, br#"{"cniVersion":"1.1.0","name":"n","type":"t"}"#).unwrap();
    assert_eq!(forward(&nowhere(), &raw, &request, QUICK).unwrap_err().code, 50);
}

/// The one request that a spool holds.
fn spooled(agent: &Agent) -> spool::Spooled {
    let list = spool::list(&agent.spool).unwrap();
    assert_eq!((list.ready.len(), list.temp.len()), (1, 0));
    spool::read(&list.ready[0]).unwrap()
}

#[test]
fn a_del_without_an_agent_is_spooled_and_succeeds() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let netns = tempfile::NamedTempFile::new().unwrap();
    let path = netns.path().to_str().unwrap();
    let agent = at(&dir.path().join("cni.sock"));
    std::fs::create_dir(&agent.spool).unwrap();
    // No socket.
    let (raw, request) = call("DEL", path);
    assert_eq!(forward(&agent, &raw, &request, QUICK), Ok(Value::Null));
    let one = spooled(&agent);
    let id = netns.as_file().metadata().unwrap();
    assert_eq!(one.netns, Some(spool::NetnsInode { dev: id.dev(), ino: id.ino() }));
    assert_eq!((one.call.container_id.as_str(), one.call.ifname.as_str()), ("c1", "eth0"));
    assert_eq!((one.call.netns.as_deref(), one.call.stdin["extra"].as_i64()), (Some(path), Some(7)));
    assert!(!one.call.runtime.is_empty());
    // One that refuses, left by an agent that was killed; the namespace is gone by now.
    drop(UnixListener::bind(&agent.socket).unwrap());
    netns.close().unwrap();
    assert_eq!(forward(&agent, &raw, &request, QUICK), Ok(Value::Null));
    assert_eq!(spooled(&agent).netns, None);
    // An ADD is never spooled.
    let (raw, request) = call("ADD", "/dev/null");
    assert_eq!(forward(&agent, &raw, &request, QUICK).unwrap_err().code, 11);
    assert_eq!(spooled(&agent).call.verb, cni::Verb::Del);
}

#[test]
fn a_del_to_an_agent_that_accepts_nobody_is_spooled() {
    let dir = tempfile::tempdir().unwrap();
    let agent = at(&dir.path().join("cni.sock"));
    std::fs::create_dir(&agent.spool).unwrap();
    // A stopped process: its backlog takes a few and then nobody.
    let fd = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    )
    .unwrap();
    let addr = nix::sys::socket::UnixAddr::new(agent.socket.as_str()).unwrap();
    nix::sys::socket::bind(fd.as_raw_fd(), &addr).unwrap();
    nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&agent.socket).unwrap();
    let (raw, request) = call("DEL", "");
    let started = Instant::now();
    assert_eq!(forward(&agent, &raw, &request, QUICK), Ok(Value::Null));
    assert!(started.elapsed() >= QUICK.connect && started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    spooled(&agent);
}

#[test]
fn a_spool_that_cannot_be_written_fails_the_del() {
    let (raw, request) = call("DEL", "");
    let e = forward(&nowhere(), &raw, &request, QUICK).unwrap_err();
    assert_eq!(e.code, 11);
    let missing = "and the DEL could not be spooled: spool \"/run/no-dir/spool\": failed to read the directory: No such file";
    assert!(e.details.starts_with(missing), "{e}");
    let dir = tempfile::tempdir().unwrap();
    let agent = at(&dir.path().join("cni.sock"));
    std::fs::create_dir(&agent.spool).unwrap();
    std::fs::File::create(agent.spool.join("a.bad")).unwrap().set_len(spool::MAX_BYTES).unwrap();
    let e = forward(&agent, &raw, &request, QUICK).unwrap_err();
    assert!(e.code == 11 && e.details.contains("is full"), "{e}");
    // No agent that is down: something else is wrong, and stays an error.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let agent = at(&dir.path().join("file/cni.sock"));
    let e = forward(&agent, &raw, &request, QUICK).unwrap_err();
    assert!(e.code == 11 && e.msg.contains("Not a directory"), "{e}");
}

/// The child of the test below; as a test of its own it does nothing.
#[test]
fn spool_writer() {
    let Ok(dir) = std::env::var("SPOOL_WRITER_DIR") else { return };
    let (raw, request) = call("DEL", "");
    for i in 0.. {
        let call = Call {
            version: wire::PROTOCOL,
            verb: request.verb,
            container_id: format!("c{}", i % 5),
            netns: None,
            ifname: raw.ifname.clone(),
            args: "x".repeat(20_000),
            path: raw.path.clone(),
            stdin: json!({"cniVersion":"1.0.0","name":"n","type":"t"}),
            runtime: String::new(),
        };
        spool::write(Path::new(&dir), &spool::Spooled::new(call, None)).unwrap();
    }
}

#[test]
fn a_writer_killed_at_any_moment_leaves_whole_requests_only() {
    let dir = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let mut whole = 0;
    for round in 0..12 {
        let mut child = std::process::Command::new(&me)
            .args(["--exact", "spool_writer", "--test-threads=1"])
            .env("SPOOL_WRITER_DIR", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The first kills may come before it writes anything, the others not.
        let until = Instant::now() + Duration::from_secs(60);
        while round > 5 && std::fs::read_dir(dir.path()).unwrap().next().is_none() {
            assert!(Instant::now() < until, "nobody ever wrote");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(15 + 7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let list = spool::list(dir.path()).unwrap();
        assert!(list.ready.len() <= 5);
        for path in &list.ready {
            assert_eq!(spool::read(path).unwrap().call.args.len(), 20_000);
            whole += 1;
        }
    }
    assert!(whole > 0, "nobody ever wrote");
}

#[test]
fn an_agent_that_comes_back_in_time_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    let path = socket.clone();
    let agent = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        let (stream, _, _) = accept(&UnixListener::bind(path).unwrap());
        answer(stream, Reply::done(Value::Null));
    });
    let (raw, request) = call("DEL", "");
    assert_eq!(forward(&at(&socket), &raw, &request, PATIENT), Ok(Value::Null));
    agent.join().unwrap();
}

#[test]
fn an_agent_that_hangs_hangs_up_or_babbles_is_no_answer() {
    let e = talk_within(QUICK, "DEL", "", |s, _, _| {
        std::thread::sleep(Duration::from_secs(2));
        drop(s);
    });
    let e = e.unwrap_err();
    assert_eq!(e.code, 11);
    assert!(e.msg.contains("no answer within 0.3 s"), "{e}");
    let e = talk("DEL", "", |s, _, _| drop(s)).unwrap_err();
    assert!(e.code == 11 && e.msg.contains("it closed the connection"), "{e}");
    // In the middle of a frame.
    let e = talk("DEL", "", |mut s, _, _| s.write_all(&[0, 0, 0, 9, b'{']).unwrap()).unwrap_err();
    assert!(e.code == 11 && e.msg.contains("it closed the connection"), "{e}");
    let e = talk("DEL", "", |mut s, _, _| s.write_all(&[0, 0, 0, 2, b'{', b'}']).unwrap()).unwrap_err();
    assert!(e.code == 11 && e.msg.contains("failed to read a message"), "{e}");
    let e = talk("DEL", "", |mut s, _, _| s.write_all(&[255; 4]).unwrap()).unwrap_err();
    assert!(e.code == 11 && e.msg.contains("over the limit"), "{e}");
}

#[test]
fn a_plugin_that_is_not_there_is_told_to_the_agent() {
    let result = talk("DEL", "", |mut stream, call, _| {
        let exec = wire::Exec {
            plugin: "no-such-plugin".into(),
            command: cni::Verb::Del,
            container_id: call.container_id,
            netns: None,
            ifname: call.ifname,
            args: call.args,
            path: call.path,
            stdin: call.stdin,
        };
        stream.write_all(&wire::encode(&ToClient::Exec(exec)).unwrap()).unwrap();
        let mut head = [0; 4];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; wire::body_len(head).unwrap()];
        stream.read_exact(&mut body).unwrap();
        let ToAgent::ExecDone(done) = wire::decode(&body).unwrap() else { panic!("not an end") };
        assert!(done.missing && !done.ok);
        let e = done.result("no-such-plugin", cni::Verb::Del).unwrap_err();
        answer(stream, Reply::failed(&e));
    });
    assert_eq!(
        result.unwrap_err().to_string(),
        "failed to find plugin \"no-such-plugin\" in CNI_PATH; looked in \"/opt/cni/bin\""
    );
    assert!(!Path::new("/opt/cni/bin/no-such-plugin").exists());
}
