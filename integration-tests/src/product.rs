//! The product's processes on the lab's machines, started as an installation would: the API and the controller on the
//! control machine, an agent and the CNI programs on every node; beside them the stand-ins. It does not know what they do.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::daemon::Daemon;
use crate::kube::{ADMIN, AGENT, CONTROLLER, Kube};
use crate::lab::Lab;
use crate::node::{CNI_BIN, Node, REFERENCE_PLUGINS};
use crate::proxy::Proxy;
use crate::space::{Inside, Space};

/// CNI programs by the name that a configuration gives them, and the binary behind.
const PLUGINS: [(&str, &str); 6] = [
    ("cni-ovs", "cni-ovs"),
    ("cni-macvlan", "cni-macvlan"),
    ("mooring", "cni-meta"),
    ("coordinator", "cni-meta"),
    ("spiderpool", "cni-meta"),
    ("ifacer", "cni-meta"),
];

/// Everything that runs beside the bare lab.
#[derive(Debug)]
pub struct Product {
    /// The API's socket.
    pub socket: PathBuf,
    bin: PathBuf,
    /// Where the CNI executables are.
    cni: PathBuf,
    /// Where the product's own processes ask, if not at `socket`.
    way: Option<PathBuf>,
    api: Option<Daemon>,
    /// A real API server in place of the standalone one.
    kube: Option<Kube>,
    controller: Option<Daemon>,
    /// By node.
    agents: Vec<Option<Daemon>>,
    rest: Vec<Daemon>,
}

impl Product {
    /// Installs and starts all of it. Binaries are taken from the directory of the lab's own program.
    ///
    /// # Errors
    /// A binary is not built, or a process does not come up: with the end of its log.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut product = Self::without_stand_ins(lab, None)?;
        product.stand_ins(lab)?;
        Ok(product)
    }

    /// Only the API and the stand-ins: pods have the cluster's own network, and nothing of ours but the API runs.
    ///
    /// # Errors
    /// As [`Product::start`].
    pub fn without(lab: &Lab) -> Result<Self> {
        let mut product = Self::api_only(lab)?;
        product.stand_ins(lab)?;
        Ok(product)
    }

    /// As [`Product::start`], where the product's own processes reach the API by another socket: a [`Proxy`]'s, which is in
    /// front of it. The stand-ins do not: what they do is not what is on trial.
    ///
    /// # Errors
    /// As [`Product::start`].
    pub fn start_behind(lab: &Lab) -> Result<(Self, Proxy)> {
        let mut product = Self::api_only(lab)?;
        let proxy = Proxy::start(&lab.dir().join("way.sock"), &product.socket)?;
        product.way = Some(proxy.socket().to_owned());
        let mut product = product.with_ours(lab)?;
        product.stand_ins(lab)?;
        Ok((product, proxy))
    }

    /// The product alone, for who executes plugins itself. `cni`: where the CNI executables are, if not beside the others.
    ///
    /// # Errors
    /// As [`Product::start`].
    pub fn without_stand_ins(lab: &Lab, cni: Option<PathBuf>) -> Result<Self> {
        let mut product = Self::api_only(lab)?;
        product.cni = cni.map_or_else(|| Ok(product.bin.clone()), std::fs::canonicalize)?;
        product.with_ours(lab)
    }

    /// As [`Product::start`], with a real API server on the control machine, which all machines reach at `address`, and each
    /// process under an account of its own.
    ///
    /// # Errors
    /// As [`Product::start`].
    pub fn start_on_kube(lab: &Lab, address: IpAddr, deploy: &Path) -> Result<Self> {
        let mut product = Self::nothing(lab)?;
        let mut kube = Kube::start(lab.run(), &lab.control, address)?;
        kube.install(lab.run(), &lab.control, deploy)?;
        product.kube = Some(kube);
        let mut product = product.with_ours(lab)?;
        product.stand_ins(lab)?;
        Ok(product)
    }

    fn with_ours(mut self, lab: &Lab) -> Result<Self> {
        self.start_controller(lab)?;
        for node in &lab.nodes {
            self.install(node)?;
            self.start_agent(lab, node)?;
        }
        Ok(self)
    }

    /// Stops all of it in good order.
    ///
    /// # Errors
    /// Something had to be killed.
    pub fn stop(self) -> Result<()> {
        let Self { api, controller, agents, rest, .. } = self;
        rest.into_iter().chain(agents.into_iter().flatten()).chain(controller).chain(api).try_for_each(Daemon::stop)
    }

    fn api_only(lab: &Lab) -> Result<Self> {
        let mut product = Self::nothing(lab)?;
        product.start_api(lab)?;
        Ok(product)
    }

    fn nothing(lab: &Lab) -> Result<Self> {
        let bin = lab.exe().parent().context("the lab's program has no directory")?.to_owned();
        let socket = lab.dir().join("api.sock");
        let mut product = Self {
            socket,
            cni: bin.clone(),
            bin,
            way: None,
            api: None,
            kube: None,
            controller: None,
            agents: Vec::new(),
            rest: Vec::new(),
        };
        product.agents.resize_with(lab.nodes.len(), || None);
        Ok(product)
    }

    /// The real API server, where there is one.
    pub fn kube(&self) -> Option<&Kube> {
        self.kube.as_ref()
    }

    /// Tells a program which API it has, and under which account.
    fn point(&self, command: &mut Command, account: &str) {
        match &self.kube {
            Some(kube) => command.env("KUBECONFIG", kube.kubeconfig(account)),
            None => {
                let way = self.way.as_ref().filter(|_| account != ADMIN);
                command.arg("--api-socket").arg(way.unwrap_or(&self.socket))
            }
        };
    }

    fn stand_ins(&mut self, lab: &Lab) -> Result<()> {
        self.stand_in(lab, &lab.control, "deployments", &[])?;
        for node in &lab.nodes {
            self.stand_in(lab, &node.space, "kubelet", &["--node", node.name(), "--address", &node.address()])?;
        }
        Ok(())
    }

    fn binary(&self, name: &str) -> Result<PathBuf> {
        built(&self.bin, name)
    }

    fn start_api(&mut self, lab: &Lab) -> Result<()> {
        let mut command = Command::new(self.binary("mooring-standalone")?);
        command.arg("--socket").arg(&self.socket).arg("--snapshot").arg(lab.dir().join("api.json"));
        let mut daemon = Daemon::start(lab.run(), &lab.control, "api", &mut command)?;
        daemon.wait_for(&self.socket)?;
        self.api = Some(daemon);
        Ok(())
    }

    /// Kills the controller and starts it again.
    ///
    /// # Errors
    /// It does not run.
    pub fn crash_controller(&mut self, lab: &Lab) -> Result<()> {
        self.controller.take().context("no controller runs")?.kill()?;
        self.start_controller(lab)
    }

    fn start_controller(&mut self, lab: &Lab) -> Result<()> {
        let mut command = Command::new(self.binary("mooring-controller")?);
        self.point(&mut command, CONTROLLER);
        self.controller = Some(Daemon::start(lab.run(), &lab.control, "controller", &mut command)?);
        Ok(())
    }

    /// What an installer puts on a node: the programs, where they find the agent, and the node's CNI configuration, which
    /// wraps the cluster's own network.
    fn install(&self, node: &Node) -> Result<()> {
        for (name, binary) in PLUGINS {
            let from = built(&self.cni, binary)?.display().to_string();
            node.space.run("ln", &["-sf", &from, &format!("{CNI_BIN}/{name}")])?;
        }
        node.space.write("/etc/cni/net.d/mooring.d/agent.json", "{\"socket\": \"/run/mooring/cni.sock\"}\n")?;
        let conflist = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "mooring",
            "plugins": [{"type": "mooring", "clusterNetwork": "cluster"}],
        });
        node.space.write("/etc/cni/net.d/00-mooring.conflist", &format!("{conflist:#}\n"))
    }

    /// Starts the agent of a node, and waits until it takes CNI calls.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_agent(&mut self, lab: &Lab, node: &Node) -> Result<()> {
        self.start_agent_as(lab, node, "mooring-agent", &[])
    }

    /// As [`Product::start_agent`], another build of it, with more in its environment.
    ///
    /// # Errors
    /// It is not built, or does not come up.
    pub fn start_agent_as(&mut self, lab: &Lab, node: &Node, program: &str, env: &[(&str, &str)]) -> Result<()> {
        let mut command = Command::new(self.binary(program)?);
        command.args(["--node", node.name()]).envs(env.iter().copied());
        // One that was killed left its socket, and nobody is behind it.
        let socket = node.path("/run/mooring/cni.sock");
        let _ = std::fs::remove_file(&socket);
        self.point(&mut command, AGENT);
        let mut daemon = Daemon::start(lab.run(), &node.space, "agent", &mut command)?;
        daemon.wait_for(&socket)?;
        self.agents[usize::from(node.number) - 1] = Some(daemon);
        Ok(())
    }

    /// A node's agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn agent(&mut self, node: &Node) -> Result<&mut Daemon> {
        self.agents[usize::from(node.number) - 1].as_mut().with_context(|| format!("no agent runs on {}", node.name()))
    }

    /// Takes a node's agent out, to stop or kill it.
    ///
    /// # Errors
    /// It does not run.
    pub fn take_agent(&mut self, node: &Node) -> Result<Daemon> {
        self.agents[usize::from(node.number) - 1].take().with_context(|| format!("no agent runs on {}", node.name()))
    }

    fn stand_in(&mut self, lab: &Lab, space: &Space, mode: &str, args: &[&str]) -> Result<()> {
        let mut command = Command::new(lab.exe());
        command.arg(mode).args(args);
        self.point(&mut command, ADMIN);
        if mode == "kubelet" {
            command.arg("--cni-path").arg(format!("{CNI_BIN}:{REFERENCE_PLUGINS}"));
        }
        self.rest.push(Daemon::start(lab.run(), space, mode, &mut command)?);
        Ok(())
    }

    /// An echo server on a machine that is no pod: who asks for TCP needs somebody who answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn serve_echo(&mut self, lab: &Lab, space: &Space) -> Result<()> {
        let mut command = Command::new(lab.exe());
        command.arg("echo");
        self.rest.push(Daemon::start(lab.run(), space, "echo", &mut command)?);
        Ok(())
    }

    /// All that was started still runs.
    ///
    /// # Errors
    /// The first that ended, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        self.kube.as_mut().map_or(Ok(()), Kube::check)?;
        let agents = self.agents.iter_mut().flatten();
        let mut all = self.api.iter_mut().chain(&mut self.controller).chain(agents).chain(&mut self.rest);
        all.try_for_each(Daemon::check)
    }
}

/// A program of the product, beside the lab's own.
///
/// # Errors
/// It is not built.
pub fn program(lab: &Lab, name: &str) -> Result<PathBuf> {
    built(lab.exe().parent().context("the lab's program has no directory")?, name)
}

fn built(bin: &Path, name: &str) -> Result<PathBuf> {
    let file = bin.join(name);
    if !file.is_file() {
        bail!("{} is not built: cargo build --workspace --bins", file.display());
    }
    Ok(file)
}

/// Where something is sent from.
#[derive(Debug, Clone, Copy)]
pub struct From<'a> {
    /// The machine.
    pub space: &'a Space,
    /// The pod's network namespace on it, as a path; the machine's own when absent.
    pub netns: Option<&'a str>,
}

impl From<'_> {
    /// Runs a program there.
    ///
    /// # Errors
    /// It fails: with what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let Some(netns) = self.netns else { return self.space.run(program, args) };
        let enter = format!("--net={netns}");
        self.space.run("nsenter", &[&[enter.as_str(), program], args].concat())
    }

    /// Two echo requests; the quicker round trip, in ms, as `ping` prints it.
    ///
    /// # Errors
    /// One of them is not answered within 2 s.
    pub fn ping(&self, to: IpAddr) -> Result<String> {
        let text = self.run("ping", &["-n", "-c2", "-i0.1", "-W2", &to.to_string()])?;
        let lost = text.lines().find(|l| l.contains("packet loss")).unwrap_or_default();
        if !lost.contains(" 0% packet loss") {
            bail!("{lost}");
        }
        let times = text.lines().last().unwrap_or_default();
        Ok(times.split("= ").nth(1).and_then(|t| t.split('/').next()).unwrap_or("?").to_owned())
    }

    /// 64 KiB over TCP there and back.
    ///
    /// # Errors
    /// They do not come back as sent.
    pub fn tcp(&self, exe: &Path, to: IpAddr) -> Result<()> {
        self.run(&exe.display().to_string(), &["tcp", &to.to_string()]).map(|_| ())
    }
}

/// What tcpdump has printed so far.
#[derive(Debug, Clone, Default)]
pub struct Captured(Arc<Mutex<String>>);

impl Captured {
    /// Its lines.
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it was said so often, and at most as long as a busy machine may need: who asks for the text then sees what is
    /// missing.
    pub fn until(&self, so: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !so(&self.text()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts a capture on a machine's NIC with tcpdump's arguments `more` and returns what `work` makes pass there, as tcpdump's
/// lines. What must be among them, `work` waits for: a packet is printed some time after it passed.
///
/// # Errors
/// tcpdump does not start, or `work` fails.
pub fn captured(at: From<'_>, nic: &str, more: &[&str], work: impl FnOnce(&Captured) -> Result<()>) -> Result<String> {
    let mut command = Command::new("nsenter");
    if let Some(netns) = at.netns {
        command.arg(format!("--net={netns}"));
    }
    command.args(["tcpdump", "-n", "-l", "-p", "--immediate-mode", "-i", nic]).args(more);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = at.space.spawn(Inside::All, &mut command)?;
    let (stdout, stderr) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    // "listening on" is its word that packets are taken from now on.
    let mut said = BufReader::new(stderr).lines();
    let ready = said.any(|l| l.is_ok_and(|l| l.starts_with("listening on")));
    let seen = Captured::default();
    let printed = seen.clone();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            let mut text = printed.0.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&line);
            text.push('\n');
        }
    });
    let result = if ready { work(&seen) } else { Err(anyhow::anyhow!("tcpdump does not listen on {nic}")) };
    // For what nobody waits for.
    std::thread::sleep(Duration::from_millis(200));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGINT)?;
    child.wait()?;
    reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    result?;
    Ok(seen.text())
}

/// Asks every 50 ms until there is an answer.
///
/// # Errors
/// None within `limit`: with what was last missing.
pub fn wait_until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(e) if Instant::now() > deadline => return Err(e.context(format!("{what}: not within {} s", limit.as_secs()))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
