//! A pool as a checked value, and a set of pools with what each may really give out.
//! Does not know who has which address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::Cidr;

use crate::{Family, RangeError, Ranges};

/// A pool as written: strings, to be checked by [`Pool::parse`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolSpec {
    pub name: String,
    /// 4 or 6 where it is given; must agree with the subnet.
    pub ip_version: Option<i64>,
    pub subnet: String,
    pub ips: Vec<String>,
    pub exclude_ips: Vec<String>,
    pub gateway: Option<String>,
    /// (dst, gw); dst may be a bare address.
    pub routes: Vec<(String, String)>,
    pub default: bool,
    pub disable: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// Addresses are unique in it.
    pub domain: String,
    pub node_names: Vec<String>,
    pub namespace_names: Vec<String>,
    /// `namespace/name` or `name`.
    pub multus_names: Vec<String>,
    /// Names of fields that are set and that no code acts on: nothing is given out of such a pool.
    pub unimplemented: Vec<String>,
    /// Unix seconds of its creation: of pools that overlap the older owns the addresses (equal age: the lesser name).
    pub created: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("spec.subnet: {0}")]
    Subnet(#[from] model::AddrError),
    #[error("spec.ipVersion {0} does not agree with the subnet {1}")]
    Version(i64, Cidr),
    #[error("spec.{0}[{1}]: {2}")]
    Range(&'static str, usize, RangeError),
    #[error("spec.gateway {0:?} is not an address of the subnet {1}")]
    Gateway(String, Cidr),
    #[error("spec.gateway {0} is one of the addresses to give out, list it in excludeIPs or take it out of ips")]
    GatewayAllocatable(IpAddr),
    #[error("spec.routes[{0}].dst {1:?} is not a network of the pool's family without host bits")]
    RouteDst(usize, String),
    #[error("spec.routes[{0}].dst {1} is the default route, which follows from the gateway")]
    RouteDefault(usize, Cidr),
    #[error("spec.routes[{0}].dst {1} is there twice")]
    RouteTwice(usize, Cidr),
    #[error("spec.routes[{0}].gw {1:?} is not an address of the subnet {2}")]
    RouteGw(usize, String, Cidr),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    pub subnet: Cidr,
    /// `ips` less `excludeIPs`, less the subnet's own address and its broadcast address (IPv4) or its subnet-router anycast
    /// address (IPv6, RFC 4291 2.6.1), which no NIC can have.
    pub ranges: Ranges,
    pub gateway: Option<IpAddr>,
    pub routes: Vec<(Cidr, IpAddr)>,
    pub default: bool,
    pub disable: bool,
    pub terminating: bool,
    pub domain: String,
    pub node_names: Vec<String>,
    pub namespace_names: Vec<String>,
    pub multus_names: Vec<String>,
    pub unimplemented: Vec<String>,
    pub created: i64,
}

/// Addresses of a subnet that no NIC may have; none in subnets of one or two addresses.
fn never(subnet: &Cidr) -> Ranges {
    let family = Family::of_net(subnet);
    let all = Ranges::of_net(subnet);
    if family.width() - subnet.prefix_len() < 2 {
        return Ranges::empty(family);
    }
    let last = (family == Family::V4).then(|| all.nth(all.len() - 1)).flatten();
    Ranges::of_ips(family, [Some(subnet.ip()), last].into_iter().flatten())
}

impl Pool {
    pub fn parse(s: PoolSpec) -> Result<Pool, PoolError> {
        let subnet: Cidr = s.subnet.parse()?;
        let family = Family::of_net(&subnet);
        let version = if family == Family::V4 { 4 } else { 6 };
        if let Some(v) = s.ip_version.filter(|v| *v != version) {
            return Err(PoolError::Version(v, subnet));
        }
        let parse = |field, entries: &[String]| {
            let mut all = Ranges::empty(family);
            for (i, e) in entries.iter().enumerate() {
                all = all.union(
                    &Ranges::parse(std::slice::from_ref(e), family, Some(&subnet)).map_err(|e| PoolError::Range(field, i, e))?,
                );
            }
            Ok::<_, PoolError>(all)
        };
        let ranges = parse("ips", &s.ips)?.subtract(&parse("excludeIPs", &s.exclude_ips)?).subtract(&never(&subnet));
        let inside = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| subnet.contains(*ip));
        let gateway = match &s.gateway {
            None => None,
            Some(text) => Some(inside(text).ok_or_else(|| PoolError::Gateway(text.clone(), subnet))?),
        };
        if let Some(gw) = gateway.filter(|gw| ranges.contains(*gw)) {
            return Err(PoolError::GatewayAllocatable(gw));
        }
        let mut routes: Vec<(Cidr, IpAddr)> = Vec::new();
        for (i, (dst, gw)) in s.routes.iter().enumerate() {
            let net = dst.parse().ok().or_else(|| dst.parse().ok().map(Cidr::host));
            let net = net.filter(|n: &Cidr| Family::of_net(n) == family).ok_or_else(|| PoolError::RouteDst(i, dst.clone()))?;
            if net.is_default() {
                return Err(PoolError::RouteDefault(i, net));
            }
            if routes.iter().any(|(d, _)| *d == net) {
                return Err(PoolError::RouteTwice(i, net));
            }
            routes.push((net, inside(gw).ok_or_else(|| PoolError::RouteGw(i, gw.clone(), subnet))?));
        }
        Ok(Pool {
            name: s.name,
            subnet,
            ranges,
            gateway,
            routes,
            default: s.default,
            disable: s.disable,
            terminating: s.terminating,
            domain: s.domain,
            node_names: s.node_names,
            namespace_names: s.namespace_names,
            multus_names: s.multus_names,
            unimplemented: s.unimplemented,
            created: s.created,
        })
    }

    pub fn family(&self) -> Family {
        Family::of_net(&self.subnet)
    }
}

/// Addresses that an older pool of the same domain owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    pub older: String,
    pub shared: Ranges,
}

/// All pools by name, with what each may give out after reservations and overlaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pools {
    pools: BTreeMap<String, Settled>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Settled {
    pool: Pool,
    allocatable: Ranges,
    overlaps: Vec<Overlap>,
}

impl Pools {
    /// `reserved`: what the SpiderReservedIPs hold, of either family.
    pub fn new(pools: impl IntoIterator<Item = Pool>, reserved: &[Ranges]) -> Self {
        let mut by_age: Vec<Pool> = pools.into_iter().collect();
        by_age.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        let mut out: Vec<Settled> = Vec::with_capacity(by_age.len());
        for pool in by_age {
            let mut allocatable = reserved.iter().fold(pool.ranges.clone(), |r, x| r.subtract(x));
            let mut overlaps = Vec::new();
            for older in out.iter().filter(|o| o.pool.domain == pool.domain) {
                let shared = pool.ranges.intersect(&older.pool.ranges);
                if !shared.is_empty() {
                    allocatable = allocatable.subtract(&shared);
                    overlaps.push(Overlap { older: older.pool.name.clone(), shared });
                }
            }
            out.push(Settled { pool, allocatable, overlaps });
        }
        Self { pools: out.into_iter().map(|s| (s.pool.name.clone(), s)).collect() }
    }

    pub fn get(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name).map(|s| &s.pool)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values().map(|s| &s.pool)
    }

    /// What may be given out: ranges less reservations, less what older pools own.
    pub fn allocatable(&self, name: &str) -> Option<&Ranges> {
        self.pools.get(name).map(|s| &s.allocatable)
    }

    /// Non-empty: the pool gets a condition.
    pub fn overlaps(&self, name: &str) -> &[Overlap] {
        self.pools.get(name).map_or(&[], |s| &s.overlaps)
    }
}
