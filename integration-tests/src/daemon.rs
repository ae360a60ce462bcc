//! A long-running program inside a machine of the lab, with its log. It does not know what the program does.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::Run;
use crate::space::{Children, Inside, Space};

/// A busy machine may take this long until a program is ready; an idle one takes a second.
const START: Duration = Duration::from_secs(60);
/// A pod's `terminationGracePeriodSeconds`, where nobody says another.
const END: Duration = Duration::from_secs(30);

/// A program that was started and runs until it is stopped, or until its machine goes.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    siblings: Children,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` in `space`; what it prints is appended to the run's log `<space>-<name>`.
    ///
    /// # Errors
    /// The program is not there.
    pub fn start(run: &Run, space: &Space, name: &str, command: &mut Command) -> Result<Self> {
        let log = run.log(&format!("{}-{name}", space.name()));
        let out = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = space.spawn(Inside::All, command)?;
        let siblings = space.children().clone();
        siblings.lock().unwrap_or_else(PoisonError::into_inner).insert(child.id().cast_signed());
        Ok(Self { name: format!("{} on {}", name, space.name()), child, siblings, log })
    }

    /// The pid, in the pid namespace of the lab's own process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Still runs; otherwise an error with the end of its log.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            bail!("{} ended with {status}:\n{}", self.name, lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        Ok(())
    }

    /// Waits until `path` exists in the lab's files, at most as long as a busy machine may need.
    ///
    /// # Errors
    /// The program ended, or the time is over.
    pub fn wait_for(&mut self, path: &Path) -> Result<()> {
        let deadline = Instant::now() + START;
        while !path.exists() {
            self.check()?;
            if Instant::now() > deadline {
                bail!("{} did not make {} within {} s", self.name, path.display(), START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits for as long as a kubelet does.
    ///
    /// # Errors
    /// It had to be killed.
    pub fn stop(mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            self.reaped();
            return Ok(());
        }
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM).context("failed to signal")?;
        let deadline = Instant::now() + END;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{} did not end within {} s of SIGTERM", self.name, END.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.reaped();
        Ok(())
    }

    fn reaped(&self) {
        self.siblings.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid().cast_signed());
    }

    /// Ends it without warning (SIGKILL), as a crash would.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.reaped();
        Ok(())
    }
}
