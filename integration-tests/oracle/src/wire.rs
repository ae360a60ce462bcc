//! Asks on the wire who has an address: `ping` after the neighbour entry was dropped, with `tcpdump` beside it, which sees
//! every answer to ARP (RFC 826) and neighbour solicitation (RFC 4861), not only the one that the kernel takes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::facts::{addresses, text};

/// A NIC of a machine that shares a segment with pods.
#[derive(Debug, Clone)]
pub struct Place {
    /// The machine's holder.
    pub pid: u32,
    pub nic: String,
}

/// Which hardware addresses answer for each of `ips` that is on the NIC's own networks.
///
/// # Errors
/// The machine is gone, or a program is missing.
pub fn ask(place: &Place, ips: &[IpAddr]) -> Result<BTreeMap<IpAddr, Vec<String>>> {
    let said = inside(place, &format!("ip -j addr show dev {}", place.nic))?;
    let links: Vec<Value> = serde_json::from_str(&said).context("ip -j addr")?;
    let near: Vec<&IpAddr> = ips.iter().filter(|ip| links.iter().any(|l| is_near(l, **ip))).collect();
    if near.is_empty() {
        return Ok(BTreeMap::new());
    }
    let nic = &place.nic;
    let mut script = format!(
        "exec 3>&1\ntcpdump -e -n -l -p -i {nic} 'arp or (icmp6 and ip6[40] == 136)' 2>/run/.wire >&3 & t=$!\n\
         i=0; while ! grep -q 'listening on' /run/.wire; do i=$((i+1)); [ $i -lt 200 ] || exit 3; sleep 0.02; done\n"
    );
    for ip in &near {
        let name = |ip: &IpAddr| if ip.is_ipv4() { "-4" } else { "-6" };
        script
            .push_str(&format!("ip {} neigh flush to {ip} dev {nic}; ping -n -c1 -W1 {ip} >/dev/null & p=\"$p $!\"\n", name(ip)));
    }
    // The second one to answer does so within the same moment, or it is no rival worth the name.
    script.push_str("wait $p; sleep 0.3; kill -INT $t; wait $t; rm -f /run/.wire\n");
    Ok(answers(&inside(place, &script)?))
}

fn inside(place: &Place, script: &str) -> Result<String> {
    let output =
        Command::new("nsenter").args(["-t", &place.pid.to_string(), "-a", "sh", "-c", script]).output().context("nsenter")?;
    ensure!(output.status.success(), "{}: {}", place.nic, String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The address is in a network that the link is in, and not its own.
fn is_near(link: &Value, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let in_it = |a: &Value| {
        let (Ok(own), Some(length)) = (text(a, "/local").parse::<IpAddr>(), a["prefixlen"].as_u64()) else { return false };
        let mask = if length == 0 { 0 } else { u128::MAX << (128 - length.min(128)) };
        own.is_ipv4() == ip.is_ipv4() && own != ip && bits(own) & mask == bits(ip) & mask
    };
    !addresses(link).is_empty() && link["addr_info"].as_array().into_iter().flatten().any(in_it)
}

/// tcpdump's lines: `... Reply 10.0.0.1 is-at 02:..`, `... 02:.. > 02:.., ... neighbor advertisement, tgt is fd00::1 ...`.
fn answers(lines: &str) -> BTreeMap<IpAddr, Vec<String>> {
    let mut out: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for line in lines.lines() {
        let after = |word: &str| line.split_once(word).and_then(|(_, rest)| rest.split([' ', ',']).next()).unwrap_or_default();
        let (ip, mac) = if line.contains(" is-at ") {
            (after("Reply "), after(" is-at "))
        } else if line.contains("neighbor advertisement") {
            (after("tgt is "), line.split(' ').nth(1).unwrap_or_default())
        } else {
            continue;
        };
        if let Ok(ip) = ip.parse() {
            let macs = out.entry(ip).or_default();
            if !macs.iter().any(|m| m == mac) {
                macs.push(mac.to_owned());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_answer_on_the_wire_counts() {
        let seen = "12:00:00.1 02:00:00:00:00:01 > 02:00:00:00:00:09, ethertype ARP (0x0806), length 42: Reply 172.18.30.131 is-at 02:00:00:00:00:01, length 28
12:00:00.2 02:00:00:00:00:02 > 02:00:00:00:00:09, ethertype ARP (0x0806), length 42: Reply 172.18.30.131 is-at 02:00:00:00:00:02, length 28
12:00:00.2 02:00:00:00:00:02 > 02:00:00:00:00:09, ethertype ARP (0x0806), length 42: Request who-has 172.18.0.1 tell 172.18.30.131, length 28
12:00:00.3 02:00:00:00:00:03 > 02:00:00:00:00:09, ethertype IPv6 (0x86dd), length 86: fd00::5 > fd00::1: ICMP6, neighbor advertisement, tgt is fd00::5, length 32
";
        let answers = answers(seen);
        assert_eq!(answers[&"172.18.30.131".parse::<IpAddr>().unwrap()], ["02:00:00:00:00:01", "02:00:00:00:00:02"]);
        assert_eq!(answers[&"fd00::5".parse::<IpAddr>().unwrap()], ["02:00:00:00:00:03"]);
        assert_eq!(answers.len(), 2);
    }

    #[test]
    fn only_addresses_of_the_own_networks_are_asked_for() {
        let link = json!({"addr_info": [{"local": "172.18.0.1", "prefixlen": 16, "scope": "global"},
            {"local": "fd00::1", "prefixlen": 64, "scope": "global"}]});
        for (ip, near) in
            [("172.18.30.131", true), ("172.19.0.1", false), ("172.18.0.1", false), ("fd00::9", true), ("fd01::9", false)]
        {
            assert_eq!(is_near(&link, ip.parse().unwrap()), near, "{ip}");
        }
    }
}
