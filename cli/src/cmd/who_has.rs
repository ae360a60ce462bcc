//! `mooring who-has IP`: one GET by name.

use std::fmt::Write;
use std::net::IpAddr;

use api::mooring::{AddressLease, lease_name};
use kube::{Api, Client, ResourceExt};

#[derive(Debug, clap::Args)]
pub struct Args {
    pub ip: IpAddr,
    /// L2 domain of the pool (its annotation mooring.dev/l2-domain).
    #[arg(long, default_value = api::keys::DEFAULT_L2_DOMAIN)]
    pub domain: String,
}

pub async fn run(client: Client, args: &Args) -> anyhow::Result<String> {
    let name = lease_name(&args.domain, args.ip);
    let Some(lease) = Api::<AddressLease>::all(client).get_opt(&name).await? else {
        return Ok(format!("nobody has {} in L2 domain {}: there is no AddressLease {name}\n", args.ip, args.domain));
    };
    Ok(describe(args.ip, &lease))
}

fn describe(ip: IpAddr, lease: &AddressLease) -> String {
    let s = &lease.spec;
    let mut out = String::new();
    let _ = match &s.holder {
        Some(h) => writeln!(out, "{ip} is {} of pod {}/{}", h.interface, h.pod_namespace, h.pod_name),
        None if s.quarantine.is_some() => writeln!(out, "{ip} has no holder; it is quarantined, because a stranger uses it"),
        None if s.node.is_empty() => writeln!(out, "{ip} has no holder; it is kept for its identity"),
        None if s.released_at.is_some() => writeln!(out, "{ip} has no holder; it rests on its node, for the next pod there"),
        None => writeln!(out, "{ip} has no holder; its node keeps it as a spare"),
    };
    let mut line = |what: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {what:<10} {value}");
        }
    };
    line("pool", &s.pool);
    line("node", &s.node);
    line("agent", &s.agent_id);
    if let Some(h) = &s.holder {
        line("pod uid", &h.pod_uid);
        line("container", &h.container_id);
    }
    if let Some(i) = &s.identity {
        line("identity", &format!("{:?} {}/{} {}", i.kind, i.namespace, i.name, i.interface));
    }
    if let Some(q) = &s.quarantine {
        line("stranger", q.mac.as_deref().unwrap_or("of unknown hardware address"));
        line("seen by", &format!("node {} at {}", q.node, q.at));
    }
    if let Some(seen) = &s.sighting {
        let who = seen.mac.as_deref().map_or("nobody answers for it".to_owned(), |mac| format!("{mac} answers for it"));
        line("segment", &format!("{who}; asked by node {} at {}, for its own node is deleted", seen.node, seen.at));
    }
    if let Some(w) = &s.wanted {
        line("wanted by", &format!("pod {}/{} on {}", w.pod_namespace, w.pod_name, w.node));
    }
    line("released", s.released_at.as_deref().unwrap_or_default());
    if lease.annotations().contains_key(api::keys::RELEASED) {
        line("", "its node was declared dead (mooring release)");
    }
    if let Some(t) = &lease.metadata.creation_timestamp {
        line("since", &t.0.to_string());
    }
    line("lease", &lease.name_any());
    out
}
