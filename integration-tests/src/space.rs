//! A machine of the lab: one process that holds a net, mount, uts and pid namespace, and the way to start programs in
//! them. It does not know which machine it is.
//!
//! Because the holder is pid 1 of its pid namespace, its death is the death of everything in it, and the kernel frees
//! the namespaces, links and mounts. The holder itself ends when the lab does: it reads from a pipe of the lab's process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::run::Run;

/// Which namespaces of a space a program is started in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// All of them: as on that machine.
    All,
    /// Only the network, with the lab's own files and pids: for `ip link ... netns /proc/PID/ns/net`.
    Network,
}

/// One simulated machine.
#[derive(Debug)]
pub struct Space {
    name: String,
    holder: Child,
    /// The holder lives as long as this stays open.
    lifeline: Option<ChildStdin>,
    /// Programs inside that this process has to reap: a pid namespace ends only when all of its processes are.
    children: Children,
    kept: bool,
}

/// Pids of a machine's running programs, in the lab's own pid namespace.
pub(crate) type Children = Arc<Mutex<BTreeSet<i32>>>;

impl Space {
    /// Starts the holder (`exe hold NAME`, see [`hold`]) and waits until its namespaces are ready.
    ///
    /// # Errors
    /// Not root, or the kernel refuses a namespace or mount: the text says which.
    pub fn start(run: &Run, exe: &Path, name: &str) -> Result<Self> {
        let log = File::create(run.log(&format!("{name}-holder")))?;
        let mut command = Command::new(exe);
        command.args(["hold", name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let new = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
        let mut holder = on_own_thread(|| {
            unshare(new).context("failed to make namespaces (are you root?)")?;
            command.spawn().with_context(|| format!("failed to start {}", exe.display()))
        })?;
        let lifeline = holder.stdin.take();
        let stdout = holder.stdout.take().context("the holder has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let space = Self { name: name.into(), holder, lifeline, children: Children::default(), kept: false };
        if line.trim() != "ready" {
            bail!("{name} did not come up: {}", std::fs::read_to_string(run.log(&format!("{name}-holder")))?.trim());
        }
        run.record(space.pid())?;
        Ok(space)
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The holder's pid; `nsenter -t PID -a` enters the machine.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Whoever starts a program that outlives the call notes it here until it is reaped.
    pub(crate) fn children(&self) -> &Children {
        &self.children
    }

    /// The network namespace, as a path for `ip link set ... netns PATH`.
    pub fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// Starts a program; its pid is that of this process's pid namespace, and it dies with the machine.
    ///
    /// # Errors
    /// The program is not there, or the machine is gone.
    pub fn spawn(&self, inside: Inside, command: &mut Command) -> Result<Child> {
        spawn_in(self.pid(), inside, command).with_context(|| format!("{}: {:?}", self.name, command.get_program()))
    }

    /// Runs a program to its end, at most 60 s, and returns whatever came of it.
    ///
    /// # Errors
    /// It could not be started.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.output_in(Inside::All, program, args, None)
    }

    fn output_in(&self, inside: Inside, program: &str, args: &[&str], stdin: Option<&str>) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60", program]).args(args);
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(inside, &mut command)?;
        if let Some(text) = stdin {
            use std::io::Write;
            let mut pipe = child.stdin.take().context("no stdin")?;
            pipe.write_all(text.as_bytes())?;
        }
        Ok(child.wait_with_output()?)
    }

    /// Runs a program that has to succeed; returns its standard output.
    ///
    /// # Errors
    /// It failed: with what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.output(program, args)?;
        checked(&self.name, program, args, output)
    }

    /// `ip -batch` with these lines, in the machine's network but with the lab's files.
    ///
    /// # Errors
    /// A line failed: `ip` says which.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let output = self.output_in(Inside::Network, "ip", &["-batch", "-"], Some(lines))?;
        checked(&self.name, "ip -batch", &[lines], output).map(|_| ())
    }

    /// Writes a value below `/proc/sys`.
    ///
    /// # Errors
    /// The key does not exist or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run("sh", &["-c", "printf %s \"$1\" > \"$2\"", "sh", value, &path]).map(|_| ())
    }

    /// Writes a file as the machine sees it, with its directories.
    ///
    /// # Errors
    /// The path cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat > \"$1\"";
        let output = self.output_in(Inside::All, "sh", &["-c", script, "sh", path], Some(text))?;
        checked(&self.name, "write", &[path], output).map(|_| ())
    }

    /// Lets the machine live on after the lab's process. (The pipe's end goes to a process that only holds it open.)
    pub(crate) fn keep(&mut self) -> Result<()> {
        let Some(lifeline) = self.lifeline.take() else { return Ok(()) };
        // Started inside, so that it goes when the holder is killed.
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null()).stdout(lifeline).stderr(Stdio::null());
        self.spawn(Inside::All, &mut command)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let _ = self.holder.kill();
        while let Ok(None) = self.holder.try_wait() {
            for pid in self.children().lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn checked(name: &str, program: &str, args: &[&str], output: Output) -> Result<String> {
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{name}: {program} {}: {}: {}{}", args.join(" "), output.status, out.trim(), err.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Namespaces belong to a thread: whoever enters one does it on a thread that ends right after.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn spawn_in(pid: u32, inside: Inside, command: &mut Command) -> Result<Child> {
    on_own_thread(|| {
        let open = |kind: &str| {
            let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
            File::open(&path).with_context(|| format!("failed to open {}", path.display()))
        };
        // All are opened first: after entering the mount namespace /proc is another one.
        let net = open("net")?;
        let rest = match inside {
            Inside::Network => vec![],
            Inside::All => vec![
                (open("uts")?, CloneFlags::CLONE_NEWUTS),
                (open("pid")?, CloneFlags::CLONE_NEWPID),
                (open("mnt")?, CloneFlags::CLONE_NEWNS),
            ],
        };
        setns(net.as_fd(), CloneFlags::CLONE_NEWNET).context("failed to enter the net namespace")?;
        // Root and working directory are shared by the threads of a process; a mount namespace wants them for itself.
        unshare(CloneFlags::CLONE_FS).context("failed to unshare the root directory")?;
        for (file, kind) in rest {
            setns(file.as_fd(), kind).with_context(|| format!("failed to enter {kind:?}"))?;
        }
        Ok(command.spawn()?)
    })
}

/// The holder's whole life (`mooring-lab hold NAME`): private `/proc`, `/sys` and `/run`, private copies of the directories
/// that daemons and CNI plugins write to, `lo` up, then nothing until the lab's end of the pipe closes.
///
/// # Errors
/// A mount is refused.
pub fn hold(name: &str) -> Result<()> {
    let none = None::<&str>;
    let what = |target: &str| format!("failed to mount {target}");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context(what("/ as private"))?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context(what("/proc"))?;
    // Read-only: who finds a writable one waits for udev, which never comes.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_RDONLY, none).context(what("/sys"))?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context(what("/run"))?;
    for dir in ["/run/netns", "/run/openvswitch", "/run/lock"] {
        std::fs::create_dir(dir)?;
    }
    // What is written to these stays in memory and goes with the machine.
    for dir in ["/etc", "/opt", "/var/lib", "/var/log"] {
        let (upper, work) = (format!("/run/.lab{dir}/upper"), format!("/run/.lab{dir}/work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let options = format!("lowerdir={dir},upperdir={upper},workdir={work}");
        mount(Some("overlay"), dir, Some("overlay"), MsFlags::empty(), Some(options.as_str())).context(what(dir))?;
    }
    std::fs::write("/proc/sys/kernel/hostname", name).context("failed to set the host name")?;
    // Duplicate address detection would hold back the first second of every test; a cable here has just two known ends.
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").context("failed to set accept_dad")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("failed to start ip")?;
    if !up.success() {
        bail!("lo does not come up");
    }
    println!("ready");
    // Pid 1 inherits the orphans; nobody else reaps them.
    std::thread::spawn(|| {
        loop {
            if nix::sys::wait::wait().is_err() {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    });
    let mut sink = [0; 64];
    while std::io::stdin().read(&mut sink)? > 0 {}
    Ok(())
}
