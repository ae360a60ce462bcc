//! The lab as a program: the holder of a machine, the sweeper, the stand-ins, the demo.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use integration_tests::cni_runtime::Runtime;
use integration_tests::lab::{Lab, Options};
use integration_tests::{apply, bench, cni_runtime, demo, deployments, echo, guest, kubelet, run, space};

#[derive(Parser)]
#[command(about = "The lab: simulated nodes with real Open vSwitch and real CNI plugins")]
struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Hold a machine's namespaces until standard input closes (used by the lab itself)
    #[command(hide = true)]
    Hold { name: String },
    /// Show the product on two nodes: a bridge by a label, pods with fixed addresses, ping and TCP in every direction
    Demo {
        /// Leave it running, and say what to try
        #[arg(long)]
        keep: bool,
        /// The folder of the examples that are applied
        #[arg(long, default_value = "examples")]
        examples: PathBuf,
    },
    /// Measure the product against the reference plugins, and print a table
    Bench {
        /// Directory of the reference plugins [default: what scripts/kube-tools.sh built, else Debian's]
        #[arg(long)]
        go_plugins: Option<PathBuf>,
        /// Directory of our CNI executables as they are installed [default: beside this program]
        #[arg(long)]
        cni: Option<PathBuf>,
        /// Only the rows whose group has this in its name (VERSION, macvlan, ovs, second NIC, CPU, memory, floor, ipam, kube)
        #[arg(long)]
        only: Vec<String>,
        /// Measure on a real API server too; MOORING_TOOLS says where its programs are
        #[arg(long)]
        kube: bool,
    },
    /// Measure on the node this runs on (used by `bench`)
    #[command(hide = true)]
    BenchNode {
        #[arg(long)]
        api_socket: PathBuf,
        #[arg(long)]
        go_plugins: PathBuf,
        #[arg(long)]
        only: Vec<String>,
    },
    /// Build the bare network with Open vSwitch on every node, without anything of the product, and leave it running
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Keep it only until standard input closes
        #[arg(long)]
        wait: bool,
    },
    /// Stand in for the kubelet of the machine this runs on
    Kubelet {
        /// The node's name
        #[arg(long)]
        node: String,
        /// The node's address
        #[arg(long)]
        address: String,
        /// The standalone API's socket; without it, KUBECONFIG says which API
        #[arg(long)]
        api_socket: Option<PathBuf>,
        /// Directories of CNI plugins, separated by colons
        #[arg(long, default_value = "/opt/cni/bin:/usr/lib/cni")]
        cni_path: String,
    },
    /// Stand in for the Deployment controller and the scheduler
    Deployments {
        /// The standalone API's socket; without it, KUBECONFIG says which API
        #[arg(long)]
        api_socket: Option<PathBuf>,
    },
    /// Serve TCP that sends back what it got (every pod of the lab does)
    Echo {
        /// The port
        #[arg(long, default_value_t = echo::PORT)]
        port: u16,
    },
    /// Send 64 KiB over TCP to an echo server and compare what comes back
    Tcp {
        /// The server's address
        to: IpAddr,
        /// Its port
        #[arg(default_value_t = echo::PORT)]
        port: u16,
    },
    /// Create the objects of YAML files, or replace those that exist
    Apply {
        /// The standalone API's socket; without it, KUBECONFIG says which API
        #[arg(long)]
        api_socket: Option<PathBuf>,
        /// Files
        #[arg(short = 'f', required = true)]
        files: Vec<PathBuf>,
    },
    /// Tell a CNI plugin, as the kubelet of this machine, which attachments are valid (its GC verb)
    #[command(hide = true)]
    Gc {
        plugin: PathBuf,
        /// The network's configuration, with `cni.dev/valid-attachments`
        conf: String,
    },
    /// Run a program on Debian 12's Linux 6.1, a process of this machine, and end as it did (cargo's `runner` for tests)
    #[command(hide = true)]
    OnOlderKernel {
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Remove what killed and kept runs left behind
    Clean,
    /// List what runs left behind; fails if there is anything
    Leftovers,
}

fn main() -> ExitCode {
    match act(Args::parse().command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("mooring-lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Cmd) -> Result<ExitCode> {
    match command {
        Cmd::Hold { name } => space::hold(&name)?,
        Cmd::Demo { keep, examples } => demo::run(std::env::current_exe()?, examples, keep)?,
        Cmd::Bench { go_plugins, cni, only, kube } => bench::run(std::env::current_exe()?, go_plugins, cni, &only, kube)?,
        Cmd::BenchNode { api_socket, go_plugins, only } => bench::rows::run(&api_socket, &go_plugins, &only)?,
        Cmd::OnOlderKernel { program, args } => {
            let exe = std::env::current_exe()?;
            let program = std::fs::canonicalize(program)?;
            let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no repository")?;
            let bins = exe.parent().context("no directory")?;
            let limit = std::time::Duration::from_secs(3600);
            let ended = guest::run(&exe, &[bins, repository], &guest::script_of(&program, &args)?, limit)?;
            print!("{}", ended.said);
            return Ok(ExitCode::from(u8::try_from(ended.status).unwrap_or(u8::MAX)));
        }
        Cmd::Up { nodes, wait } => {
            let lab = Lab::start(&Options { exe: std::env::current_exe()?, nodes })?;
            for space in lab.spaces() {
                println!("{}\tnsenter -t {} -a", space.name(), space.pid());
            }
            if wait {
                std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            } else {
                lab.keep()?;
            }
        }
        Cmd::Kubelet { node, address, api_socket, cni_path } => {
            let runtime = Runtime { path: cni_path, cache: "/var/lib/cni".into() };
            let cni_conf_dir = "/etc/cni/net.d".into();
            let config = kubelet::Config { node, address, cni_conf_dir, runtime, exe: std::env::current_exe()? };
            talking(async move |client| kubelet::run(client, config).await, api_socket.as_deref())?;
        }
        Cmd::Deployments { api_socket } => talking(deployments::run, api_socket.as_deref())?,
        Cmd::Echo { port } => echo::serve(port)?,
        Cmd::Tcp { to, port } => echo::call(to, port)?,
        Cmd::Apply { api_socket, files } => {
            for file in files {
                let yaml = std::fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
                for line in talking(async move |client| apply::apply(&client, &yaml).await, api_socket.as_deref())? {
                    println!("{line}");
                }
            }
        }
        Cmd::Gc { plugin, conf } => cni_runtime::gc(&plugin, &conf)?,
        Cmd::Clean => {
            for run in run::clean()? {
                println!("removed {run}");
            }
        }
        Cmd::Leftovers => {
            let left = run::leftovers()?;
            for run in &left {
                println!("left behind: {run}");
            }
            if !left.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `work` with a client of the API, which trusts this name with nothing that only the product may do.
fn talking<T>(work: impl AsyncFnOnce(kube::Client) -> Result<T>, api_socket: Option<&Path>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = match api_socket {
            Some(socket) => standalone::client::unix(socket, "lab"),
            None => kube::Client::try_default().await.context("no --api-socket, and KUBECONFIG names no API")?,
        };
        work(client).await
    })
}
