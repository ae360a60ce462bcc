//! Real daemons of Open vSwitch for one test: each in a fresh network namespace of its own, with all files in a
//! temporary directory, ended when the test is (also by a panic, or by a signal that ends the test's thread).

#![allow(dead_code, reason = "each test target uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ovsdb::{Client, Config, Endpoint, MonitorRequest, Replica};
use tempfile::TempDir;

/// For what takes milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);

pub struct Daemon(Child);

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Lab {
    pub server: Option<Daemon>,
    pub vswitchd: Option<Daemon>,
    dir: TempDir,
}

impl Lab {
    /// ovsdb-server with the installed schema and a root row.
    pub fn start() -> Self {
        Lab::with_schema(&installed_schema())
    }

    pub fn with_schema(schema: &Path) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the lab needs root: it makes network namespaces");
        let dir = tempfile::Builder::new().prefix("mt-ovsdb-").tempdir().unwrap();
        run(Command::new("ovsdb-tool").arg("create").arg(dir.path().join("conf.db")).arg(schema));
        let mut lab = Lab { server: None, vswitchd: None, dir };
        lab.start_server();
        lab.vsctl(&["--no-wait", "init"]);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start_server(&mut self) {
        let mut command = confined("ovsdb-server");
        command.arg(self.path("conf.db")).arg(format!("--remote=punix:{}", self.path("db.sock").display()));
        command.arg(format!("--unixctl={}", self.path("server.ctl").display()));
        self.server = Some(self.spawn(command));
        let path = self.path("db.sock");
        until("ovsdb-server listens", || std::os::unix::net::UnixStream::connect(&path).is_ok());
    }

    pub fn kill_server(&mut self) {
        self.server.as_ref().unwrap().signal(Signal::SIGKILL);
        self.server = None;
    }

    /// As a service manager stops it.
    pub fn end_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.signal(Signal::SIGTERM);
        server.0.wait().unwrap();
    }

    pub fn start_vswitchd(&mut self) {
        let mut command = confined("ovs-vswitchd");
        command.arg(self.remote()).arg(format!("--unixctl={}", self.path("vswitchd.ctl").display()));
        self.vswitchd = Some(self.spawn(command));
    }

    fn spawn(&self, mut command: Command) -> Daemon {
        command.args(["-vsyslog:off", "-vconsole:off"]).env("OVS_RUNDIR", self.dir.path()).stdin(Stdio::null());
        Daemon(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; is openvswitch-switch installed?")))
    }

    pub fn remote(&self) -> String {
        format!("unix:{}", self.path("db.sock").display())
    }

    /// The judge of what is in the database.
    pub fn vsctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("ovs-vsctl");
        // A list of ten thousand rows takes seconds on a busy machine.
        command.arg(format!("--db={}", self.remote())).arg("--timeout=60").args(arguments);
        String::from_utf8(run(&mut command).stdout).unwrap().trim().to_owned()
    }

    pub fn client(&self) -> Client {
        self.client_with(Config::default())
    }

    pub fn client_with(&self, config: Config) -> Client {
        Client::connect(self.remote().parse::<Endpoint>().unwrap(), config)
    }

    /// A connected client and its synchronised replica.
    pub async fn replica(&self) -> (Client, Replica) {
        let client = self.client();
        let replica = client.monitor(MonitorRequest::vswitch()).await.unwrap();
        client.connected(SOON).await.unwrap();
        replica.synced(SOON).await.unwrap();
        (client, replica)
    }
}

/// Debian's place; `OVS_PKGDATADIR` is what OVS's own scripts call it.
pub fn installed_schema() -> PathBuf {
    let dir = std::env::var_os("OVS_PKGDATADIR").map_or_else(|| "/usr/share/openvswitch".into(), PathBuf::from);
    let path = dir.join("vswitch.ovsschema");
    assert!(path.exists(), "{} is missing: is openvswitch-switch installed?", path.display());
    path
}

/// In its own network namespace, and gone with the thread that started it.
pub fn confined(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "setpriv", "--pdeathsig", "KILL", program]);
    command
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; is it installed?"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {text}", output.status);
    output
}

pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < SOON, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
