//! `mooring show`: what there is, with the columns of `kubectl get`; for pools also where the other addresses are.

use api::mooring::{Bridge, NodeNetwork};
use api::{SpiderEndpoint, SpiderIPPool};
use clap::ValueEnum;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::table::{self, row};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// All of them when none is named.
    #[arg(value_enum)]
    pub what: Vec<What>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    Bridges,
    Nodes,
    Pools,
    Endpoints,
}

const ALL: [What; 4] = [What::Bridges, What::Nodes, What::Pools, What::Endpoints];

pub async fn run(client: Client, args: &Args) -> anyhow::Result<String> {
    let what = if args.what.is_empty() { &ALL[..] } else { &args.what };
    let mut out = Vec::new();
    for w in what {
        out.push(match w {
            What::Bridges => bridges(&client).await?,
            What::Nodes => nodes(&client).await?,
            What::Pools => pools(&client).await?,
            What::Endpoints => endpoints(&client).await?,
        });
    }
    Ok(out.join("\n"))
}

async fn bridges(client: &Client) -> anyhow::Result<String> {
    let mut rows = vec![row!["NAME", "READY", "DESIRED", "FAILED", "UPLINK"]];
    for b in Api::<Bridge>::all(client.clone()).list(&ListParams::default()).await? {
        let s = b.status.clone().unwrap_or_default();
        rows.push(row![b.name_any(), s.ready, s.desired, s.failed, s.uplink.unwrap_or_default()]);
        for n in s.nodes {
            rows.push(row![format!("  {}", n.node), "", "", n.reason, n.message]);
        }
    }
    Ok(table::print(&rows))
}

async fn nodes(client: &Client) -> anyhow::Result<String> {
    let mut rows = vec![row!["NODE", "BRIDGE", "PHASE", "UPLINK", "PORTS", "PODS", "REASON"]];
    for n in Api::<NodeNetwork>::all(client.clone()).list(&ListParams::default()).await? {
        let name = n.name_any();
        let status = n.status.unwrap_or_default();
        if status.bridges.is_empty() {
            rows.push(row![name, "", "", "", "", "", ""]);
        }
        for b in status.bridges {
            let why = [b.reason, b.message].into_iter().flatten().collect::<Vec<_>>().join(": ");
            rows.push(row![name, b.name, format!("{:?}", b.phase), b.uplink.join(","), b.ports, b.attachments, why]);
        }
    }
    Ok(table::print(&rows))
}

async fn pools(client: &Client) -> anyhow::Result<String> {
    let mut rows = vec![row![
        "NAME",
        "VERSION",
        "SUBNET",
        "ALLOCATED-IP-COUNT",
        "TOTAL-IP-COUNT",
        "DEFAULT",
        "DISABLE",
        "FREE",
        "SPARE",
        "KEPT",
        "UNREACHABLE",
        "QUARANTINED"
    ]];
    for p in Api::<SpiderIPPool>::all(client.clone()).list(&ListParams::default()).await? {
        let s = p.status.clone().unwrap_or_default();
        let number = |n: Option<i64>| n.map(|n| n.to_string()).unwrap_or_default();
        rows.push(row![
            p.name_any(),
            number(s.ip_version),
            p.spec.subnet,
            number(s.allocated_ip_count),
            number(s.total_ip_count),
            p.spec.default,
            p.spec.disable,
            number(s.free_ip_count),
            number(s.spare_ip_count),
            number(s.kept_ip_count),
            number(s.unreachable_ip_count),
            number(s.quarantined_ip_count)
        ]);
    }
    Ok(table::print(&rows))
}

async fn endpoints(client: &Client) -> anyhow::Result<String> {
    let mut rows = vec![row!["NAMESPACE", "NAME", "INTERFACE", "IPV4POOL", "IPV4", "IPV6POOL", "IPV6", "NODE"]];
    for e in Api::<SpiderEndpoint>::all(client.clone()).list(&ListParams::default()).await? {
        let Some(status) = &e.status else { continue };
        let text = |o: &Option<String>| o.clone().unwrap_or_default();
        for nic in &status.current.ips {
            rows.push(row![
                e.namespace().unwrap_or_default(),
                e.name_any(),
                nic.interface,
                text(&nic.ipv4_pool),
                text(&nic.ipv4),
                text(&nic.ipv6_pool),
                text(&nic.ipv6),
                status.current.node
            ]);
        }
    }
    Ok(table::print(&rows))
}
