//! `mooring plan -f bridge.yaml`: looks at this host and prints the steps, with the same planner as the agent.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use api::mooring::BridgeOnNode;
use api::{Bridge, NodeNetwork, convert};
use model::observed::{Look, LookOvs, Scope};
use planner::node::{self, Verdict};
use plumbing::{Host, LinuxHost};
use serde_json::Value;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file with Bridges, or NodeNetworks as the controller writes them; `-` for standard input.
    #[arg(short = 'f', value_name = "FILE")]
    pub file: PathBuf,
    /// The value that this node's label `bridge.mooring.dev/<name>` has or would have: `enabled`, a config's name or a NIC's.
    #[arg(long, default_value = "enabled")]
    pub label: String,
    /// Name of this node, for `excludeNodes`.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// Where Open vSwitch's database listens.
    #[arg(long, default_value = "unix:/var/run/openvswitch/db.sock")]
    pub ovsdb: String,
}

pub async fn run(args: &Args) -> anyhow::Result<String> {
    let text = if args.file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("failed to read standard input")?
    } else {
        std::fs::read_to_string(&args.file).with_context(|| format!("failed to read {}", args.file.display()))?
    };
    let wanted = wanted(&text, args)?;
    let host = LinuxHost::new(Some(args.ovsdb.parse()?)).await?;
    let seen = host.observe(None, &Scope { host: Look::All, pod: Look::Nothing, ovs: LookOvs::All }).await?;
    let (desired, wrong) = convert::node(&wanted);
    if let Some((name, e)) = wrong.first() {
        bail!("Bridge {name}: {e}");
    }
    Ok(print(&node::plan(&desired, &seen)))
}

/// What the documents of a file ask of this node.
fn wanted(text: &str, args: &Args) -> anyhow::Result<Vec<BridgeOnNode>> {
    let mut out = Vec::new();
    for doc in serde_saphyr::from_multiple::<Value>(text).context("the file is not YAML")? {
        match doc["kind"].as_str() {
            Some("Bridge") => {
                let bridge: Bridge = serde_json::from_value(doc).context("a Bridge that cannot be read")?;
                convert::bridge(&bridge)?;
                let name = bridge.metadata.name.clone().unwrap_or_default();
                let labels = BTreeMap::from([(format!("{}{name}", api::keys::BRIDGE_LABEL_PREFIX), args.label.clone())]);
                out.extend(convert::bridge_on_node(&bridge, &args.node, &labels)?);
            }
            Some("NodeNetwork") => {
                let network: NodeNetwork = serde_json::from_value(doc).context("a NodeNetwork that cannot be read")?;
                out.extend(network.spec.bridges);
            }
            other => bail!("kind {:?} is neither Bridge nor NodeNetwork", other.unwrap_or_default()),
        }
    }
    Ok(out)
}

fn print(plan: &node::NodePlan) -> String {
    let mut out = String::new();
    for b in &plan.bridges {
        let _ = match &b.verdict {
            Verdict::Ready => writeln!(out, "bridge {}: nothing to do", b.name),
            v if b.plan.is_empty() => writeln!(out, "bridge {}: {}: {v}", b.name, v.reason()),
            _ => write!(out, "bridge {}:\n{}", b.name, b.plan),
        };
    }
    out
}
