//! The demo as a user runs it, to its end and killed in the middle.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::run;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mooring-lab"));
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    command.arg("demo").arg("--examples").arg(examples);
    command
}

/// Directories of runs that belong to this process id.
fn directory_of(pid: u32) -> Option<PathBuf> {
    run::leftovers().unwrap().into_iter().map(|r| r.dir).find(|d| d.display().to_string().contains(&format!("-{pid}-")))
}

/// The pids of the holders of a run.
fn holders(dir: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(dir.join("holders")).unwrap();
    text.lines().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect()
}

fn lives(pid: &u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

#[test]
fn the_demo_is_right_in_every_row_within_a_minute_and_leaves_nothing() {
    let began = Instant::now();
    let child = demo().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(began.elapsed() < Duration::from_secs(60), "took {:?}", began.elapsed());
    assert!(text.contains("everything is right"), "{text}");
    assert_eq!(directory_of(pid), None);
}

/// Starts the demo, waits for a line that contains `word`, sends `signal`, and returns the exit code and the run's holders.
fn interrupted(word: &str, signal: Signal) -> (Option<i32>, u32, Vec<u32>) {
    let mut child = demo().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().contains(word)), "the demo ended before {word:?}");
    let holders = holders(&directory_of(child.id()).unwrap());
    assert!(holders.len() >= 6 && holders.iter().all(lives));
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    // Whatever it still prints must not block it.
    std::thread::spawn(move || lines.for_each(drop));
    let status = child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while holders.iter().any(lives) {
        assert!(Instant::now() < deadline, "machines outlive the demo");
        std::thread::sleep(Duration::from_millis(20));
    }
    (status.code(), child.id(), holders)
}

#[test]
fn an_interrupted_demo_removes_everything_itself() {
    let (code, pid, _) = interrupted("labelled", Signal::SIGTERM);
    assert_eq!(code, Some(130));
    assert_eq!(directory_of(pid), None);
}

#[test]
fn a_killed_demo_leaves_one_directory_that_clean_removes() {
    let (code, pid, _) = interrupted("labelled", Signal::SIGKILL);
    assert_eq!(code, None);
    let dir = directory_of(pid).expect("nobody could remove it");
    run::clean().unwrap();
    assert!(!dir.exists());
}
