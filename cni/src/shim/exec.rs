//! Executing another plugin: found in `CNI_PATH`, fed, waited for with a limit. Knows nothing of why.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::PidfdFlags;

use crate::wire::{Exec, ExecDone};

/// A delegate may itself wait (a DHCP client's first lease takes up to a minute), and the runtime waits longer: kubelet's
/// limit for a sandbox is 4 minutes.
pub const LIMIT: Duration = Duration::from_secs(90);
/// How much of a plugin's output we keep; a result is a few kilobytes.
const STDOUT_MAX: usize = 1024 * 1024;
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
    let failed = |what: &str, e: io::Error| ExecDone {
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
    let deadline = Instant::now() + limit;
    let killed = |mut child: Child| {
        let _ = child.kill();
        let _ = child.wait();
        let stderr = format!("plugin {} did not end within {} s and was killed", file.display(), limit.as_secs_f32());
        ExecDone { stderr, ..ExecDone::default() }
    };
    let heard = talk(&mut child, call.stdin.to_string().as_bytes(), deadline).and_then(|said| match said {
        // Both pipes end with the plugin, or with whoever it handed them to: then the limit counts.
        Some(said) => Ok(ended(&mut child, deadline)?.then_some(said)),
        None => Ok(None),
    });
    let (stdout, stderr) = match heard {
        Ok(Some(said)) => said,
        Ok(None) => return killed(child),
        Err(e) => {
            killed(child);
            return failed("talk to", e);
        }
    };
    let status = match child.wait() {
        Ok(status) => status,
        Err(e) => return failed("wait for", e),
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

/// What a plugin says, on standard output and on standard error, while it is fed: all at once, so that no pipe fills up and stops
/// it. None: it had not closed its ends by the deadline.
fn talk(child: &mut Child, input: &[u8], deadline: Instant) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(pipe) = &stdin {
        // Only this one: a pipe that has room may still have too little.
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let (mut input, mut out, mut err) = (input, Vec::new(), Vec::new());
    while stdout.is_some() || stderr.is_some() {
        let fds = [
            stdin.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLOUT)),
            stdout.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)),
            stderr.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)),
        ];
        let asked = fds.each_ref().map(Option::is_some);
        let mut open: Vec<PollFd<'_>> = fds.into_iter().flatten().collect();
        if !wait_for(&mut open, deadline)? {
            return Ok(None);
        }
        let mut ready = open.iter().map(|p| p.any().unwrap_or(true));
        let [feed, read_out, read_err] = asked.map(|asked| asked && ready.next().unwrap_or(false));
        if feed && let Some(pipe) = &mut stdin {
            match pipe.write(input) {
                Ok(n) => input = &input[n..],
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // A plugin that does not read its input (VERSION) breaks the pipe; its answer counts.
                Err(_) => input = &[],
            }
            if input.is_empty() {
                stdin = None;
            }
        }
        if read_out && !more(&mut stdout, &mut out) {
            stdout = None;
        }
        if read_err && !more(&mut stderr, &mut err) {
            stderr = None;
        }
    }
    Ok(Some((out, err)))
}

/// Reads once; false at the end, and where it is enough. What was read before an error is still worth something.
fn more(pipe: &mut Option<impl Read>, text: &mut Vec<u8>) -> bool {
    let Some(pipe) = pipe else { return false };
    let mut part = [0; 4096];
    let room = part.len().min(STDOUT_MAX - text.len());
    match pipe.read(&mut part[..room]) {
        Ok(0) => false,
        Ok(n) => {
            text.extend(&part[..n]);
            text.len() < STDOUT_MAX
        }
        Err(e) => e.kind() == ErrorKind::Interrupted,
    }
}

/// Whether the process had ended by the deadline.
fn ended(child: &mut Child, deadline: Instant) -> io::Result<bool> {
    match rustix::process::pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty()) {
        Ok(process) => wait_for(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], deadline),
        // Linux before 5.3: looked at each millisecond, for it closed its ends and is about to end.
        Err(rustix::io::Errno::NOSYS) => loop {
            match child.try_wait()? {
                Some(_) => return Ok(true),
                None if Instant::now() >= deadline => return Ok(false),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        },
        Err(e) => Err(e.into()),
    }
}

/// Whether one of them was ready by the deadline.
fn wait_for(fds: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, else it would spin through the last millisecond.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(fds, timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
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
