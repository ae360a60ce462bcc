//! `mooring free POOL`: what can be given out, less the leases, as ranges. From the pool and its leases, not from the PoolMap,
//! which is a hint and a window.

use std::fmt::Write;

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
    let taken = leases.iter().filter_map(|l| {
        let name = l.name_any();
        let (domain, ip) = parse_lease_name(&name).ok()?;
        (domain == pool.domain).then_some(ip)
    });
    let family = Family::of_net(&pool.subnet);
    let allocatable = pools.allocatable(&args.pool).context("the pool was not counted")?;
    let free = allocatable.subtract(&Ranges::of_ips(family, taken));
    let mut out = String::new();
    writeln!(out, "{} of {} addresses of {} are free", free.len(), allocatable.len(), args.pool)?;
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
