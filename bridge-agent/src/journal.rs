//! What this agent did and has not undone: one entry for each thing that a CNI call made, with all that DEL needs. Kept on
//! tmpfs, for attachments do not outlive a boot; hence no fsync. Knows no host and no API: it is a map with a file.
//!
//! The file holds one record a line, `<checksum> <json>`, appended; an entry is written whole each time. A line that is
//! torn (the process died in the middle of it) fails its checksum and is dropped, which leaves the state before it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::mooring::Identity;
use model::{Cidr, IfAddr, PodRef};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A file is rewritten when it holds this many records more than twice the living entries: an ADD and its DEL leave about
/// eight dead records of 2 KiB, so that this bounds the waste to a few MiB of memory.
const COMPACT_SLACK: usize = 1024;

/// What an entry is about. A container has at most one entry of each role for each interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub container_id: String,
    pub ifname: String,
    pub role: Role,
}

impl Key {
    pub fn new(container_id: &str, ifname: &str, role: Role) -> Self {
        Self { container_id: container_id.to_owned(), ifname: ifname.to_owned(), role }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Addresses taken from pools.
    Addresses,
    /// A NIC made by one of our main plugins.
    Main,
    /// What the coordinator added around a NIC.
    Coordinator,
    /// The delegates of one call of the meta plugin.
    Meta,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Begun: at start it is undone.
    Adding,
    Added,
    /// Being undone, perhaps with a part that has to wait (the API server is away).
    Deleting,
}

/// Which network namespace it was, by the inode that its path led to at ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsRef {
    pub path: String,
    pub dev: u64,
    pub ino: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub key: Key,
    pub state: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsRef>,
    /// CNI `name`; empty in an entry that was lost and found again, which nobody can tell.
    pub network: String,
    /// Program of the runtime whose call it was; empty where that could not be told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    pub work: Work,
}

impl Entry {
    /// Lost, and made again of what was found on the host (`leases::lost`): which call made it is not known.
    pub fn is_found(&self) -> bool {
        self.network.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "lowercase")]
pub enum Work {
    Addresses(Addresses),
    Main(Call),
    Coordinator(Call),
    Meta(Meta),
}

/// The call that made it, for DEL when the configuration no longer exists anywhere else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The plugin's configuration, without `prevResult`.
    pub conf: Value,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// A foreign IPAM plugin gave the addresses and has to take them back.
    #[serde(default)]
    pub foreign_ipam: bool,
    /// VLAN and hardware address, for the SpiderEndpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Addresses {
    pub held: Vec<Held>,
    /// The interface whose ADD took them: with `ippools` it takes those of all NICs.
    pub taken_by: String,
    /// An ADD of this interface has asked for them. Those that nobody asked for go with `taken_by`.
    pub used: bool,
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Name of the AddressLease.
    pub lease: String,
    pub pool: String,
    pub addr: IfAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<(Cidr, IpAddr)>,
    /// No default route by this NIC.
    #[serde(default)]
    pub clean_gateway: bool,
    /// Whose address it stays: at the end it is emptied, not deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The identity did not have it before this ADD: if the ADD fails, it goes altogether.
    #[serde(default)]
    pub fresh: bool,
}

/// One call of the meta plugin: its delegates in the order of their ADD, those that were begun.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub delegates: Vec<Delegate>,
    pub args: String,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delegate {
    /// `cni_meta::Delegate::to_value`: it is needed when the NetworkAttachmentDefinition is gone.
    pub delegate: Value,
    /// What its last plugin returned; none where ADD did not get that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("failed to read journal {0:?}")]
    Read(PathBuf, #[source] io::Error),
    #[error("failed to write journal {0:?}")]
    Write(PathBuf, #[source] io::Error),
    #[error("failed to encode a journal entry")]
    Encode(#[source] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    Put(Box<Entry>),
    Gone(Key),
}

/// All living entries, in memory and on file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    live: BTreeMap<Key, Entry>,
    records: usize,
    /// The last append failed and may have left half a line.
    broken: bool,
}

/// What opening found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replay {
    pub records: usize,
    /// Lines that failed their checksum.
    pub dropped: usize,
}

impl Journal {
    /// Reads the file, where there is one, and rewrites it without what is dead or torn.
    pub fn open(path: &Path) -> Result<(Self, Replay), JournalError> {
        let bytes = match fs::read(path) {
            Ok(b) => b,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(JournalError::Read(path.to_owned(), e)),
        };
        let mut live = BTreeMap::new();
        let mut replay = Replay::default();
        for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            match decode(line) {
                Some(Record::Put(e)) => {
                    live.insert(e.key.clone(), *e);
                    replay.records += 1;
                }
                Some(Record::Gone(k)) => {
                    live.remove(&k);
                    replay.records += 1;
                }
                None => replay.dropped += 1,
            }
        }
        // On a full tmpfs the old file serves: what is on it can still be undone, which makes room.
        let (file, broken) = match rewrite(path, &live) {
            Ok(file) => (file, false),
            Err(error) => (OpenOptions::new().append(true).open(path).map_err(|_| error)?, true),
        };
        let records = live.len();
        Ok((Self { path: path.to_owned(), inner: Mutex::new(Inner { file, live, records, broken }) }, replay))
    }

    /// Writes an entry, in the place of the one with the same key. On failure the old one stands.
    pub fn put(&self, entry: Entry) -> Result<(), JournalError> {
        let line = encode(&Record::Put(Box::new(entry.clone())))?;
        let mut inner = self.lock();
        let before = inner.live.insert(entry.key.clone(), entry.clone());
        let done = self.append(&mut inner, &line);
        if done.is_err() {
            match before {
                Some(b) => inner.live.insert(entry.key, b),
                None => inner.live.remove(&entry.key),
            };
        }
        done
    }

    /// Forgets an entry; one that is not there counts as forgotten. In memory it is gone whatever the file says: an entry that
    /// comes back after a restart is one whose things are gone, and is taken away again.
    pub fn remove(&self, key: &Key) -> Result<(), JournalError> {
        let line = encode(&Record::Gone(key.clone()))?;
        let mut inner = self.lock();
        if inner.live.remove(key).is_none() {
            return Ok(());
        }
        self.append(&mut inner, &line)
    }

    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.lock().live.get(key).cloned()
    }

    /// Entries of one container, by interface and role.
    pub fn of_container(&self, container_id: &str) -> Vec<Entry> {
        self.lock().live.values().filter(|e| e.key.container_id == container_id).cloned().collect()
    }

    pub fn all(&self) -> Vec<Entry> {
        self.lock().live.values().cloned().collect()
    }

    /// The last record could not be written; the next one that can mends it.
    pub fn is_broken(&self) -> bool {
        self.lock().broken
    }

    pub fn is_empty(&self) -> bool {
        self.lock().live.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held left the map whole: every change of it is one call.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, inner: &mut Inner, line: &[u8]) -> Result<(), JournalError> {
        let waste = inner.records > 2 * inner.live.len() + COMPACT_SLACK;
        if inner.broken || waste {
            inner.file = rewrite(&self.path, &inner.live)?;
            inner.records = inner.live.len();
            inner.broken = false;
            return Ok(());
        }
        plumbing::stop::step(&"before a record");
        plumbing::stop::step_after(&"half a record", || drop(inner.file.write_all(&line[..line.len() / 2])));
        if let Err(e) = inner.file.write_all(line) {
            inner.broken = true;
            return Err(JournalError::Write(self.path.clone(), e));
        }
        inner.records += 1;
        plumbing::stop::step(&"after a record");
        Ok(())
    }
}

/// A whole file of the living entries, put in the old one's place in one step.
fn rewrite(path: &Path, live: &BTreeMap<Key, Entry>) -> Result<File, JournalError> {
    let temp = path.with_extension("new");
    let write = || -> io::Result<File> {
        // Configurations may hold what is nobody else's business.
        let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        let mut out = Vec::new();
        for e in live.values() {
            out.extend(encode(&Record::Put(Box::new(e.clone()))).map_err(io::Error::other)?);
        }
        f.write_all(&out)?;
        plumbing::stop::step(&"a rewritten journal, not yet in place");
        fs::rename(&temp, path)?;
        OpenOptions::new().append(true).open(path)
    };
    write().map_err(|e| JournalError::Write(path.to_owned(), e))
}

fn encode(r: &Record) -> Result<Vec<u8>, JournalError> {
    let json = serde_json::to_vec(r).map_err(JournalError::Encode)?;
    let mut line = format!("{:016x} ", checksum(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

fn decode(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(17)?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?.trim_end(), 16).ok()?;
    if sum != checksum(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// FNV-1a: it has to tell half a line from a whole one, not to resist anybody.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(container: &str, state: State) -> Entry {
        Entry {
            key: Key::new(container, "eth0", Role::Main),
            state,
            pod: None,
            netns: Some(NetnsRef { path: "/run/netns/x".into(), dev: 4, ino: 4026532000 }),
            network: "n".into(),
            runtime: "/usr/bin/containerd".into(),
            work: Work::Main(Call {
                conf: serde_json::json!({"type": "cni-ovs", "bridge": "br1"}),
                args: String::new(),
                path: "/opt/cni/bin".into(),
                foreign_ipam: false,
                vlan: None,
                mac: None,
            }),
        }
    }

    #[test]
    fn entries_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (j, replay) = Journal::open(&path).unwrap();
        assert_eq!(replay, Replay::default());
        j.put(entry("a", State::Adding)).unwrap();
        j.put(entry("b", State::Adding)).unwrap();
        j.put(entry("a", State::Added)).unwrap();
        j.remove(&Key::new("b", "eth0", Role::Main)).unwrap();
        j.remove(&Key::new("never", "eth0", Role::Main)).unwrap();
        let (j, replay) = Journal::open(&path).unwrap();
        assert_eq!(replay, Replay { records: 4, dropped: 0 });
        assert_eq!(j.all(), [entry("a", State::Added)]);
        assert_eq!(j.of_container("a").len(), 1);
        assert!(j.of_container("b").is_empty());
    }

    #[test]
    fn a_torn_tail_leaves_the_state_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (j, _) = Journal::open(&path).unwrap();
        j.put(entry("a", State::Adding)).unwrap();
        let whole = fs::read(&path).unwrap().len();
        j.put(entry("a", State::Added)).unwrap();
        let bytes = fs::read(&path).unwrap();
        // Cut at every byte of the last record: never an error, never a wrong state.
        for cut in whole..bytes.len() - 1 {
            fs::write(&path, &bytes[..cut]).unwrap();
            let (j, replay) = Journal::open(&path).unwrap();
            assert_eq!(j.all(), [entry("a", State::Adding)], "cut at {cut}");
            assert_eq!(replay.dropped, usize::from(cut > whole));
            // And it goes on from there.
            j.put(entry("b", State::Adding)).unwrap();
            assert_eq!(Journal::open(&path).unwrap().0.all().len(), 2);
        }
    }

    #[test]
    fn the_file_does_not_grow_without_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (j, _) = Journal::open(&path).unwrap();
        j.put(entry("stays", State::Added)).unwrap();
        let one = fs::read(&path).unwrap().len();
        for i in 0..3 * COMPACT_SLACK {
            let c = format!("c{i}");
            j.put(entry(&c, State::Added)).unwrap();
            j.remove(&Key::new(&c, "eth0", Role::Main)).unwrap();
        }
        assert!(fs::read(&path).unwrap().len() < (COMPACT_SLACK + 8) * one);
        assert_eq!(Journal::open(&path).unwrap().0.all(), [entry("stays", State::Added)]);
    }

    #[test]
    fn the_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (_j, _) = Journal::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_rewritten_is_read_all_the_same_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (j, _) = Journal::open(&path).unwrap();
        j.put(entry("a", State::Added)).unwrap();
        // In the place of the new file: as a full disk, it cannot be written.
        fs::create_dir(path.with_extension("new")).unwrap();
        let (j, replay) = Journal::open(&path).unwrap();
        assert_eq!((j.all().len(), replay.records, j.is_broken()), (1, 1, true));
        assert!(j.put(entry("b", State::Adding)).is_err());
        fs::remove_dir(path.with_extension("new")).unwrap();
        j.put(entry("b", State::Adding)).unwrap();
        assert_eq!(Journal::open(&path).unwrap().0.all().len(), 2);
    }

    #[test]
    fn an_unwritable_place_is_an_error_that_names_it() {
        let e = Journal::open(Path::new("/nonexistent/journal")).unwrap_err();
        assert_eq!(e.to_string(), "failed to write journal \"/nonexistent/journal\"");
    }
}
