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

/// Boots the kernel inside a machine of the lab of its own, so that nothing outlives it, runs `script` there by sh as root, and
/// returns what it printed. The guest sees the machine's root file system read-only, `/run` and `/tmp` are its memory, and each
/// of `dirs`, a directory of the host's, is `/mnt/<name>` to it.
///
/// # Errors
/// The package is not there, the script failed (with what it printed) or was not done after `limit`.
pub fn run(exe: &Path, dirs: &[(&str, &Path)], script: &str, limit: Duration) -> Result<String> {
    ensure!(Path::new(KERNEL).exists(), "no {KERNEL}: scripts/deps.sh lab installs it");
    let run = Run::start()?;
    let space = Space::start(&run, exe, "guest")?;
    let out = run.dir().join("out");
    fs::create_dir(&out)?;
    let mut init = String::from(
        "#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; for d in /run /mnt; do mount -t tmpfs tmpfs $d; done; mkdir -p /run/m/lib /run/lock\n",
    );
    for (name, dir) in dirs.iter().copied().chain([("out", out.as_path())]) {
        init.push_str(&format!("mkdir /mnt/{name}; mount -t hostfs none /mnt/{name} -o '{}'\n", dir.display()));
    }
    init.push_str(&format!(
        "mount -t tmpfs tmpfs /tmp\nexec >/mnt/out/said 2>&1\nln -s {MODULES} /run/m/lib/modules\n\
         for m in {WANTED}; do modprobe -d /run/m $m || echo \"no module $m\"; done\nip link set lo up\n\
         sh -e /mnt/out/script; echo $? >/mnt/out/status; sync; halt -f\n"
    ));
    fs::write(out.join("script"), script)?;
    let path = run.dir().join("init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;

    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", &limit.as_secs().to_string(), KERNEL, "mem=2G", "root=/dev/root", "rootfstype=hostfs"]);
    command.args(["rootflags=/", "ro", "con=null", "con0=null,fd:1", "ssl=null", "umid=guest", "quiet", "panic=-1"]);
    command.arg(format!("uml_dir={}", run.dir().display())).arg(format!("init={}", path.display()));
    let console = fs::File::create(run.log("guest-console"))?;
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    let ended = space.spawn(Inside::All, &mut command)?.wait()?;

    let said = String::from_utf8_lossy(&fs::read(out.join("said")).unwrap_or_default()).into_owned();
    match fs::read_to_string(out.join("status")).ok().as_deref().map(str::trim) {
        Some("0") => Ok(said),
        Some(status) => bail!("the guest's script ended with {status}:\n{said}"),
        None => {
            let console = fs::read(run.log("guest-console")).context("the guest printed nothing")?;
            bail!("the guest ended ({ended}) before its script:\n{said}\n{}", String::from_utf8_lossy(&console))
        }
    }
}
