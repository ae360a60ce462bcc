//! Which pools a NIC may take its addresses from, in which order, and why each other pool may not be used.
//! Does not know whether a pool has a free address.

use std::collections::BTreeSet;
use std::fmt;

use crate::{Family, Pool, Pools};

/// Names or patterns (`*`, `?`, `[a-z]`, `[!x]`) by family, as one source gives them; none: the source does not ask for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FamilyNames {
    pub v4: Option<Vec<String>>,
    pub v6: Option<Vec<String>>,
}

impl FamilyNames {
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    fn of(&self, family: Family) -> Option<&Vec<String>> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// One entry of the annotation `ippools`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NicEntry {
    pub interface: Option<String>,
    pub names: FamilyNames,
    pub clean_gateway: bool,
}

/// Everything that may name pools, parsed; the first that is there decides alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Annotation `ipam.spidernet.io/ippools`.
    pub ippools: Option<Vec<NicEntry>>,
    /// Annotation `ipam.spidernet.io/ippool`.
    pub ippool: Option<FamilyNames>,
    /// The namespace's `default-ipv4-ippool`, `default-ipv6-ippool`.
    pub namespace: FamilyNames,
    /// `default_ipv4_ippool`, `default_ipv6_ippool` of the network's configuration.
    pub conf: FamilyNames,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    IpPools,
    IpPool,
    Namespace,
    Conf,
    Defaults,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::IpPools => "annotation ipam.spidernet.io/ippools",
            Source::IpPool => "annotation ipam.spidernet.io/ippool",
            Source::Namespace => "annotation of the namespace",
            Source::Conf => "the network's configuration",
            Source::Defaults => "pools with spec.default",
        })
    }
}

/// A NIC of the pod, in the order eth0, then the networks as the pod names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicOfPod {
    pub name: String,
    /// `namespace/name` of its network; none where it is not known (the cluster's own network without a NAD).
    pub network: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub node: &'a str,
    pub namespace: &'a str,
    /// All NICs that the pod will have.
    pub nics: &'a [NicOfPod],
    /// The one that is being set up.
    pub current: &'a str,
    /// Where a bare `multusName` is looked for.
    pub agent_namespace: &'a str,
    pub sources: &'a Sources,
}

/// Why a pool is not used. One line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub pool: String,
    pub reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.pool, self.reason)
    }
}

/// Pools of one NIC in the user's order. A family whose list is none was not asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicPools {
    pub nic: String,
    pub source: Source,
    pub v4: Option<Vec<String>>,
    pub v6: Option<Vec<String>>,
    pub clean_gateway: bool,
    /// For `mooring explain` and Events, also when others remain.
    pub rejected: Vec<Rejection>,
}

/// One entry for the current NIC; with `ippools` one for every NIC it names, allocated together.
pub type Choices = Vec<NicPools>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error("no pool to take an address for {0} from: no annotation, network configuration or default pool names one")]
    NoSource(String),
    #[error("{0} for {1} names no pool")]
    Empty(Source, String),
    #[error("{0} names pool {1:?} twice for {2}")]
    Twice(Source, String, String),
    #[error("{source_of}: no {family} pool for {nic}: {}", list(.rejected))]
    AllRejected { source_of: Source, family: Family, nic: String, rejected: Vec<Rejection> },
    #[error("annotation ipam.spidernet.io/ippools: either every entry names an interface or none does")]
    SomeNamed,
    #[error("annotation ipam.spidernet.io/ippools: interface {0:?} is there twice")]
    InterfaceTwice(String),
    #[error("annotation ipam.spidernet.io/ippools: interface {0:?} is not a NIC of the pod, it has {1}")]
    NoSuchNic(String, String),
    #[error(
        "annotation ipam.spidernet.io/ippools: {0} entries for {1} NICs ({2}), they go by position where they name no interface"
    )]
    TooMany(usize, usize, String),
    #[error("annotation ipam.spidernet.io/ippools: no entry for {0}")]
    CurrentAbsent(String),
}

fn list(rejected: &[Rejection]) -> String {
    if rejected.is_empty() {
        return "none was named or matches".to_owned();
    }
    rejected.iter().map(Rejection::to_string).collect::<Vec<_>>().join("; ")
}

/// The pools of the current NIC, or of all NICs that `ippools` names.
pub fn choose(pools: &Pools, ask: &Ask<'_>) -> Result<Choices, ChoiceError> {
    let current = |source, names: &FamilyNames| for_nic(pools, ask, ask.current, source, names, false).map(|c| vec![c]);
    let s = ask.sources;
    if let Some(entries) = &s.ippools {
        return per_nic(pools, ask, entries);
    }
    if let Some(names) = &s.ippool {
        return current(Source::IpPool, names);
    }
    if !s.namespace.is_empty() {
        return current(Source::Namespace, &s.namespace);
    }
    if !s.conf.is_empty() {
        return current(Source::Conf, &s.conf);
    }
    let defaults = |family| {
        let names: Vec<String> = pools.iter().filter(|p| p.default && p.family() == family).map(|p| p.name.clone()).collect();
        (!names.is_empty()).then_some(names)
    };
    let names = FamilyNames { v4: defaults(Family::V4), v6: defaults(Family::V6) };
    if names.is_empty() {
        return Err(ChoiceError::NoSource(ask.current.to_owned()));
    }
    current(Source::Defaults, &names)
}

fn per_nic(pools: &Pools, ask: &Ask<'_>, entries: &[NicEntry]) -> Result<Choices, ChoiceError> {
    let all = || ask.nics.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
    let named = entries.iter().filter(|e| e.interface.is_some()).count();
    if named != 0 && named != entries.len() {
        return Err(ChoiceError::SomeNamed);
    }
    if named == 0 && entries.len() > ask.nics.len() {
        return Err(ChoiceError::TooMany(entries.len(), ask.nics.len(), all()));
    }
    let mut seen = BTreeSet::new();
    let mut out = Vec::with_capacity(entries.len());
    for (i, e) in entries.iter().enumerate() {
        let nic = match &e.interface {
            Some(name) => name.as_str(),
            None => ask.nics[i].name.as_str(),
        };
        if !seen.insert(nic) {
            return Err(ChoiceError::InterfaceTwice(nic.to_owned()));
        }
        if !ask.nics.iter().any(|n| n.name == nic) {
            return Err(ChoiceError::NoSuchNic(nic.to_owned(), all()));
        }
        out.push(for_nic(pools, ask, nic, Source::IpPools, &e.names, e.clean_gateway)?);
    }
    if !seen.contains(ask.current) {
        return Err(ChoiceError::CurrentAbsent(ask.current.to_owned()));
    }
    Ok(out)
}

fn for_nic(
    pools: &Pools,
    ask: &Ask<'_>,
    nic: &str,
    source: Source,
    names: &FamilyNames,
    clean_gateway: bool,
) -> Result<NicPools, ChoiceError> {
    if Family::BOTH.iter().all(|f| names.of(*f).is_none_or(Vec::is_empty)) {
        return Err(ChoiceError::Empty(source, nic.to_owned()));
    }
    let network = ask.nics.iter().find(|n| n.name == nic).and_then(|n| n.network.as_deref());
    let mut out = NicPools { nic: nic.to_owned(), source, v4: None, v6: None, clean_gateway, rejected: Vec::new() };
    for family in Family::BOTH {
        let Some(wanted) = names.of(family).filter(|n| !n.is_empty()) else { continue };
        let mut kept: Vec<String> = Vec::new();
        let mut rejected = Vec::new();
        for candidate in expand(pools, wanted, family, source, nic)? {
            let reason = match pools.get(&candidate) {
                None => Some("there is no such pool".to_owned()),
                Some(pool) => reject(pools, pool, family, ask, nic, network),
            };
            match reason {
                None => kept.push(candidate),
                Some(reason) => rejected.push(Rejection { pool: candidate, reason }),
            }
        }
        if kept.is_empty() {
            return Err(ChoiceError::AllRejected { source_of: source, family, nic: nic.to_owned(), rejected });
        }
        out.rejected.extend(rejected);
        match family {
            Family::V4 => out.v4 = Some(kept),
            Family::V6 => out.v6 = Some(kept),
        }
    }
    Ok(out)
}

/// Patterns become the names of the pools of that family, by name; one that matches nothing is kept, to be reported. A
/// name written twice is refused; one that a pattern brings in again is not.
fn expand(pools: &Pools, wanted: &[String], family: Family, source: Source, nic: &str) -> Result<Vec<String>, ChoiceError> {
    let mut out: Vec<String> = Vec::new();
    let mut plain = BTreeSet::new();
    for name in wanted {
        if is_pattern(name) {
            let before = out.len();
            let mut hit = false;
            for p in pools.iter().filter(|p| p.family() == family && glob(name, &p.name)) {
                hit = true;
                if !out.contains(&p.name) {
                    out.push(p.name.clone());
                }
            }
            if !hit && out.len() == before {
                out.push(name.clone());
            }
        } else {
            if !plain.insert(name) {
                return Err(ChoiceError::Twice(source, name.clone(), nic.to_owned()));
            }
            if !out.contains(name) {
                out.push(name.clone());
            }
        }
    }
    Ok(out)
}

/// The filters in their order; the first that fails is the reason.
fn reject(pools: &Pools, pool: &Pool, family: Family, ask: &Ask<'_>, nic: &str, network: Option<&str>) -> Option<String> {
    let names = |l: &[String]| l.join(", ");
    if pool.terminating {
        return Some("it is being deleted".to_owned());
    }
    if pool.disable {
        return Some("spec.disable is set".to_owned());
    }
    if pool.family() != family {
        return Some(format!("it is an {} pool", pool.family()));
    }
    if !pool.unimplemented.is_empty() {
        return Some(format!("it uses {}, which is not implemented", pool.unimplemented.join(", ")));
    }
    if !pool.node_names.is_empty() && !pool.node_names.iter().any(|n| n == ask.node) {
        return Some(format!("spec.nodeName does not list node {}, only {}", ask.node, names(&pool.node_names)));
    }
    if !pool.namespace_names.is_empty() && !pool.namespace_names.iter().any(|n| n == ask.namespace) {
        return Some(format!(
            "spec.namespaceName does not list namespace {}, only {}",
            ask.namespace,
            names(&pool.namespace_names)
        ));
    }
    if !pool.multus_names.is_empty() {
        let Some(network) = network else {
            return Some(format!("spec.multusName lists {}, but the network of {nic} is not known", names(&pool.multus_names)));
        };
        let full = |n: &String| if n.contains('/') { n.clone() } else { format!("{}/{n}", ask.agent_namespace) };
        if !pool.multus_names.iter().any(|n| full(n) == network) {
            return Some(format!("spec.multusName does not list network {network}, only {}", names(&pool.multus_names)));
        }
    }
    if pools.allocatable(&pool.name).is_none_or(crate::Ranges::is_empty) {
        return Some(match pools.overlaps(&pool.name) {
            [] => "it has no address to give out".to_owned(),
            [o, ..] => format!("its addresses belong to the older pool {}", o.older),
        });
    }
    None
}

fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// Glob over the whole name: `*` any run, `?` one character, `[abc]`, `[a-z]`, `[!a]` or `[^a]` one of a set. A set that is
/// not closed stands for itself.
pub fn glob(pattern: &str, name: &str) -> bool {
    let p: Vec<char> = pattern.chars().collect();
    let n: Vec<char> = name.chars().collect();
    // Where to go on when the rest does not match: behind the last star, one character further in the name.
    let (mut i, mut j, mut retry) = (0, 0, None);
    while j < n.len() {
        if p.get(i) == Some(&'*') {
            retry = Some((i + 1, j));
            i += 1;
            continue;
        }
        if let Some(next) = one(&p, i, n[j]) {
            (i, j) = (next, j + 1);
            continue;
        }
        match retry {
            Some((star, at)) => {
                retry = Some((star, at + 1));
                (i, j) = (star, at + 1);
            }
            None => return false,
        }
    }
    p[i..].iter().all(|c| *c == '*')
}

/// Matches one character; gives the place behind what it used of the pattern.
fn one(p: &[char], i: usize, c: char) -> Option<usize> {
    match p.get(i)? {
        '?' => Some(i + 1),
        '[' => {
            let negated = matches!(p.get(i + 1), Some('!' | '^'));
            let start = i + 1 + usize::from(negated);
            // A ']' right at the beginning belongs to the set.
            let Some(len) = p.get(start + 1..).and_then(|r| r.iter().position(|x| *x == ']')) else {
                return (c == '[').then_some(i + 1);
            };
            let set = &p[start..start + 1 + len];
            let mut hit = false;
            let mut k = 0;
            while k < set.len() {
                if k + 2 < set.len() && set[k + 1] == '-' {
                    hit |= (set[k]..=set[k + 2]).contains(&c);
                    k += 3;
                } else {
                    hit |= set[k] == c;
                    k += 1;
                }
            }
            (hit != negated).then_some(start + 2 + len)
        }
        x => (*x == c).then_some(i + 1),
    }
}
