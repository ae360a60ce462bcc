//! Another kernel on this machine: Debian 12's Linux 6.1 as a plain process (user-mode Linux, package `user-mode-linux`; see
//! Documentation/virt/uml in the kernel's tree) on this machine's own files. It does not know what is run on it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::run::Run;
use crate::space::{Inside, Space};

const KERNEL: &str = "/usr/bin/linux.uml";
/// `<release>/kernel/...`, as below `/lib/modules`.
const MODULES: &str = "/usr/lib/uml/modules";
/// What the lab and the product use of it: none is built in.
const WANTED: &str = "overlay veth macvlan dummy tun bridge openvswitch nf_tables nft_compat";
/// The guest's own, so that nothing is written to the host.
const OWN: [&str; 3] = ["/run", "/tmp", "/mnt"];

/// How a script ended, and what it printed to both of its outputs.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub said: String,
}

/// Boots the kernel inside a machine of the lab of its own, so that nothing outlives it, and runs `script` there by sh as root.
/// The guest sees this machine's root file system read-only but for `/run`, `/tmp` and `/mnt`, which are its memory; of those it
/// sees the directories `seen`.
///
/// # Errors
/// The package is not there, the kernel did not get to the script, or that was not done after `limit`.
pub fn run(exe: &Path, seen: &[&Path], script: &str, limit: Duration) -> Result<Ended> {
    ensure!(Path::new(KERNEL).exists(), "no {KERNEL}: scripts/deps.sh lab installs it");
    let run = Run::start()?;
    let space = Space::start(&run, exe, "guest")?;
    let out = run.dir().join("out");
    fs::create_dir(&out)?;
    let mut init = String::from("#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n");
    init.push_str("mount -t proc proc /proc; mount -t sysfs sysfs /sys; mkdir -p /dev/shm /dev/pts\n");
    init.push_str("mount -t tmpfs tmpfs /dev/shm; mount -t devpts devpts /dev/pts\n");
    init.push_str(&format!("for d in {}; do mount -t tmpfs tmpfs $d; done\n", OWN.join(" ")));
    for dir in seen.iter().copied().chain([out.as_path()]).filter(|d| OWN.iter().any(|own| d.starts_with(own))) {
        init.push_str(&format!("mkdir -p '{0}'; mount -t hostfs none '{0}' -o '{0}'\n", dir.display()));
    }
    init.push_str(&format!(
        "exec >'{out}/said' 2>&1\nmkdir -p /run/lock /mnt/lib; ln -s {MODULES} /mnt/lib/modules\n\
         for m in {WANTED}; do modprobe -d /mnt $m || echo \"no module $m\"; done\nip link set lo up\n\
         sh -e '{out}/script'; echo $? >'{out}/status'; sync; busybox poweroff -f\n",
        out = out.display()
    ));
    fs::write(out.join("script"), script)?;
    let path = run.dir().join("init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;

    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", &limit.as_secs().to_string(), KERNEL, "mem=3G", "root=/dev/root", "rootfstype=hostfs"]);
    command.args(["rootflags=/", "ro", "con=null", "con0=null,fd:1", "ssl=null", "umid=guest", "quiet", "panic=-1"]);
    command.arg(format!("uml_dir={}", run.dir().display())).arg(format!("init={}", path.display()));
    let console = fs::File::create(run.log("guest-console"))?;
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    let ended = space.spawn(Inside::All, &mut command)?.wait()?;

    let said = String::from_utf8_lossy(&fs::read(out.join("said")).unwrap_or_default()).into_owned();
    match fs::read_to_string(out.join("status")) {
        Ok(status) => Ok(Ended { status: status.trim().parse().context("no status")?, said }),
        Err(_) => {
            let console = fs::read(run.log("guest-console")).context("the guest printed nothing")?;
            bail!("the guest ended ({ended}) before its script:\n{said}\n{}", String::from_utf8_lossy(&console))
        }
    }
}

/// A script that starts a program as it would be started here: in this directory, with these arguments, and with what the
/// environment says to tests.
///
/// # Errors
/// The directory is gone.
pub fn script_of(program: &Path, args: &[String]) -> Result<String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let for_tests = |name: &str| ["MOORING_", "CARGO_MANIFEST_", "RUST_BACKTRACE", "VECTOR"].iter().any(|p| name.starts_with(p));
    let mut script = format!("cd {}\n", quoted(&std::env::current_dir()?.to_string_lossy()));
    for (name, value) in std::env::vars().filter(|(name, _)| for_tests(name)) {
        script.push_str(&format!("export {name}={}\n", quoted(&value)));
    }
    script.push_str(&format!("exec {}", quoted(&program.to_string_lossy())));
    for arg in args {
        script.push_str(&format!(" {}", quoted(arg)));
    }
    script.push('\n');
    Ok(script)
}
