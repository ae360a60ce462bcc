//! `make bench`: what Mooring takes, as ratios to the reference plugins in the same run. It builds the lab, starts the
//! product on one node, has the rows measured there, and prints one table. It does not measure by itself.

pub mod api;
pub mod exec;
pub mod figures;
pub mod floor;
pub mod ipam;
pub mod rows;
pub mod world;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Lab, Options};
use crate::node::REFERENCE_PLUGINS;
use crate::product::Product;
use crate::space::Inside;
use figures::{Row, table};

/// The node's rows take two minutes on two idle cores; what takes four times that has hung.
const LIMIT: Duration = Duration::from_secs(480);

/// Measures, and prints the table. `go`: the directory of the reference plugins; `cni`: of our CNI executables; `only`: parts
/// of the names of the groups of rows that are measured, none for all; `kube`: also on a real
/// API server.
///
/// # Errors
/// Something does not come up, a call fails where it must not, or the time is over. The rows until then are printed.
pub fn run(exe: PathBuf, go: Option<PathBuf>, cni: Option<PathBuf>, only: &[String], kube: bool) -> Result<()> {
    let began = Instant::now();
    let go = go.map_or_else(newest_plugins, Ok)?;
    let lab = Lab::start(&Options { exe: exe.clone(), nodes: 1 })?;
    let mut product = Product::without_stand_ins(&lab, cni)?;
    let mut rows = Vec::new();
    let on_node = on_node(&lab, &product, &go, only, &mut rows);
    let done = product.check().and_then(|()| {
        product.stop()?;
        if is_asked(only, "ipam") {
            rows.extend(ipam::choice()?);
            rows.extend(ipam::agents(&lab)?);
        }
        on_node
    });
    let done = done.and_then(|()| {
        if kube && is_asked(only, "kube") {
            rows.extend(api::rows(&exe, Path::new("deploy"))?);
        }
        Ok(())
    });
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    println!("Times in ms: median (90th percentile), exec to exit. Reference plugins: {}. {cores} cores.\n", version(&go)?);
    print!("{}", table(&rows));
    if !kube {
        println!("\nLeft out: the rows on kube-apiserver and etcd. They come with: make bench ARGS=--kube");
    }
    println!("\n{:.0} s", began.elapsed().as_secs_f32());
    if done.is_err() {
        eprintln!("{}", lab.run().tails(8));
    }
    done
}

/// The rows that need a node are measured by this program in the node's namespaces.
fn on_node(lab: &Lab, product: &Product, go: &Path, only: &[String], rows: &mut Vec<Row>) -> Result<()> {
    let mut command = Command::new(lab.exe());
    command.arg("bench-node").arg("--api-socket").arg(&product.socket).arg("--go-plugins").arg(go);
    command.args(only.iter().flat_map(|o| ["--only", o]));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = lab.node(1).space.spawn(Inside::All, &mut command)?;
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let (over, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = ended.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        late
    });
    for line in lines {
        rows.push(Row::from_line(&line?)?);
    }
    drop(over);
    let late = watchdog.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let status = child.wait()?;
    if late {
        bail!("the rows on the node were not done within {} s", LIMIT.as_secs());
    }
    ensure!(status.success(), "the rows on the node ended with {status}");
    Ok(())
}

fn is_asked(only: &[String], group: &str) -> bool {
    only.is_empty() || only.iter().any(|o| group.contains(o.as_str()))
}

/// Those that `scripts/kube-tools.sh` built, else the distribution's.
fn newest_plugins() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .map(|c| c.join("mooring/tools"));
    let entries = cache.and_then(|c| std::fs::read_dir(c).ok()).into_iter().flatten().flatten().map(|e| e.path());
    let mut built: Vec<PathBuf> = entries.filter(|d| d.join("macvlan").is_file() && d.join("host-local").is_file()).collect();
    built.sort_by_key(|d| std::fs::metadata(d).and_then(|m| m.modified()).ok());
    let found = built.pop().unwrap_or_else(|| REFERENCE_PLUGINS.into());
    ensure!(found.join("macvlan").is_file(), "no reference plugins in {}: see scripts/deps.sh", found.display());
    Ok(found)
}

/// As the toolchain wrote it into the program, else as the distribution says it.
fn version(go: &Path) -> Result<String> {
    let module = b"github.com/containernetworking/plugins\tv";
    let bytes = std::fs::read(go.join("macvlan"))?;
    let at = bytes.windows(module.len()).position(|w| w == module);
    let version = match at {
        Some(at) => {
            let rest = bytes[at + module.len()..].iter().map(|b| char::from(*b));
            rest.take_while(|c| c.is_ascii_alphanumeric() || ".-+".contains(*c)).collect()
        }
        None => {
            let args = ["-W", "-f=Debian ${Version}", "containernetworking-plugins"];
            String::from_utf8_lossy(&Command::new("dpkg-query").args(args).output()?.stdout).into_owned()
        }
    };
    Ok(format!("{version}, {}", go.display()))
}
