//! Executes CNI plugins as a runtime does and measures them from exec to exit, in network namespaces that are made
//! beforehand. Works in the namespaces it is started in: a node's. It does not know whose plugin it executes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::Value;
use uuid::Uuid;

/// A plugin with its configuration.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// The file to execute.
    pub file: PathBuf,
    /// What it gets as standard input.
    pub conf: String,
    /// `CNI_PATH`
    pub path: String,
}

/// A pod of the API that a sandbox is for.
#[derive(Debug, Clone)]
pub struct PodName {
    /// `K8S_POD_NAME`, in the namespace `default`.
    pub name: String,
    /// `K8S_POD_UID`
    pub uid: String,
}

/// A network namespace to attach. Dropping it removes the namespace, as far as nothing else holds it.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    netns: PathBuf,
    args: String,
}

impl Sandbox {
    /// Makes the namespace.
    ///
    /// # Errors
    /// Not root.
    pub fn new(pod: &PodName) -> Result<Self> {
        let id = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let netns = PathBuf::from(format!("/run/netns/cni-{}", Uuid::new_v4()));
        File::create(&netns)?;
        let target = netns.clone();
        // A namespace belongs to a thread, which ends here.
        let made = std::thread::spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        });
        let sandbox = Self {
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
                pod.name, pod.uid
            ),
            id,
            netns,
        };
        made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("failed to make a network namespace")?;
        Ok(sandbox)
    }

    /// Its path.
    pub fn netns(&self) -> &Path {
        &self.netns
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = umount2(&self.netns, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.netns);
    }
}

/// One execution.
#[derive(Debug, Clone)]
pub struct Ran {
    /// From before exec until the exit was seen.
    pub wall: Duration,
    /// What the plugin failed with.
    pub failed: Option<String>,
}

impl Plugin {
    /// Executes it. `eth0` is the interface.
    ///
    /// # Errors
    /// It cannot be executed. That it failed is in the result.
    pub fn call(&self, verb: &str, sandbox: &Sandbox) -> Result<Ran> {
        let mut command = Command::new(&self.file);
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &sandbox.id).env("CNI_NETNS", &sandbox.netns);
        command.env("CNI_IFNAME", "eth0").env("CNI_ARGS", &sandbox.args).env("CNI_PATH", &self.path);
        let (wall, output) = run(&mut command, &self.file, self.conf.as_bytes())?;
        let failed = match (output.0, verb) {
            (false, _) => Some(output.1),
            (true, "ADD") => {
                let result: Value = serde_json::from_str(&output.1).unwrap_or_default();
                result.pointer("/ips/0/address").is_none().then(|| format!("no address in {:?}", output.1))
            }
            (true, _) => None,
        };
        Ok(Ran { wall, failed })
    }

    /// Executes it; a failure is an error.
    ///
    /// # Errors
    /// It fails: with what it printed.
    pub fn must(&self, verb: &str, sandbox: &Sandbox) -> Result<Duration> {
        let ran = self.call(verb, sandbox)?;
        match ran.failed {
            None => Ok(ran.wall),
            Some(text) => bail!("{} {verb}: {}", self.file.display(), text.trim()),
        }
    }
}

fn run(command: &mut Command, file: &Path, stdin: &[u8]) -> Result<(Duration, (bool, String))> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("failed to execute {}", file.display()))?;
    if let Some(mut pipe) = child.stdin.take() {
        // Go's plugins do not read it for VERSION.
        let _ = pipe.write_all(stdin);
    }
    let mut text = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut text)?;
    }
    let status = child.wait()?;
    Ok((started.elapsed(), (status.success(), text)))
}

/// VERSION, which needs no network.
///
/// # Errors
/// It fails.
pub fn version(file: &Path) -> Result<Duration> {
    let (wall, (ok, text)) =
        run(Command::new(file).env_clear().env("CNI_COMMAND", "VERSION"), file, br#"{"cniVersion":"1.0.0"}"#)?;
    ensure!(ok, "{} VERSION: {text}", file.display());
    Ok(wall)
}

/// All at once, each on a thread of its own; the time until the last has ended, and what failed.
///
/// # Errors
/// One cannot be executed at all.
pub fn at_once(plugin: &Plugin, verb: &str, sandboxes: &[Sandbox]) -> Result<(Duration, Vec<String>)> {
    let barrier = Barrier::new(sandboxes.len());
    std::thread::scope(|scope| {
        let calls: Vec<_> = sandboxes
            .iter()
            .map(|sandbox| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    // Each looks at the clock for itself: with more threads than cores another one may get to it late.
                    let began = Instant::now();
                    plugin.call(verb, sandbox).map(|ran| (began, ran))
                })
            })
            .collect();
        let (mut first, mut last) = (None::<Instant>, None::<Instant>);
        let mut failed = Vec::new();
        for call in calls {
            let (began, ran) = call.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            first = Some(first.map_or(began, |f| f.min(began)));
            last = last.max(Some(began + ran.wall));
            failed.extend(ran.failed);
        }
        let wall = first.zip(last).map_or(Duration::ZERO, |(f, l)| l - f);
        Ok((wall, failed))
    })
}

/// CPU time of all children that have ended, and of theirs.
///
/// # Errors
/// Never in practice.
pub fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let of = |t: nix::sys::time::TimeVal| Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()).unsigned_abs());
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

/// A process of this pid namespace that runs on and on.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

impl Process {
    /// By its pid.
    pub fn of(pid: u32) -> Self {
        Self(pid)
    }

    /// By its name, which the kernel cuts after 15 characters.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn named(name: &str) -> Result<Self> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if comm.trim_end() == name {
                found.push(pid);
            }
        }
        ensure!(found.len() == 1, "{} processes are named {name}", found.len());
        Ok(Self(found[0]))
    }

    /// CPU time so far, of the kernel in its name too; to a hundredth of a second.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // Fields are counted from the end of the name, which may hold blanks: utime is the 14th, stime the 15th of all.
        let rest = stat.rsplit_once(')').context("malformed stat")?.1;
        let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn rss(self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().next().context("no VmRSS")?.parse()?)
    }
}
