//! What is wrong with what was read. Pure. A rule each in `judge/host.rs` (links, ports, routes, files), `judge/words.rs`
//! (leases, endpoints, counts: what says something) and here (addresses that two have).
//!
//! It judges a moment, and at any moment something is just being made or taken away: who asks looks again, and takes what
//! stays ([`Steady`]).

mod host;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::facts::{Facts, Sandbox, addresses, attachment, list, text};

/// What kind of wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// Two have what only one may have.
    Duplicate,
    /// No living pod stands for it.
    Leaked,
    /// It says what is not so.
    Stale,
}

/// One line of the verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub wrong: Wrong,
    /// What it is about, the same each time it is looked at.
    pub what: String,
    pub why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = match self.wrong {
            Wrong::Duplicate => "duplicate",
            Wrong::Leaked => "leaked",
            Wrong::Stale => "stale",
        };
        write!(f, "{wrong} {}: {}", self.what, self.why)
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn duplicate(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.add(Wrong::Duplicate, what, why);
    }

    fn leaked(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.add(Wrong::Leaked, what, why);
    }

    fn stale(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.add(Wrong::Stale, what, why);
    }

    fn add(&mut self, wrong: Wrong, what: impl Into<String>, why: impl Into<String>) {
        self.0.push(Finding { wrong, what: what.into(), why: why.into() });
    }
}

/// Facts with the sandboxes that live, which every rule asks for.
struct Seen<'a> {
    facts: &'a Facts,
    living: Vec<Sandbox<'a>>,
    /// Attachment ids of living sandboxes' interfaces.
    ids: BTreeMap<String, usize>,
    /// RFC 3339, UTC.
    now: &'a str,
}

impl Seen<'_> {
    fn container(&self, id: &str) -> Option<&Sandbox<'_>> {
        self.living.iter().find(|s| s.container == id)
    }

    fn attached(&self, id: &str) -> Option<&Sandbox<'_>> {
        self.ids.get(id).map(|at| &self.living[*at])
    }

    fn on<'b>(&'b self, machine: &'b str) -> impl Iterator<Item = &'b Sandbox<'b>> {
        self.living.iter().filter(move |s| s.machine.name == machine)
    }
}

/// All that is wrong in this moment. `now` is the time in RFC 3339 as `date -u +%FT%TZ` prints it.
pub fn judge(facts: &Facts, now: &str) -> Vec<Finding> {
    let living: Vec<Sandbox<'_>> = facts.machines.iter().flat_map(|m| m.sandboxes()).collect();
    let ids = living.iter().enumerate().flat_map(|(at, s)| s.nics().into_iter().map(move |n| (attachment(&s.container, &n), at)));
    let seen = Seen { facts, ids: ids.collect(), living: living.clone(), now };
    let mut found = Findings::default();
    twice(&seen, &mut found);
    for machine in &facts.machines {
        host::judge(&seen, machine, &mut found);
    }
    words::judge(&seen, &mut found);
    found.0.sort();
    found.0.dedup();
    found.0
}

/// Addresses that two have: in namespaces, in leases, on the wire.
fn twice(seen: &Seen<'_>, found: &mut Findings) {
    let mut owners: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for s in &seen.living {
        for (ip, nic) in s.addresses() {
            owners.entry(ip).or_default().push(format!("{} of pod {} on {}", nic, s.pod, s.machine.name));
        }
    }
    for machine in &seen.facts.machines {
        for link in &machine.links {
            // A pod's gateway on its own host's end of a pair is on many links of that host; against pods it counts.
            for ip in addresses(link) {
                if let Some(pods) = owners.get_mut(&ip) {
                    pods.push(format!("{} of {}", text(link, "/ifname"), machine.name));
                }
            }
        }
    }
    for (ip, who) in owners.iter().filter(|(_, who)| who.len() > 1) {
        found.duplicate(format!("address {ip}"), who.join(" and "));
    }
    for (ip, macs) in seen.facts.wire.iter().filter(|(_, macs)| macs.len() > 1) {
        found.duplicate(format!("address {ip} on the wire"), format!("{} answer for it", macs.join(" and ")));
    }
    let mut by_address: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut by_holder: BTreeMap<(String, String, bool), Vec<String>> = BTreeMap::new();
    for lease in &seen.facts.api.leases {
        let (name, address) = (text(lease, "/metadata/name"), text(lease, "/spec/address"));
        let domain = name.rsplit_once('.').map(|(d, _)| d.to_owned()).unwrap_or_default();
        let holder = |key: &str| text(lease, &format!("/spec/holder/{key}"));
        if !holder("containerID").is_empty() {
            by_holder.entry((holder("containerID"), holder("interface"), address.contains(':'))).or_default().push(name.clone());
        }
        by_address.entry((domain, address)).or_default().push(name);
    }
    for ((domain, address), leases) in by_address.iter().filter(|(_, l)| l.len() > 1) {
        found.duplicate(format!("lease of {address} in {domain}"), leases.join(" and "));
    }
    for ((container, nic, _), leases) in by_holder.iter().filter(|(_, l)| l.len() > 1) {
        found.duplicate(format!("lease for {nic} of container {container}"), leases.join(" and "));
    }
}

/// The pod with this `namespace/name`, in the API.
fn pod<'a>(seen: &'a Seen<'_>, name: &str) -> Option<&'a serde_json::Value> {
    seen.facts.api.pods.iter().find(|p| full_name(p) == name)
}

fn full_name(object: &serde_json::Value) -> String {
    format!("{}/{}", text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

/// Findings that every look so far had.
#[derive(Debug, Default)]
pub struct Steady {
    looks: usize,
    left: Vec<Finding>,
}

impl Steady {
    /// Takes the findings of one more look.
    pub fn look(&mut self, found: Vec<Finding>) {
        let same = |f: &Finding| self.left.iter().any(|o| (o.wrong, &o.what) == (f.wrong, &f.what));
        self.left = if self.looks == 0 { found } else { found.into_iter().filter(same).collect() };
        self.looks += 1;
    }

    /// What stayed, in the words of the last look.
    pub fn left(&self) -> &[Finding] {
        &self.left
    }

    /// Nothing is left, by at least one look.
    pub fn is_silent(&self) -> bool {
        self.looks > 0 && self.left.is_empty()
    }
}

/// Free bits of a PoolMap, as addresses.
fn free(map: &serde_json::Value) -> Option<Vec<IpAddr>> {
    let mut out = Vec::new();
    for chunk in list(map, "/spec/chunks") {
        let base: IpAddr = text(chunk, "/base").parse().ok()?;
        for (i, byte) in base64(&text(chunk, "/bits"))?.iter().enumerate() {
            for bit in (0..8).filter(|b| byte & (1 << b) != 0) {
                let offset = u32::try_from(i * 8 + bit).ok()?;
                out.push(match base {
                    IpAddr::V4(v4) => IpAddr::from(std::net::Ipv4Addr::from_bits(v4.to_bits() + offset)),
                    IpAddr::V6(v6) => IpAddr::from(std::net::Ipv6Addr::from_bits(v6.to_bits() + u128::from(offset))),
                });
            }
        }
    }
    Some(out)
}

/// RFC 4648, section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut out, mut held, mut bits) = (Vec::new(), 0u32, 0);
    for b in text.trim_end_matches('=').bytes() {
        (held, bits) = (held << 6 | u32::from(digit(b)?), bits + 6);
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits & 0xff) as u8);
        }
    }
    Some(out)
}
