//! DELs that came while this agent was down: read from the directory where the plugins left them (`cni::shim::spool`),
//! carried out, removed. Before the socket is served, then now and then, for a plugin may have given up a moment before we
//! listened; and whatever needs a foreign plugin when the next call brings hands. Does not know what a DEL takes away.
//!
//! A file goes when its DEL is done, so that a process killed in between does it again; DEL twice is no harm.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cni::Verb;
use cni::shim::spool::{self, SpoolError, Spooled};
use plumbing::{Host, Netns};
use runtime::Shutdown;
use tokio::time::Instant;

use crate::attach::{Agent, Kind, Known, Turn, living_netns};
use crate::cni_server::{Abort, NoRunner, Runner, with_causes};
use crate::journal::{Entry, Key, State};

/// How long the start is held up: below the 10 s that a caller waits for the socket. What is not done by then is done behind.
const START_LIMIT: Duration = Duration::from_secs(5);
/// One readdir of a directory that is nearly always empty.
const TICK: Duration = Duration::from_secs(10);
/// How many one call's hands do beside its own work, and how long they begin another one: each may execute a plugin, and the
/// caller waits.
const FOR_ONE_CALL: usize = 4;
const FOR_ONE_CALL_LIMIT: Duration = Duration::from_secs(2);
/// A write takes milliseconds: what is older was left by a process that was killed.
const TEMP_AGE: Duration = Duration::from_secs(60);
/// A DEL that has failed for so long is set aside for a person, so that the spool does not fill up with it. What it was to take
/// away is still found by its mark when an agent starts.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// The directory.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    /// Requests that the last look left.
    left: AtomicUsize,
    /// Where the next hands begin: those that fail are not to keep them from the others.
    next: AtomicUsize,
    /// Files whose failure was told: the next tries are silent.
    told: Mutex<HashSet<PathBuf>>,
    /// One drains at a time.
    only: tokio::sync::Mutex<()>,
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    pub done: usize,
    /// To be tried again.
    pub left: usize,
    /// Set aside: no requests.
    pub bad: usize,
}

#[derive(Clone, Copy)]
enum Pass {
    /// Before the socket is served, until then.
    Start(Instant),
    Behind,
    /// With a call's hands, until then.
    Hands(Instant),
}

enum Failure {
    /// It will never be one.
    Bad(String),
    Later(cni::Error),
}

impl Spool {
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            left: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            told: Mutex::default(),
            only: tokio::sync::Mutex::default(),
        }
    }

    /// Makes the directory, for root only: whoever writes there has DELs carried out.
    pub fn prepare(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))
    }

    /// How many waited when somebody last looked.
    pub fn waiting(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// The requests, oldest first; what cannot be read is set aside, what a killed process left is removed.
    fn requests(&self) -> Result<(Vec<(PathBuf, Spooled)>, usize), SpoolError> {
        let list = spool::list(&self.dir)?;
        for temp in list.temp {
            let age = fs::metadata(&temp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if age.is_some_and(|a| a > TEMP_AGE) {
                remove(&temp);
            }
        }
        let (mut requests, mut bad) = (Vec::new(), 0);
        for path in list.ready {
            match spool::read(&path) {
                Ok(s) => requests.push((path, s)),
                // Another pass of ours, or a newer request in its place.
                Err(SpoolError::Read(_, e)) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    set_aside(&path, &e.to_string());
                    bad += 1;
                }
            }
        }
        requests.sort_by_key(|(_, s)| s.at);
        Ok((requests, bad))
    }

    fn tell(&self, path: &Path) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned())
    }

    fn settled(&self, path: &Path) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }
}

impl<H: Host + 'static> Agent<H> {
    /// What waits, before the socket is served.
    pub async fn drain_at_start(&self) -> Drained {
        self.drain(&mut NoRunner, Pass::Start(Instant::now() + START_LIMIT)).await
    }

    /// What comes late, and what failed, until the shutdown.
    pub async fn drain_behind(&self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            self.drain(&mut NoRunner, Pass::Behind).await;
        }
    }

    /// What needs a plugin executed, by the hands of the call that is here.
    pub(crate) async fn drain_by<R: Runner>(&self, runner: &mut R) {
        if self.spool.waiting() > 0 {
            self.drain(runner, Pass::Hands(Instant::now() + FOR_ONE_CALL_LIMIT)).await;
        }
    }

    async fn drain<R: Runner>(&self, runner: &mut R, pass: Pass) -> Drained {
        let Ok(_only) = self.spool.only.try_lock() else { return Drained::default() };
        let (mut requests, bad) = match self.spool.requests() {
            Ok(r) => r,
            Err(error) => {
                tracing::warn!(%error, "failed to look for spooled DELs, will retry");
                return Drained::default();
            }
        };
        let mut out = Drained { bad, left: requests.len(), done: 0 };
        let (most, deadline) = match pass {
            Pass::Start(d) => (usize::MAX, Some(d)),
            Pass::Behind => (usize::MAX, None),
            Pass::Hands(d) => {
                let n = requests.len().max(1);
                let first = self.spool.next.fetch_add(FOR_ONE_CALL, Ordering::Relaxed) % n;
                requests.rotate_left(first);
                (FOR_ONE_CALL, Some(d))
            }
        };
        for (path, spooled) in requests.into_iter().take(most) {
            if deadline.is_some_and(|d| Instant::now() >= d) {
                tracing::info!(left = out.left, "spooled DELs take long, the rest is done later");
                break;
            }
            let (container, ifname) = (&spooled.call.container_id, &spooled.call.ifname);
            match self.spooled_del(&spooled, matches!(pass, Pass::Start(_)), runner).await {
                Ok(()) => {
                    self.finish(&path, &spooled);
                    out.done += 1;
                    out.left -= 1;
                }
                Err(Failure::Bad(why)) => {
                    set_aside(&path, &why);
                    self.spool.settled(&path);
                    out.bad += 1;
                    out.left -= 1;
                }
                Err(Failure::Later(e)) if age(&spooled) > MAX_AGE => {
                    set_aside(&path, &format!("it fails for longer than a day: {e}"));
                    self.spool.settled(&path);
                    out.bad += 1;
                    out.left -= 1;
                }
                Err(Failure::Later(error)) => {
                    if self.spool.tell(&path) {
                        tracing::warn!(container, ifname, %error, "a spooled DEL failed, will retry");
                    }
                }
            }
        }
        self.spool.left.store(out.left, Ordering::Relaxed);
        out
    }

    /// Removes the file, unless the plugin has put a newer request in its place meanwhile.
    fn finish(&self, path: &Path, done: &Spooled) {
        tracing::info!(container = done.call.container_id, ifname = done.call.ifname, "carried out a spooled DEL");
        self.spool.settled(path);
        if spool::read(path).is_ok_and(|now| now.at == done.at) {
            remove(path);
        }
    }

    async fn spooled_del<R: Runner>(&self, spooled: &Spooled, starting: bool, runner: &mut R) -> Result<(), Failure> {
        let mut request = spooled.call.request().map_err(|e| Failure::Bad(e.to_string()))?;
        let kind = match (request.verb, Kind::of_call(&request)) {
            (Verb::Del, Some(kind)) => kind,
            (Verb::Del, None) => return Err(Failure::Bad(format!("the agent runs no plugin {:?}", request.conf.kind))),
            (verb, _) => return Err(Failure::Bad(format!("{verb} is no DEL"))),
        };
        let entry = kind.role().and_then(|r| self.journal.get(&Key::new(&request.container_id, &spooled.call.ifname, r)));
        if let Some(e) = &entry
            && is_of_later_sandbox(e, spooled)
        {
            tracing::info!(container = e.key.container_id, ifname = e.key.ifname, "a spooled DEL was about an earlier sandbox");
            return Ok(());
        }
        // While the socket is served, what is being added has a call in hand. At the start it was begun by a process that died.
        if entry.is_some_and(|e| e.state == State::Adding) && !starting {
            return Err(Failure::Later(cni::Error::new(cni::Error::TRY_AGAIN, "the same interface is being added just now")));
        }
        let same = |n: &Netns| spooled.netns.is_some_and(|i| i.dev == n.id().dev && i.ino == n.id().ino);
        let netns = request.netns.as_ref().and_then(|p| Netns::open(p).ok()).filter(same);
        if netns.is_none() {
            // Whatever is at the path now is another sandbox's: nobody is to be led there.
            request.netns = None;
        }
        let (abort, known) = (Abort::new(), Known::default());
        let turn =
            Turn { request: &request, netns: netns.as_ref(), abort: &abort, known: &known, runtime: &spooled.call.runtime };
        self.run_own(kind, turn, runner).await.map(|_| ()).map_err(Failure::Later)
    }
}

/// The same container id with another network namespace, which lives: it was added after that DEL.
fn is_of_later_sandbox(entry: &Entry, spooled: &Spooled) -> bool {
    let (Some(noted), Some(_)) = (&entry.netns, living_netns(entry)) else { return false };
    match spooled.netns {
        Some(i) => (i.dev, i.ino) != (noted.dev, noted.ino),
        // The path led nowhere then, and leads to the entry's namespace now.
        None => spooled.call.netns.as_deref() == Some(noted.path.as_str()),
    }
}

fn age(s: &Spooled) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(s.at))
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(file = %path.display(), %error, "failed to remove a file of the spool");
    }
}

fn set_aside(path: &Path, why: &str) {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(spool::BAD);
    match fs::rename(path, &name) {
        Ok(()) => tracing::warn!(file = %path.display(), why, "a file of the spool is no DEL that can be done, it was set aside"),
        Err(error) => {
            tracing::warn!(file = %path.display(), why, error = with_causes(&error), "failed to set a file of the spool aside")
        }
    }
}
