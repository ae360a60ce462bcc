//! `mooring free POOL`: what can be given out, less the leases, as ranges. From the pool and its leases, not from the PoolMap,
//! which is a hint and a window.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Context, bail};
use api::mooring::{AddressLease, lease::parse_lease_name};
use api::{SpiderIPPool, SpiderReservedIP, convert};
use ipam::{Family, Ranges};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

#[derive(Debug, clap::Args)]
pub struct Args {
    pub pool: String,
}

/// Ranges that are printed; a pool in heavy use has thousands.
const MAX_RANGES: usize = 100;

pub async fn run(client: Client, args: &Args) -> anyhow::Result<String> {
    let all = Api::<SpiderIPPool>::all(client.clone()).list(&ListParams::default()).await?.items;
    let Some(object) = all.iter().find(|p| p.name_any() == args.pool) else { bail!("there is no SpiderIPPool {}", args.pool) };
    let pool = convert::pool(object).with_context(|| format!("SpiderIPPool {} cannot be used", args.pool))?;
    let reserved = Api::<SpiderReservedIP>::all(client.clone()).list(&ListParams::default()).await?.items;
    let pools = convert::pools(&all, &reserved).pools;
    let leases = Api::<AddressLease>::all(client).list(&ListParams::default()).await?.items;
    let in_domain = leases.iter().filter_map(|l| {
        let name = l.name_any();
        let (domain, ip) = parse_lease_name(&name).ok()?;
        (domain == pool.domain).then_some((ip, l))
    });
    let leased: Vec<(IpAddr, &AddressLease)> = in_domain.collect();
    let family = Family::of_net(&pool.subnet);
    let allocatable = pools.allocatable(&args.pool).context("the pool was not counted")?;
    let free = allocatable.subtract(&Ranges::of_ips(family, leased.iter().map(|(ip, _)| *ip)));
    let mut out = String::new();
    writeln!(out, "{} of {} addresses of {} are free", free.len(), allocatable.len(), args.pool)?;
    let of_pool = leased.iter().filter(|(ip, _)| allocatable.contains(*ip)).map(|(_, l)| state(l));
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for s in of_pool {
        *others.entry(s).or_default() += 1;
    }
    if !others.is_empty() {
        let list: Vec<String> = others.iter().map(|(what, n)| format!("{n} {what}")).collect();
        writeln!(out, "of the others {}", list.join(", "))?;
    }
    for o in pools.overlaps(&args.pool) {
        writeln!(out, "{} belongs to the older pool {}", o.shared, o.older)?;
    }
    let text = free.to_string();
    let ranges: Vec<&str> = text.split(',').filter(|r| !r.is_empty()).collect();
    for r in ranges.iter().take(MAX_RANGES) {
        writeln!(out, "{r}")?;
    }
    if ranges.len() > MAX_RANGES {
        writeln!(out, "... and {} more ranges", ranges.len() - MAX_RANGES)?;
    }
    Ok(out)
}

/// What a lease without a holder is there for.
fn state(l: &AddressLease) -> &'static str {
    let s = &l.spec;
    match &s.holder {
        Some(_) => "are in use",
        None if s.quarantine.is_some() => "are quarantined",
        None if s.node.is_empty() => "are kept for identities",
        None if s.released_at.is_some() => "rest on nodes",
        None => "are spares of nodes",
    }
}
