//! DELs that wait for an agent which is down: one file each, in a directory on disk that only root may use. Written by the
//! plugin's process, read and removed by the agent. Knows files; not what a DEL takes away.
//!
//! A file appears whole or not at all: written under a name that starts with a dot, synced, renamed, and the directory
//! synced. What a killed process leaves behind starts with a dot and is nobody's request.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use model::AttachmentId;
use serde::{Deserialize, Serialize};

use crate::wire::Call;

/// Where the installer's file names no `spool`; the agent's `--state-dir` has it there.
pub const DIR: &str = "/var/lib/mooring/spool";
/// Requests at once, what was set aside and what was left half written included. A node has some hundred pods, each with a
/// few plugins, and a DEL that comes again takes the place of the one before.
pub const MAX_FILES: usize = 4096;
/// A request is a configuration with its `prevResult`, some KiB.
pub const MAX_FILE: u64 = 256 * 1024;
/// Of all files together: the disk has other users.
pub const MAX_BYTES: u64 = 32 * 1024 * 1024;
/// A request that cannot be read is kept under this ending for a person.
pub const BAD: &str = "bad";
const READY: &str = "json";

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("spool {0:?}: failed to read the directory: {1}")]
    Dir(PathBuf, io::Error),
    #[error("spool {dir:?} is full: {files} of {MAX_FILES} files, {bytes} of {MAX_BYTES} bytes")]
    Full { dir: PathBuf, files: usize, bytes: u64 },
    #[error("the request has {0} bytes, the spool takes at most {MAX_FILE} in one")]
    TooLarge(u64),
    #[error("failed to write {0:?}: {1}")]
    Write(PathBuf, io::Error),
    #[error("failed to encode the request: {0}")]
    Encode(serde_json::Error),
    #[error("failed to read {0:?}: {1}")]
    Read(PathBuf, io::Error),
    #[error("{0:?} is no request: {1}")]
    Content(PathBuf, String),
}

/// Which network namespace the path led to at DEL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsInode {
    pub dev: u64,
    pub ino: u64,
}

/// One DEL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spooled {
    /// Nanoseconds since 1970, by the host's clock: for the order, and for saying how old it is.
    pub at: u64,
    /// None: the namespace was gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsInode>,
    pub call: Call,
}

impl Spooled {
    pub fn new(call: Call, netns: Option<&File>) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        let netns = netns.and_then(|f| f.metadata().ok()).map(|m| NetnsInode { dev: m.dev(), ino: m.ino() });
        Self { at, netns, call }
    }

    /// The same for a DEL that comes again. An interface of a container may have a DEL for each plugin of a chain.
    fn file_name(&self) -> String {
        let kind = self.call.stdin.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
        format!("{}.{READY}", AttachmentId::of(&self.call.container_id, &format!("{}/{kind}", self.call.ifname)))
    }
}

/// A request that is on disk under a name which nobody reads.
#[derive(Debug)]
#[must_use = "it is no request until it is committed"]
pub struct Staged {
    temp: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// From here on the agent finds it, also after a power cut.
    pub fn commit(self) -> Result<(), SpoolError> {
        if let Err(e) = fs::rename(&self.temp, &self.path) {
            // The error counts; the agent removes what is left.
            let _ = fs::remove_file(&self.temp);
            return Err(SpoolError::Write(self.path, e));
        }
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| SpoolError::Write(self.path.clone(), e))
    }
}

/// Writes one request. The directory is the agent's to make: a host where it is missing never had an agent.
pub fn write(dir: &Path, request: &Spooled) -> Result<(), SpoolError> {
    stage(dir, request)?.commit()
}

/// The first half of `write`.
pub fn stage(dir: &Path, request: &Spooled) -> Result<Staged, SpoolError> {
    let text = serde_json::to_vec(request).map_err(SpoolError::Encode)?;
    let len = text.len() as u64;
    if len > MAX_FILE {
        return Err(SpoolError::TooLarge(len));
    }
    let path = dir.join(request.file_name());
    let (files, bytes) = used(dir)?;
    // One that takes another's place takes no new one.
    let more = usize::from(!path.exists());
    if files + more > MAX_FILES || bytes + len > MAX_BYTES {
        return Err(SpoolError::Full { dir: dir.to_owned(), files, bytes });
    }
    let temp = dir.join(format!(".{}.{}", request.file_name(), std::process::id()));
    let put = || -> io::Result<()> {
        let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        f.write_all(&text)?;
        f.sync_all()
    };
    if let Err(e) = put() {
        let _ = fs::remove_file(&temp);
        return Err(SpoolError::Write(temp, e));
    }
    Ok(Staged { temp, path })
}

fn used(dir: &Path) -> Result<(usize, u64), SpoolError> {
    let failed = |e| SpoolError::Dir(dir.to_owned(), e);
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(dir).map_err(failed)? {
        files += 1;
        // One that the agent removes meanwhile takes no room.
        bytes += entry.map_err(failed)?.metadata().map_or(0, |m| m.len());
    }
    Ok((files, bytes))
}

/// What a directory holds, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub ready: Vec<PathBuf>,
    /// Half written, by a process that lives or was killed.
    pub temp: Vec<PathBuf>,
}

pub fn list(dir: &Path) -> Result<Listing, SpoolError> {
    let failed = |e| SpoolError::Dir(dir.to_owned(), e);
    let mut out = Listing::default();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with('.') {
            out.temp.push(path);
        } else if !name.ends_with(&format!(".{BAD}")) {
            out.ready.push(path);
        }
    }
    out.ready.sort();
    out.temp.sort();
    Ok(out)
}

/// Reads one request: only a plain file of a fitting size.
pub fn read(path: &Path) -> Result<Spooled, SpoolError> {
    let failed = |e| SpoolError::Read(path.to_owned(), e);
    let wrong = |why: String| SpoolError::Content(path.to_owned(), why);
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(wrong("no plain file".to_owned()));
    }
    if meta.len() > MAX_FILE {
        return Err(wrong(format!("{} bytes, at most {MAX_FILE} are taken", meta.len())));
    }
    let mut text = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_FILE).read_to_end(&mut text)).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::Verb;

    fn del(container: &str, kind: &str) -> Spooled {
        let call = Call {
            version: crate::wire::PROTOCOL,
            verb: Verb::Del,
            container_id: container.into(),
            netns: Some("/run/netns/a".into()),
            ifname: "eth0".into(),
            args: String::new(),
            path: "/opt/cni/bin".into(),
            stdin: json!({"cniVersion":"1.0.0","name":"n","type":kind}),
            runtime: String::new(),
        };
        Spooled { at: 7, netns: Some(NetnsInode { dev: 4, ino: 4026532000 }), call }
    }

    #[test]
    fn a_request_is_read_as_it_was_written_and_only_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &del("c1", "cni-ovs")).unwrap();
        let list = list(dir.path()).unwrap();
        assert_eq!((list.ready.len(), list.temp.len()), (1, 0));
        assert_eq!(fs::metadata(&list.ready[0]).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&list.ready[0]).unwrap(), del("c1", "cni-ovs"));
    }

    #[test]
    fn a_del_that_comes_again_takes_the_place_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &del("c1", "cni-ovs")).unwrap();
        let again = Spooled { at: 8, netns: None, ..del("c1", "cni-ovs") };
        write(dir.path(), &again).unwrap();
        write(dir.path(), &del("c1", "coordinator")).unwrap();
        write(dir.path(), &del("c2", "cni-ovs")).unwrap();
        let ready = list(dir.path()).unwrap().ready;
        assert_eq!(ready.len(), 3);
        assert!(ready.iter().any(|p| read(p).unwrap() == again));
    }

    #[test]
    fn a_spool_that_is_full_missing_or_too_small_refuses_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let e = write(&dir.path().join("none"), &del("c", "t")).unwrap_err().to_string();
        assert!(e.contains("failed to read the directory: No such file"), "{e}");
        let mut large = del("c", "t");
        large.call.stdin["x"] = json!("x".repeat(MAX_FILE as usize));
        assert!(write(dir.path(), &large).unwrap_err().to_string().contains("at most 262144 in one"));
        // Sparse: only the length counts.
        let f = File::create(dir.path().join("a.bad")).unwrap();
        f.set_len(MAX_BYTES).unwrap();
        let e = write(dir.path(), &del("c", "t")).unwrap_err().to_string();
        assert!(e.contains("is full: 1 of 4096 files, 33554432 of 33554432 bytes"), "{e}");
        f.set_len(0).unwrap();
        write(dir.path(), &del("c", "t")).unwrap();
        for i in 2..MAX_FILES {
            File::create(dir.path().join(format!("{i}.bad"))).unwrap();
        }
        let e = write(dir.path(), &del("c2", "t")).unwrap_err().to_string();
        assert!(e.contains("is full: 4096 of 4096 files"), "{e}");
        // The same request again needs no more room.
        write(dir.path(), &del("c", "t")).unwrap();
    }

    #[test]
    fn a_process_that_ends_before_the_rename_leaves_no_request() {
        let dir = tempfile::tempdir().unwrap();
        let staged = stage(dir.path(), &del("c1", "t")).unwrap();
        drop(staged);
        let l = list(dir.path()).unwrap();
        assert_eq!((l.ready.len(), l.temp.len()), (0, 1));
        // And stands in nobody's way.
        write(dir.path(), &del("c1", "t")).unwrap();
        assert_eq!(list(dir.path()).unwrap().ready.len(), 1);
    }

    #[test]
    fn what_is_no_request_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, "{\"at\":1,").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("is no request: EOF"));
        File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("at most 262144"));
        let link = dir.path().join("b.json");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        assert!(read(&link).unwrap_err().to_string().contains("no plain file"));
    }
}
