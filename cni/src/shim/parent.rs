//! Which runtime executed this plugin: the program of the nearest ancestor that is no CNI plugin itself. Two runtimes on one
//! host may use one network, and GC is only about the attachments of the one that calls. Knows /proc.

use std::fs;
use std::path::{Path, PathBuf};

/// A plugin that delegates stands between; a chain of more is none that anybody runs.
const MAX_DEPTH: usize = 4;

/// Path of the runtime's program; empty where it cannot be told, which is nobody's.
pub fn runtime(cni_path: &str) -> String {
    let mut pid = std::os::unix::process::parent_id();
    for _ in 0..MAX_DEPTH {
        let Some(program) = program(pid) else { break };
        if !is_plugin(&program, cni_path) {
            return program.to_string_lossy().into_owned();
        }
        match parent(pid) {
            Some(p) if p > 0 => pid = p,
            _ => break,
        }
    }
    String::new()
}

/// An upgrade replaces the file while the process runs.
fn program(pid: u32) -> Option<PathBuf> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let text = exe.to_str()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

/// The directories are compared as files: /opt may be a link.
fn is_plugin(program: &Path, cni_path: &str) -> bool {
    let Some(dir) = program.parent() else { return false };
    cni_path.split(':').filter(|d| !d.is_empty()).any(|d| fs::canonicalize(d).is_ok_and(|d| d == dir))
}

/// Field 4 of proc_pid_stat(5), after the name in parentheses, which may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// This process, so that another one can ask whether it still runs: `<pid>/<start time>`.
pub fn this_process() -> String {
    let pid = std::process::id();
    format!("{pid}/{}", start_time(pid).unwrap_or_default())
}

/// Whether a process of `this_process` still runs.
pub fn is_running(process: &str) -> bool {
    let Some((pid, start)) = process.split_once('/') else { return false };
    pid.parse().ok().and_then(start_time).is_some_and(|s| s == start)
}

/// Field 22 of proc_pid_stat(5): a pid comes back, with another time.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_is_the_first_ancestor_that_is_no_plugin() {
        let parent_exe = program(std::os::unix::process::parent_id()).unwrap();
        assert_eq!(runtime("/opt/cni/bin"), parent_exe.to_str().unwrap());
        // With the parent's own directory as CNI_PATH it is a plugin, and somebody further up counts.
        assert_ne!(runtime(parent_exe.parent().unwrap().to_str().unwrap()), parent_exe.to_str().unwrap());
    }

    #[test]
    fn a_process_runs_until_it_ends() {
        assert!(is_running(&this_process()));
        assert!(!is_running(&format!("{}/1", std::process::id())));
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let name = format!("{}/{}", child.id(), start_time(child.id()).unwrap_or_default());
        child.wait().unwrap();
        assert!(!is_running(&name));
        for odd in ["", "x", "x/y", "1"] {
            assert!(!is_running(odd), "{odd:?}");
        }
    }
}
