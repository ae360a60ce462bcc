//! The agent's identity: a UUID on the node's disk. A node of the same name with another disk is another agent.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Name of the file in the state directory.
pub const FILE: &str = "agent-id";

#[derive(Debug, thiserror::Error)]
pub enum AgentIdError {
    #[error("failed to read {0:?}")]
    Read(PathBuf, #[source] io::Error),
    #[error("failed to write {0:?}")]
    Write(PathBuf, #[source] io::Error),
    #[error("{0:?} holds {1:?}, which is no UUID: remove the file only if nothing on this node has an address of a pool")]
    Content(PathBuf, String),
}

/// Reads the id, or makes one. The file appears whole or not at all, and of two makers one wins.
pub fn load(state_dir: &Path) -> Result<Uuid, AgentIdError> {
    let path = state_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(s) => return s.trim().parse().map_err(|_| AgentIdError::Content(path, s)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(AgentIdError::Read(path, e)),
    }
    let write = |e| AgentIdError::Write(path.clone(), e);
    fs::create_dir_all(state_dir).map_err(write)?;
    let id = Uuid::new_v4();
    let temp = state_dir.join(format!("{FILE}.{id}"));
    let mut f = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(write)?;
    f.write_all(format!("{id}\n").as_bytes()).and_then(|()| f.sync_all()).map_err(write)?;
    // A hard link fails where the name exists; a rename would replace what another one made meanwhile.
    let linked = fs::hard_link(&temp, &path);
    fs::remove_file(&temp).map_err(write)?;
    match linked {
        Ok(()) => {
            fs::File::open(state_dir).and_then(|d| d.sync_all()).map_err(write)?;
            Ok(id)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => load(state_dir),
        Err(e) => Err(write(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("mooring");
        let id = load(&state).unwrap();
        assert_eq!(load(&state).unwrap(), id);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_not_replaced_silently() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "").unwrap();
        let e = load(dir.path()).unwrap_err();
        assert!(e.to_string().contains("which is no UUID"), "{e}");
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), b"");
    }
}
