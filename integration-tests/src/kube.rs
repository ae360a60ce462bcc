//! A real API server on a machine of the lab: Debian's etcd, and kube-apiserver with RBAC as `scripts/kube-tools.sh` built it;
//! of the controller-manager only the collector of dependents and the end of namespaces. It knows Kubernetes, and of the
//! product only the names of its accounts and the folder of its manifests.
//!
//! All processes are inside a [`Space`], so they end with it, also when the lab is killed.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::daemon::Daemon;
use crate::run::Run;
use crate::space::{Inside, Space};

/// Where `scripts/kube-tools.sh` put its programs: directories separated by colons.
const TOOLS: &str = "MOORING_TOOLS";
/// The user of everything that a test does by itself; of the group `system:masters`.
pub const ADMIN: &str = "admin";
/// The controller's ServiceAccount.
pub const CONTROLLER: &str = "mooring-controller";
/// The agents' ServiceAccount.
pub const AGENT: &str = "mooring-agent";
/// Their namespace, as the manifests have it.
pub const NAMESPACE: &str = "kube-system";
/// A busy machine may take this long until the server is ready; an idle one takes 3 s.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running API server.
#[derive(Debug)]
pub struct Kube {
    dir: PathBuf,
    url: String,
    kubectl: PathBuf,
    daemons: Vec<Daemon>,
    server: u32,
    /// From the start of its first process until it was ready.
    pub took: Duration,
}

/// A program of the kube lane.
///
/// # Errors
/// It was not built, or nobody said where.
pub fn tool(name: &str) -> Result<PathBuf> {
    let dirs = std::env::var_os(TOOLS).with_context(|| {
        format!("{TOOLS} is not set: run `make test LANE=kube`, or export it as scripts/kube-tools.sh prints it")
    })?;
    let found = std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} is in none of {}: run scripts/kube-tools.sh", dirs.display()))
}

/// What is unusual about a server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// etcd forces everything to disk, as it does where data matter.
    pub fsync: bool,
    /// What the product's accounts ask is logged: [`Kube::audit`].
    pub audit: bool,
}

impl Kube {
    /// Starts it in `space`, at an address that the machine has, and waits until it is ready.
    ///
    /// # Errors
    /// A program is missing, or does not come up: with the end of its log.
    pub fn start(run: &Run, space: &Space, address: IpAddr) -> Result<Self> {
        Self::start_with(run, space, address, Options::default())
    }

    /// As [`Kube::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start_with(run: &Run, space: &Space, address: IpAddr, options: Options) -> Result<Self> {
        let dir = run.dir().join("kube");
        std::fs::create_dir(&dir)?;
        let url = format!("https://{}", std::net::SocketAddr::new(address, 6443));
        let mut kube = Self { dir, url, kubectl: tool("kubectl")?, daemons: Vec::new(), server: 0, took: Duration::ZERO };
        let token = uuid::Uuid::new_v4().to_string();
        std::fs::write(kube.dir.join("tokens.csv"), format!("{token},{ADMIN},{ADMIN},system:masters\n"))?;
        kube.write_kubeconfig(ADMIN, &token)?;
        let key = kube.path("accounts.key");
        let made = Command::new("openssl").args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key]).output();
        ensure!(made.context("failed to start openssl")?.status.success(), "openssl makes no key");
        let began = Instant::now();
        kube.start_etcd(run, space, options.fsync)?;
        kube.start_server(run, space, address, &key, options.audit)?;
        kube.until_ready(space, began)?;
        kube.took = began.elapsed();
        Ok(kube)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn start_etcd(&mut self, run: &Run, space: &Space, fsync: bool) -> Result<()> {
        let mut etcd = Command::new("etcd");
        if !fsync {
            // Nothing here has to outlive the machine, so nothing is forced to disk.
            etcd.arg("--unsafe-no-fsync");
        }
        etcd.args(["--name=lab", "--log-level=warn", "--data-dir", &self.path("etcd")]);
        etcd.args(["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]);
        etcd.args(["--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]);
        etcd.arg("--initial-cluster=lab=http://127.0.0.1:2380");
        self.daemons.push(Daemon::start(run, space, "etcd", &mut etcd).context("is etcd-server installed?")?);
        Ok(())
    }

    fn start_server(&mut self, run: &Run, space: &Space, address: IpAddr, key: &str, audit: bool) -> Result<()> {
        let mut server = Command::new(tool("kube-apiserver")?);
        server.args(["--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443", "--endpoint-reconciler-type=none"]);
        server.arg(format!("--bind-address={address}")).arg(format!("--advertise-address={address}"));
        // It signs its own certificate there.
        server.arg("--cert-dir").arg(self.path("certificates"));
        server.arg("--token-auth-file").arg(self.path("tokens.csv")).arg("--authorization-mode=Node,RBAC");
        server.args(["--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.233.0.0/18"]);
        server.args(["--service-account-key-file", key, "--service-account-signing-key-file", key]);
        // Nobody makes the default ServiceAccounts that it would ask every pod to have.
        server.arg("--disable-admission-plugins=ServiceAccount");
        if audit {
            let users = [CONTROLLER, AGENT].map(|name| format!("system:serviceaccount:{NAMESPACE}:{name}"));
            let policy = serde_json::json!({
                "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"],
                "rules": [{"level": "Metadata", "users": users}, {"level": "None"}],
            });
            std::fs::write(self.dir.join("audit.json"), policy.to_string())?;
            server.arg("--audit-policy-file").arg(self.path("audit.json")).arg("--audit-log-path").arg(self.audit());
        }
        let daemon = Daemon::start(run, space, "kube-apiserver", &mut server)?;
        self.server = daemon.pid();
        self.daemons.push(daemon);
        Ok(())
    }

    fn start_collector(&mut self, run: &Run, space: &Space) -> Result<()> {
        let mut manager = Command::new(tool("kube-controller-manager")?);
        manager.arg("--kubeconfig").arg(self.kubeconfig(ADMIN)).args(["--leader-elect=false", "--secure-port=0"]);
        manager.arg("--controllers=garbage-collector-controller,namespace-controller");
        self.daemons.push(Daemon::start(run, space, "kube-controller-manager", &mut manager)?);
        Ok(())
    }

    fn until_ready(&mut self, space: &Space, began: Instant) -> Result<()> {
        loop {
            self.check()?;
            let asked = self.kubectl_output(space, ADMIN, &["get", "--raw", "/readyz"], None)?;
            if asked.status.success() && self.kubectl_output(space, ADMIN, &["get", "ns", NAMESPACE], None)?.status.success() {
                return Ok(());
            }
            let why = String::from_utf8_lossy(&asked.stderr).trim().to_owned();
            ensure!(began.elapsed() < PATIENCE, "kube-apiserver is not ready after {} s: {why}", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The audit log, where it was asked for.
    pub fn audit(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    /// The server's process.
    pub fn server_pid(&self) -> u32 {
        self.server
    }

    /// All of its processes still run.
    ///
    /// # Errors
    /// The first that ended, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        self.daemons.iter_mut().try_for_each(Daemon::check)
    }

    /// The file by which programs on the lab's machines are this account.
    pub fn kubeconfig(&self, account: &str) -> PathBuf {
        self.dir.join(format!("{account}.kubeconfig"))
    }

    fn write_kubeconfig(&self, account: &str, token: &str) -> Result<()> {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.url, "certificate-authority": self.path("certificates/apiserver.crt")}}],
            "users": [{"name": account, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": account}}],
        });
        Ok(std::fs::write(self.kubeconfig(account), config.to_string())?)
    }

    /// Applies what an installation applies from the folder `deploy`, makes the kubeconfigs of the product's accounts, and starts the
    /// collector of dependents.
    ///
    /// # Errors
    /// The server refuses something.
    pub fn install(&mut self, run: &Run, space: &Space, deploy: &Path) -> Result<()> {
        for folder in ["crds", "rbac", "policies"] {
            let folder = deploy.join(folder).display().to_string();
            self.kubectl(space, ADMIN, &["apply", "--server-side", "--validate=strict", "-f", &folder])?;
        }
        self.kubectl(space, ADMIN, &["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"])?;
        for account in [CONTROLLER, AGENT] {
            let token = self.kubectl(space, ADMIN, &["create", "token", account, "-n", NAMESPACE, "--duration=24h"])?;
            self.write_kubeconfig(account, token.trim())?;
        }
        self.until_discovered(space)?;
        self.start_collector(run, space)
    }

    /// The collector asks which kinds there are at its start, and then each 30 s only: one that misses ours leaves for so long what it
    /// should collect. A kind is Established a moment before discovery has it.
    fn until_discovered(&self, space: &Space) -> Result<()> {
        let began = Instant::now();
        let names = self.kubectl(space, ADMIN, &["get", "crd", "-o", "jsonpath={.items[*].metadata.name}"])?;
        loop {
            let known = self.kubectl(space, ADMIN, &["api-resources", "-o", "name", "--cached=false"])?;
            let Some(missing) = names.split_whitespace().find(|name| !known.lines().any(|known| known == *name)) else {
                return Ok(());
            };
            ensure!(began.elapsed() < PATIENCE, "discovery does not know {missing} after {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The command line of `kubectl` as an account, up to what it is to do.
    pub fn command(&self, account: &str) -> String {
        format!("{} --kubeconfig {}", self.kubectl.display(), self.kubeconfig(account).display())
    }

    /// `kubectl` as an account; its standard output.
    ///
    /// # Errors
    /// It fails: with what it printed.
    pub fn kubectl(&self, space: &Space, account: &str, args: &[&str]) -> Result<String> {
        self.kubectl_with(space, account, args, None)
    }

    /// As [`Kube::kubectl`], with a standard input (`-f -`).
    ///
    /// # Errors
    /// As there.
    pub fn kubectl_with(&self, space: &Space, account: &str, args: &[&str], stdin: Option<&str>) -> Result<String> {
        let output = self.kubectl_output(space, account, args, stdin)?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kubectl_output(&self, space: &Space, account: &str, args: &[&str], stdin: Option<&str>) -> Result<Output> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig(account)).arg("--cache-dir").arg(self.path("cache"));
        command.arg("--request-timeout=30s").args(args);
        // A file rather than a pipe: nobody has to write while the other reads.
        let input = match stdin {
            Some(text) => {
                let mut file = tempfile::tempfile()?;
                std::io::Write::write_all(&mut file, text.as_bytes())?;
                std::io::Seek::rewind(&mut file)?;
                Stdio::from(file)
            }
            None => Stdio::null(),
        };
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(space.spawn(Inside::Network, &mut command)?.wait_with_output()?)
    }

    /// A client under an account. Its connections are made where it is used, so that must be [`inside`] the machine.
    ///
    /// # Errors
    /// There is no kubeconfig of the account.
    pub async fn client(&self, account: &str) -> Result<kube::Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig(account))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }
}

/// Runs `work` on threads that are in the machine's network, and nowhere else.
///
/// # Errors
/// What `work` returns, or that the machine is gone.
pub fn inside<T: Send>(space: &Space, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    let net = File::open(space.netns()).with_context(|| format!("{} is gone", space.name()))?;
    let run = || {
        // The runtime's own threads are this one's children, and inherit its network.
        setns(&net, CloneFlags::CLONE_NEWNET).context("failed to enter the net namespace")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(work())
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A machine with nothing but the API server on it.
#[derive(Debug)]
pub struct Machine {
    /// The server.
    pub kube: Kube,
    /// Where it runs.
    pub space: Space,
    run: Run,
}

impl Machine {
    /// Starts the server on a machine of its own, and applies the folder `deploy`.
    ///
    /// # Errors
    /// Something does not come up: with the ends of all logs.
    pub fn start(exe: &Path, deploy: &Path) -> Result<Self> {
        Self::start_with(exe, deploy, Options::default())
    }

    /// As [`Machine::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start_with(exe: &Path, deploy: &Path, options: Options) -> Result<Self> {
        let run = Run::start()?;
        let space = Space::start(&run, exe, "control")?;
        let started = Kube::start_with(&run, &space, IpAddr::from([127, 0, 0, 1]), options);
        let kube = started.and_then(|mut kube| kube.install(&run, &space, deploy).map(|()| kube));
        let kube = kube.with_context(|| run.tails(12))?;
        Ok(Self { kube, space, run })
    }

    /// `kubectl` as an administrator.
    ///
    /// # Errors
    /// It fails: with what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kube.kubectl(&self.space, ADMIN, args)
    }

    /// Runs `work` with an account's client, in the machine's network.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn with<T: Send>(&self, account: &str, work: impl AsyncFnOnce(kube::Client) -> Result<T> + Send) -> Result<T> {
        inside(&self.space, async || work(self.kube.client(account).await?).await)
    }

    /// Starts a program beside the server, as an account.
    ///
    /// # Errors
    /// It is not there.
    pub fn start_beside(&self, name: &str, account: &str, command: &mut Command) -> Result<Daemon> {
        Daemon::start(&self.run, &self.space, name, command.env("KUBECONFIG", self.kube.kubeconfig(account)))
    }

    /// Its directory and logs.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The ends of all logs.
    pub fn tails(&self, lines: usize) -> String {
        self.run.tails(lines)
    }
}
