//! A network namespace by file descriptor, and how to do something inside it. Knows nothing of pods.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use crate::Error;

/// What tells one namespace from another as long as the host runs: device and inode of its file in nsfs. Unlike a path it
/// is not given to another namespace while this one lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    pub dev: u64,
    pub ino: u64,
}

/// An open network namespace; it stays alive as long as this is held.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    /// How it was named to us; for messages only.
    path: Option<PathBuf>,
    id: NetnsId,
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
        Ok(Self { fd, id: NetnsId { dev: meta.dev(), ino: meta.ino() }, path })
    }

    pub fn id(&self) -> NetnsId {
        self.id
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub fn try_clone(&self) -> Result<Self, Error> {
        let open = |source| Error::OpenNetns { path: self.path.clone().unwrap_or_default(), source };
        Ok(Self { fd: self.fd.try_clone().map_err(open)?, path: self.path.clone(), id: self.id })
    }

    /// Runs `act` on a thread of its own inside the namespace and waits for it. The thread ends with it, so nothing of ours
    /// is left in the namespace, and the caller's thread never leaves its own.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let failed = |source| Error::Enter { netns: self.to_string(), source };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
                    Ok(act())
                })
                .map_err(failed)?;
            match thread.join() {
                Ok(done) => done.map_err(|e: nix::errno::Errno| failed(e.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The path if there is one, else the inode as `ip netns` tools print it.
impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(p) => write!(f, "{}", p.display()),
            None => write!(f, "net:[{}]", self.id.ino),
        }
    }
}

impl From<Netns> for OwnedFd {
    fn from(n: Netns) -> Self {
        n.fd
    }
}
