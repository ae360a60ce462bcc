//! `mooring release --node N`: declares by hand that a node is dead, so that its addresses may be given to others. Marks the
//! leases that its agents have now; the controller takes them away. An agent that comes later under the same node name keeps
//! what it takes.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use anyhow::{Context, bail};
use api::keys;
use api::mooring::AddressLease;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's name; its Node object need not be there any more.
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Also where the Node is ready, and addresses that somebody on the segment still answers for: pods that run lose their
    /// addresses to others.
    #[arg(long)]
    pub force: bool,
}

/// Requests in flight: a node's 250 leases take a second, and the API server has other work.
const AT_ONCE: usize = 8;

pub async fn run(client: Client, args: &Args) -> anyhow::Result<String> {
    let node = Api::<Node>::all(client.clone()).get_opt(&args.node).await?;
    if node.as_ref().is_some_and(is_ready) && !args.force {
        bail!(
            "node {} is ready: its pods would lose their addresses to others while they run. Shut it down first, or say --force",
            args.node
        );
    }
    let api = Api::<AddressLease>::all(client);
    let all = api.list(&ListParams::default()).await?.items;
    let mine: Vec<AddressLease> = all.into_iter().filter(|l| l.spec.node == args.node).collect();
    if mine.is_empty() {
        return Ok(format!("node {} has no address\n", args.node));
    }
    // A machine that answers is not dead.
    let used: Vec<String> = mine.iter().filter_map(still_used).collect();
    if !used.is_empty() && !args.force {
        bail!(
            "{} addresses of node {} are still used: {}. Shut it down first, or say --force",
            used.len(),
            args.node,
            used.join(", ")
        );
    }
    let held = mine.iter().filter(|l| l.spec.holder.is_some()).count();
    let fixed = mine.iter().filter(|l| l.spec.identity.is_some()).count();
    let what = format!("{} addresses ({held} of pods, {fixed} stay with their identities)", mine.len());
    if !args.yes {
        let there = if node.is_some() { "is not ready" } else { "does not exist any more" };
        let text = format!("Node {} {there}. Declare it dead and release its {what}? Say yes: ", args.node);
        if !confirmed(&text)? {
            bail!("nothing was released");
        }
    }
    let marked = stream::iter(&mine).map(|l| mark(&api, l)).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    let failed: Vec<String> = marked.into_iter().filter_map(|done| done.err().map(|e| format!("{e:#}"))).collect();
    if let Some(first) = failed.first() {
        bail!("{} of {} addresses could not be released, run it again: {first}", failed.len(), mine.len());
    }
    let mut out = String::new();
    writeln!(out, "released {what} of node {}; the controller takes them back", args.node)?;
    Ok(out)
}

fn still_used(l: &AddressLease) -> Option<String> {
    let seen = l.spec.sighting.as_ref()?;
    Some(format!("{} by {} (node {} at {})", l.spec.address, seen.mac.as_ref()?, seen.node, seen.at))
}

fn is_ready(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let away = taints.iter().any(|t| keys::TAINTS_UNREACHABLE.contains(&t.key.as_str()) || t.key == keys::TAINT_OUT_OF_SERVICE);
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    !away && conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn confirmed(text: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("there is no terminal to ask at: say --yes");
    }
    eprint!("{text}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    input.read_line(&mut line).context("failed to read the answer")?;
    Ok(line.trim() == "yes")
}

/// Only as it was seen: what another agent has taken meanwhile is not the dead node's.
async fn mark(api: &Api<AddressLease>, l: &AddressLease) -> anyhow::Result<()> {
    let patch = json!({ "metadata": {
        "resourceVersion": l.resource_version(),
        "annotations": { keys::RELEASED: l.spec.agent_id },
    }});
    match api.patch(&l.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
        Err(e) => Err(e).with_context(|| format!("lease {}", l.name_any())),
    }
}
