//! The end of every test of the lab: the leak oracle, a program that knows nothing of ours, looks at all nodes and the API.
//! Here is only how it is started.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::kube::ADMIN;
use crate::lab::Lab;
use crate::product::{Product, program};

/// How long something may still be on its way on a busy machine; on an idle one it is there after a second or two.
const PATIENCE: u64 = 60;

/// Nothing is duplicate, leaked or stale, soon at the latest.
///
/// # Errors
/// Something stays so: a line each.
pub fn silent(lab: &Lab, product: &Product) -> Result<()> {
    settled(lab, product, PATIENCE)
}

/// As [`silent`], with another patience.
///
/// # Errors
/// As there.
pub fn settled(lab: &Lab, product: &Product, seconds: u64) -> Result<()> {
    let mut command = command(lab, seconds)?;
    for nic in ["net6", "net172"] {
        command.arg("--wire").arg(format!("{}:{nic}", lab.router.pid()));
    }
    match product.kube() {
        None => command.arg("--api-socket").arg(&product.socket),
        Some(kube) => {
            let inside = format!("nsenter -t {} -n", lab.control.pid());
            command.arg("--api-command").arg(format!("{inside} {} get --raw", kube.command(ADMIN)))
        }
    };
    judge(command)
}

/// Nodes with plugins and no agent, and no API: what a runtime did there is undone, but for the lines of an earlier
/// [`said_alone`].
///
/// # Errors
/// As [`silent`].
pub fn silent_alone(lab: &Lab, known: &[String]) -> Result<()> {
    judge(alone(lab, 20, known)?)
}

/// What it says of such nodes at this moment, a line each.
///
/// # Errors
/// It cannot look.
pub fn said_alone(lab: &Lab) -> Result<Vec<String>> {
    let output = alone(lab, 0, &[])?.output().context("failed to start the oracle")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(matches!(output.status.code(), Some(0 | 1)), "the oracle cannot look: {err}");
    Ok(out.lines().map(str::to_owned).collect())
}

fn alone(lab: &Lab, seconds: u64, known: &[String]) -> Result<Command> {
    let mut command = command(lab, seconds)?;
    command.arg("--no-api").args(known.iter().map(|line| format!("--known={line}")));
    Ok(command)
}

fn command(lab: &Lab, seconds: u64) -> Result<Command> {
    let mut command = Command::new(program(lab, "mooring-oracle")?);
    command.arg("--settle").arg(seconds.to_string());
    for node in &lab.nodes {
        command.arg("--node").arg(format!("{}={}", node.name(), node.space.pid()));
    }
    Ok(command)
}

fn judge(mut command: Command) -> Result<()> {
    let output = command.output().context("failed to start the oracle")?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("the oracle says:\n{out}{err}");
    }
    Ok(())
}
