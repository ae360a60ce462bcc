//! One run of the lab on this machine: its directory, and the record by which a later `clean` finds what a killed run
//! left behind. It does not know what the processes in the record are for.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every run's directory lies here and begins with this.
const PARENT: &str = "/tmp";
/// What the names of all runs begin with.
pub const PREFIX: &str = "mt-";

/// A running lab's place on disk. Dropping it removes the directory, unless it is to be kept.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    kept: bool,
}

impl Run {
    /// Makes `/tmp/mt-<pid>-<n>` with the record of who owns it.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn start() -> Result<Self> {
        let me = std::process::id();
        for n in 0..1000 {
            let dir = Path::new(PARENT).join(format!("{PREFIX}{me}-{n}"));
            match fs::create_dir(&dir) {
                Ok(()) => {
                    fs::write(dir.join("owner"), format!("{}\n", Process::of(me)?))?;
                    fs::create_dir(dir.join("logs"))?;
                    return Ok(Self { dir, kept: false });
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("failed to make {}", dir.display())),
            }
        }
        bail!("1000 labs of one process exist")
    }

    /// Where sockets, logs and snapshots of this run lie; every namespace of the lab sees it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that a process of this run logs to.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Notes a process whose death ends a whole namespace, so that `clean` can end it.
    pub(crate) fn record(&self, pid: u32) -> Result<()> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("holders"))?;
        writeln!(file, "{}", Process::of(pid)?)?;
        Ok(())
    }

    /// Leaves the directory, and lets the next `clean` take this run although its owner may still live.
    pub fn keep(&mut self) -> Result<()> {
        self.kept = true;
        fs::write(self.dir.join("owner"), "kept\n")?;
        Ok(())
    }

    /// The last lines of every log, for a person who has to find out why something failed.
    pub fn tails(&self, lines: usize) -> String {
        let mut out = String::new();
        let Ok(entries) = fs::read_dir(self.dir.join("logs")) else { return out };
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.sort();
        for file in files {
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
            let all: Vec<&str> = text.lines().collect();
            if all.is_empty() {
                continue;
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            out.push_str(&format!("---- {name}: last of {} lines\n", all.len()));
            for line in &all[all.len().saturating_sub(lines)..] {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The people who look at a failed CI run have only what was copied out.
        if let Some(to) = std::env::var_os("MOORING_LAB_LOGS") {
            let to = Path::new(&to).join(self.dir.file_name().unwrap_or_default());
            let _ = fs::create_dir_all(&to);
            for entry in fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten() {
                let _ = fs::copy(entry.path(), to.join(entry.file_name()));
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A process that cannot be confused with a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// Clock ticks after boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    start: u64,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.start)
    }
}

impl Process {
    fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
        // The command's name may hold blanks and parentheses; the fields after its last one are plain.
        let after = stat.rsplit_once(") ").map(|(_, rest)| rest).context("unreadable /proc stat")?;
        let start = after.split(' ').nth(19).context("short /proc stat")?.parse()?;
        Ok(Self { pid, start })
    }

    fn parse(line: &str) -> Option<Self> {
        let (pid, start) = line.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }

    fn lives(self) -> bool {
        let zombie = || {
            fs::read_to_string(format!("/proc/{}/stat", self.pid))
                .is_ok_and(|s| s.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
        };
        Self::of(self.pid).is_ok_and(|now| now == self) && !zombie()
    }
}

/// What is left of one run.
#[derive(Debug)]
pub struct Leftover {
    /// Its directory.
    pub dir: PathBuf,
    /// Its owner still works with it.
    pub in_use: bool,
    holders: Vec<Process>,
    /// How many of its machines were alive when it was found.
    live: usize,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} machines{})", self.dir.display(), self.live, if self.in_use { ", in use" } else { "" })
    }
}

/// All runs of which something exists.
///
/// # Errors
/// `/tmp` is unreadable.
pub fn leftovers() -> Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(PARENT).with_context(|| format!("failed to read {PARENT}"))?.flatten() {
        let dir = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Other things may have chosen our prefix; a run has an owner file from its first moment.
        let Ok(owner) = fs::read_to_string(dir.join("owner")) else { continue };
        let in_use = Process::parse(&owner).is_some_and(Process::lives);
        let holders = fs::read_to_string(dir.join("holders")).unwrap_or_default();
        let holders: Vec<Process> = holders.lines().filter_map(Process::parse).collect();
        let live = holders.iter().filter(|p| p.lives()).count();
        found.push(Leftover { dir, in_use, holders, live });
    }
    Ok(found)
}

/// Removes what killed and kept runs left; runs in use are not touched. Returns what was removed.
///
/// # Errors
/// A process does not end within 60 s, or a directory cannot be removed.
pub fn clean() -> Result<Vec<Leftover>> {
    let mut removed = Vec::new();
    for run in leftovers()?.into_iter().filter(|r| !r.in_use) {
        for process in run.holders.iter().filter(|p| p.lives()) {
            // A holder is pid 1 of its pid namespace: with it all processes of that namespace die, and the namespaces go.
            let _ = kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Some(process) = run.holders.iter().find(|p| p.lives()) {
            if Instant::now() > deadline {
                bail!("process {} of {} does not end", process.pid, run.dir.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_dir_all(&run.dir).with_context(|| format!("failed to remove {}", run.dir.display()))?;
        removed.push(run);
    }
    Ok(removed)
}

/// At SIGINT or SIGTERM the run is removed and this process ends with 130, as if it had never started it.
///
/// # Errors
/// No thread can be started.
pub fn remove_on_signal(dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            let holders = fs::read_to_string(dir.join("holders")).unwrap_or_default();
            for process in holders.lines().filter_map(Process::parse).filter(|p| p.lives()) {
                let _ = kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGKILL);
            }
            // What wrote there is dead or dying; a second look takes what it wrote last.
            for _ in 0..600 {
                if fs::remove_dir_all(&dir).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            std::process::exit(130);
        });
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.lives());
        assert_eq!(Process::parse(&me.to_string()), Some(me));
        assert!(!Process { start: me.start + 1, ..me }.lives(), "another process of the same pid is not it");
    }
}
