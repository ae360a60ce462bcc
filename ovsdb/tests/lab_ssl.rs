//! `ssl:` endpoints against a real ovsdb-server, with certificates made by OVS's own ovs-pki.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails, as it should")]

#[path = "lab/daemons.rs"]
mod daemons;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use daemons::{Lab, SOON, run};
use ovsdb::{Client, Config, Endpoint, Operation, SslFiles, State};

/// Two authorities, as ovs-pki makes them: `switchca` and `controllerca`.
struct Pki(PathBuf);

impl Pki {
    fn new(dir: &Path) -> Self {
        let pki = Pki(dir.join("pki"));
        pki.run(dir, &["init"]);
        pki
    }

    fn run(&self, at: &Path, arguments: &[&str]) {
        let mut command = Command::new("ovs-pki");
        command.arg(format!("--dir={}", self.0.display())).arg(format!("--log={}", self.0.with_extension("log").display()));
        run(command.arg("--force").args(arguments).current_dir(at));
    }

    fn authority(&self, name: &str) -> PathBuf {
        self.0.join(name).join("cacert.pem")
    }

    /// A key and a certificate of `switchca` or `controllerca`; trusts `ca_cert`.
    fn identity(&self, at: &Path, name: &str, authority: &str, ca_cert: &str) -> SslFiles {
        self.run(at, &["req+sign", name, authority]);
        SslFiles {
            private_key: at.join(format!("{name}-privkey.pem")),
            certificate: at.join(format!("{name}-cert.pem")),
            ca_cert: self.authority(ca_cert),
        }
    }
}

fn connect(files: &SslFiles, port: u16) -> Client {
    let endpoint = Endpoint::with_ssl(&format!("ssl:127.0.0.1:{port}"), Some(files.clone())).unwrap();
    Client::connect(endpoint, Config { backoff_max: Duration::from_millis(200), ..Config::default() })
}

/// Why it does not get through. It must not either, but for a handshake of TLS 1.3: there the client learns afterwards.
async fn refusal(files: &SslFiles, port: u16) -> String {
    let client = connect(files, port);
    let mut state = client.subscribe();
    let refused = state.wait_for(|state| match state {
        State::Disconnected { reason } => &**reason != "not tried yet",
        State::Connected { .. } => panic!("connected with {files:?}"),
    });
    match &*tokio::time::timeout(SOON, refused).await.unwrap().unwrap() {
        State::Disconnected { reason } => reason.to_string(),
        State::Connected { .. } => unreachable!("looked for the other"),
    }
}

async fn story(lab: &Lab, pki: &Pki, server: &mut std::process::Child, start: &dyn Fn(&SslFiles) -> std::process::Child) {
    let at = lab.path("");
    let serving = pki.identity(&at, "server", "controller", "switchca");
    *server = start(&serving);
    let ours = pki.identity(&at, "ours", "switch", "controllerca");
    let client = connect(&ours, 6640);
    client.connected(SOON).await.unwrap();
    let many = (0..2000).map(|n| Operation::comment(format!("{n} of a transaction that fills many TLS records"))).collect();
    client.transact(many).await.unwrap();
    // The peer's certificate is asked for both ways.
    let stranger = SslFiles { ca_cert: pki.authority("switchca"), ..ours.clone() };
    let text = refusal(&stranger, 6640).await;
    assert!(text.contains("invalid peer certificate: UnknownIssuer"), "{text}");
    let uninvited = pki.identity(&at, "uninvited", "controller", "controllerca");
    let text = refusal(&uninvited, 6640).await;
    assert!(text.contains("received fatal alert"), "{text}");
    // A key that does not belong to the certificate, and files that are not there.
    let mixed = SslFiles { private_key: uninvited.private_key.clone(), ..ours.clone() };
    let text = refusal(&mixed, 6640).await;
    assert!(text.contains(&format!("{}: ", ours.certificate.display())), "{text}");
    let absent = SslFiles { private_key: at.join("absent.pem"), ..ours.clone() };
    let text = refusal(&absent, 6640).await;
    assert!(text.ends_with("absent.pem: No such file or directory (os error 2)"), "{text}");
    // A server that speaks no TLS, and TLS on the port of one that does, without.
    let text = refusal(&ours, 6641).await;
    assert!(text.contains("failed to connect to ssl:127.0.0.1:6641"), "{text}");
    let plain = Client::connect("tcp:127.0.0.1:6640".parse::<Endpoint>().unwrap(), Config::default());
    assert!(plain.connected(Duration::from_secs(1)).await.is_err());

    // The certificate has run out: made for a past that lasted a day.
    let expired = at.join("expired-cert.pem");
    let (ca, key) = (pki.authority("controllerca"), pki.0.join("controllerca/private/cakey.pem"));
    let request = at.join("server-req.pem");
    let mut sign = Command::new("openssl");
    sign.args(["ca", "-batch", "-notext", "-config"]).arg(pki.0.join("controllerca/ca.cnf"));
    sign.args(["-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-cert"]).arg(&ca).arg("-keyfile").arg(&key);
    sign.arg("-in").arg(&request).arg("-out").arg(&expired).current_dir(pki.0.join("controllerca"));
    run(&mut sign);
    server.kill().unwrap();
    server.wait().unwrap();
    *server = start(&SslFiles { certificate: expired, ..serving.clone() });
    let text = refusal(&ours, 6640).await;
    assert!(text.contains("invalid peer certificate: certificate expired"), "{text}");

    // Back with a good one: the client of the beginning is there again, and with a renewed certificate of its own.
    pki.run(&at, &["req+sign", "ours", "switch"]);
    server.kill().unwrap();
    server.wait().unwrap();
    *server = start(&serving);
    client.connected(SOON).await.unwrap();
    client.echo().await.unwrap();
}

#[test]
fn only_peers_with_certificates_of_the_right_authority_are_talked_to() {
    // A thread of its own, because it moves to a namespace in which it may listen.
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the lab needs root: it makes network namespaces");
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let lab = Lab::start();
        let pki = Pki::new(&lab.path(""));
        run(Command::new("ovsdb-tool").arg("create").arg(lab.path("ssl.db")).arg(daemons::installed_schema()));
        let start = |files: &SslFiles| {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "ovsdb-server"]).stdin(Stdio::null());
            command.arg(lab.path("ssl.db")).args(["--remote=pssl:6640:127.0.0.1", "--remote=ptcp:6641:127.0.0.1"]);
            command.args(["-vsyslog:off", "-vconsole:off"]);
            for (option, file) in
                [("private-key", &files.private_key), ("certificate", &files.certificate), ("ca-cert", &files.ca_cert)]
            {
                command.arg(format!("--{option}={}", file.display()));
            }
            command.arg(format!("--unixctl={}", lab.path("ssl.ctl").display()));
            let server = command.spawn().unwrap();
            daemons::until("ovsdb-server listens", || std::net::TcpStream::connect(("127.0.0.1", 6640)).is_ok());
            server
        };
        // Replaced at once by the first server.
        let mut server = Command::new("true").spawn().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(story(&lab, &pki, &mut server, &start));
        }));
        let _ = server.kill();
        let _ = server.wait();
        ended.unwrap();
    });
    thread.join().unwrap();
}
