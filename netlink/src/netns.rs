//! A network namespace by file descriptor, and how to do something inside it. Knows nothing of pods.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::sched::{CloneFlags, setns};

use crate::{Error, Socket};

/// What tells one namespace from another as long as the host runs: device and inode of its file in nsfs. Unlike a path it
/// is not given to another namespace while this one lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    pub dev: u64,
    pub ino: u64,
}

/// An open network namespace; it stays alive as long as this or a clone of it is held.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    /// How it was named to us; for messages only.
    path: Option<PathBuf>,
    id: NetnsId,
    socket: OnceLock<Socket>,
}

thread_local! {
    /// The namespace that `enter` took this thread to.
    static INSIDE: Cell<Option<NetnsId>> = const { Cell::new(None) };
}

impl Netns {
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let open = |source| Error::OpenNetns { path: path.to_owned(), source };
        Self::checked(File::open(path).map_err(open)?.into(), Some(path.to_owned()))
    }

    /// `path` is how messages name it; it is not opened.
    pub fn from_fd(fd: OwnedFd, path: Option<PathBuf>) -> Result<Self, Error> {
        Self::checked(fd, path)
    }

    /// The one that the calling thread is in.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    fn checked(fd: OwnedFd, path: Option<PathBuf>) -> Result<Self, Error> {
        let name = || path.clone().unwrap_or_else(|| "(file descriptor)".into());
        let open = |source| Error::OpenNetns { path: name(), source };
        // What is left at the path of a namespace that was unmounted is an ordinary empty file.
        let fs = nix::sys::statfs::fstatfs(&fd).map_err(|e| open(e.into()))?;
        if fs.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Err(Error::NotNetns { path: name() });
        }
        let meta = File::from(fd.try_clone().map_err(open)?).metadata().map_err(open)?;
        let id = NetnsId { dev: meta.dev(), ino: meta.ino() };
        Ok(Self(Arc::new(Inner { fd, path, id, socket: OnceLock::new() })))
    }

    pub fn id(&self) -> NetnsId {
        self.0.id
    }

    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// A socket in the namespace: opened at the first call, closed with the last clone of this handle.
    pub fn socket(&self) -> Result<&Socket, Error> {
        match self.0.socket.get() {
            Some(s) => Ok(s),
            None => {
                let opened = Socket::open_in(self)?;
                Ok(self.0.socket.get_or_init(|| opened))
            }
        }
    }

    /// Runs `act` on a thread of its own inside the namespace and waits for it. The thread ends with it, so nothing of ours
    /// is left in the namespace, and the caller's thread never leaves its own. On a thread that is inside already it runs there.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, Error> {
        if INSIDE.get() == Some(self.0.id) {
            return Ok(act());
        }
        let failed = |source| Error::Enter { netns: self.to_string(), source };
        std::thread::scope(|scope| {
            let thread =
                std::thread::Builder::new().name(THREAD.to_owned()).spawn_scoped(scope, || self.inside(act)).map_err(failed)?;
            match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The same without waiting: `act` gets the error where the namespace cannot be entered.
    pub fn spawn(&self, act: impl FnOnce(Result<(), Error>) + Send + 'static) -> Result<(), Error> {
        let netns = self.clone();
        let thread = std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || act(netns.move_in()));
        thread.map(drop).map_err(|source| Error::Enter { netns: self.to_string(), source })
    }

    fn inside<T>(&self, act: impl FnOnce() -> T) -> Result<T, Error> {
        self.move_in()?;
        Ok(act())
    }

    /// Takes the calling thread inside, for good.
    fn move_in(&self) -> Result<(), Error> {
        let failed = |e: nix::errno::Errno| Error::Enter { netns: self.to_string(), source: e.into() };
        setns(&self.0.fd, CloneFlags::CLONE_NEWNET).map_err(failed)?;
        INSIDE.set(Some(self.0.id));
        Ok(())
    }
}

/// Name of the threads that are inside a namespace.
const THREAD: &str = "netns";

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// The path if there is one, else the inode as `ip netns` tools print it.
impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path() {
            Some(p) => write!(f, "{}", p.display()),
            None => write!(f, "net:[{}]", self.0.id.ino),
        }
    }
}
