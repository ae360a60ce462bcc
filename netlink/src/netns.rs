//! A network namespace by file descriptor, and how to do something inside it. Knows nothing of pods.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
    /// The namespace that `visit` took this thread to.
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
        Self::open(OWN)
    }

    fn checked(fd: OwnedFd, path: Option<PathBuf>) -> Result<Self, Error> {
        let name = || path.clone().unwrap_or_else(|| "(file descriptor)".into());
        let open = |source| Error::OpenNetns { path: name(), source };
        // What is left at the path of a namespace that was unmounted is an ordinary empty file.
        let fs = nix::sys::statfs::fstatfs(&fd).map_err(|e| open(e.into()))?;
        if fs.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Err(Error::NotNetns { path: name() });
        }
        let stat = nix::sys::stat::fstat(&fd).map_err(|e| open(e.into()))?;
        let id = NetnsId { dev: stat.st_dev, ino: stat.st_ino };
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

    /// Runs `act` on the calling thread inside the namespace.
    pub fn enter<T>(&self, act: impl FnOnce() -> T) -> Result<T, Error> {
        let _inside = self.visit()?;
        Ok(act())
    }

    /// Takes the calling thread inside until the guard is dropped. For a thread that is inside already it does nothing.
    pub fn visit(&self) -> Result<Inside, Error> {
        let before = INSIDE.get();
        if before == Some(self.0.id) {
            return Ok(Inside { way_back: None, before, _of_a_thread: PhantomData });
        }
        let failed = |source| Error::Enter { netns: self.to_string(), source };
        let own = File::open(OWN).map_err(failed)?;
        setns(&self.0.fd, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
        INSIDE.set(Some(self.0.id));
        Ok(Inside { way_back: Some(own), before, _of_a_thread: PhantomData })
    }
}

/// While it lives, the thread that it was made on is in another network namespace than its own.
#[derive(Debug)]
#[must_use]
pub struct Inside {
    way_back: Option<File>,
    before: Option<NetnsId>,
    /// It must not get to another thread, which would leave this one inside.
    _of_a_thread: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let Some(own) = &self.way_back else { return };
        if let Err(error) = setns(own, CloneFlags::CLONE_NEWNET) {
            // Only for want of memory. Whatever this thread did next it would do in the wrong namespace.
            tracing::error!(%error, "failed to leave a network namespace");
            std::process::abort();
        }
        INSIDE.set(self.before);
    }
}

/// The calling thread's.
const OWN: &str = "/proc/thread-self/ns/net";

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
