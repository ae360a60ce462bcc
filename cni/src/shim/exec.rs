//! Executing another plugin: found in `CNI_PATH`, fed, waited for with a limit. Knows nothing of why.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::wire::{Exec, ExecDone};

/// A delegate may itself wait (a DHCP client's first lease takes up to a minute), and the runtime waits longer: kubelet's
/// limit for a sandbox is 4 minutes.
pub const LIMIT: Duration = Duration::from_secs(90);
/// How much of a plugin's output we keep; a result is a few kilobytes.
const STDOUT_MAX: u64 = 1024 * 1024;
const STDERR_MAX: usize = 4096;

/// The first executable of that name in `path`'s directories.
pub fn find(plugin: &str, path: &str) -> Option<PathBuf> {
    if plugin.is_empty() || plugin.contains('/') || plugin == "." || plugin == ".." {
        return None;
    }
    path.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(plugin)).find(|p| p.is_file())
}

/// Runs it. Never an error of ours: whatever happens is told in the answer.
pub fn run(call: &Exec, limit: Duration) -> ExecDone {
    let Some(file) = find(&call.plugin, &call.path) else {
        return ExecDone { missing: true, stderr: format!("looked in {:?}", call.path), ..ExecDone::default() };
    };
    let failed = |what: &str, e: std::io::Error| ExecDone {
        stderr: format!("failed to {what} {}: {e}", file.display()),
        ..ExecDone::default()
    };
    let spawned = Command::new(&file)
        .env("CNI_COMMAND", call.command.as_str())
        .env("CNI_CONTAINERID", &call.container_id)
        .env("CNI_NETNS", call.netns.as_deref().unwrap_or_default())
        .env("CNI_IFNAME", &call.ifname)
        .env("CNI_ARGS", &call.args)
        .env("CNI_PATH", &call.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(c) => c,
        Err(e) => return failed("execute", e),
    };
    // One thread each, so that neither pipe can fill up and stop the plugin. They end when the plugin closes its ends.
    let stdin = child.stdin.take();
    let input = call.stdin.to_string();
    std::thread::spawn(move || {
        if let Some(mut pipe) = stdin {
            // A plugin that does not read its input (VERSION) breaks the pipe; its answer counts.
            let _ = pipe.write_all(input.as_bytes());
        }
    });
    let (tx, rx) = std::sync::mpsc::channel();
    let mut readers = 0;
    for (is_stderr, pipe) in [
        (false, child.stdout.take().map(|p| Box::new(p) as Box<dyn Read + Send>)),
        (true, child.stderr.take().map(|p| Box::new(p) as Box<dyn Read + Send>)),
    ] {
        let Some(pipe) = pipe else { continue };
        readers += 1;
        let tx = tx.clone();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before an error is still worth something.
            let _ = pipe.take(STDOUT_MAX).read_to_end(&mut text);
            let _ = tx.send((is_stderr, text));
        });
    }
    let deadline = Instant::now() + limit;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    for _ in 0..readers {
        // Both pipes end with the plugin (or with whoever it handed them to: then the limit counts).
        match rx.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((false, text)) => stdout = text,
            Ok((true, text)) => stderr = text,
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                let stderr = format!("plugin {} did not end within {} s and was killed", file.display(), limit.as_secs_f32());
                return ExecDone { stderr, ..ExecDone::default() };
            }
        }
    }
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => {
                let _ = child.kill();
                match child.wait() {
                    Ok(status) => break status,
                    Err(e) => return failed("wait for", e),
                }
            }
            Err(e) => return failed("wait for", e),
        }
    };
    let tail = stderr.len().saturating_sub(STDERR_MAX);
    ExecDone {
        ok: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr[tail..]).into_owned(),
        code: status.code(),
        missing: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_names_are_not_paths() {
        for bad in ["", ".", "..", "../sh", "/bin/sh"] {
            assert_eq!(find(bad, "/bin:/usr/bin"), None, "{bad:?}");
        }
        assert_eq!(find("no-such-plugin", "/bin"), None);
        assert_eq!(find("sh", "::/bin"), Some(PathBuf::from("/bin/sh")));
    }
}
