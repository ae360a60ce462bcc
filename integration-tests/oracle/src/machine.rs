//! Reads a node from inside its namespaces with `ip`, `ovs-vsctl` and the shell: one process for all of it. Judges nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::facts::{Machine, Namespace, Ovs};
use crate::journal::Journal;

/// Begins each part of the script's output.
const MARK: &str = "@@oracle ";

/// Paths are the product's and the runtime's defaults. What is not there prints nothing.
const SCRIPT: &str = r#"
part() { printf '\n@@oracle %s\n' "$*"; }
part links; ip -j -d addr
part ids; ip -j netns list
part routes; ip -j -4 route show table all
part routes; ip -j -6 route show table all
part rules; ip -j -4 rule
part rules; ip -j -6 rule
part neighbours; ip -j -4 neigh show nud permanent
part neighbours; ip -j -6 neigh show nud permanent
for n in /run/netns/*; do
  [ -e "$n" ] || continue
  part namespace "$(stat -L -c '%d %i' "$n") ${n##*/}"
  nsenter --net="$n" ip -j -d addr 2>/dev/null
done
for f in /var/lib/cni/results/*; do [ -e "$f" ] && { part record; cat "$f"; }; done
for f in /run/cni-networks/*/* /var/lib/cni/networks/*/*; do [ -e "$f" ] && { part host-local "${f##*/}"; head -n 1 "$f"; }; done
for t in Bridge Port Interface; do part "$t"; ovs-vsctl --timeout=5 --format=json list "$t" 2>/dev/null; done
part journal; cat /run/mooring/journal 2>/dev/null
for f in /var/lib/mooring/spool/* /var/lib/mooring/spool/.[!.]*; do [ -e "$f" ] && part spool "${f##*/}"; done
part agent-id; cat /var/lib/mooring/agent-id 2>/dev/null
part end
"#;

/// Reads the machine whose holder is process `pid`.
///
/// # Errors
/// It is gone, or a program is missing.
pub fn read(name: &str, pid: u32, uplinks: &[String]) -> Result<Machine> {
    let pid = pid.to_string();
    let output = Command::new("nsenter").args(["-t", &pid, "-a", "sh", "-c", SCRIPT]).output().context("nsenter")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.trim_end().ends_with("@@oracle end"), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let mut machine = parse(&said).with_context(|| name.to_owned())?;
    machine.name = name.to_owned();
    machine.uplinks = uplinks.to_vec();
    Ok(machine)
}

fn parse(said: &str) -> Result<Machine> {
    let mut machine = Machine::default();
    let (mut tables, mut answered, mut ids) = (Ovs::default(), 0, Vec::new());
    for part in said.split(&format!("\n{MARK}")).skip(1) {
        let (head, body) = part.split_once('\n').unwrap_or((part, ""));
        let (what, argument) = head.split_once(' ').unwrap_or((head, ""));
        let many = || if body.trim().is_empty() { Ok(Vec::new()) } else { array(body).with_context(|| what.to_owned()) };
        match what {
            "links" => machine.links = many()?,
            "routes" => machine.routes.extend(many()?),
            "rules" => machine.rules.extend(many()?),
            "neighbours" => machine.neighbours.extend(many()?),
            "namespace" => {
                let mut words = argument.splitn(3, ' ');
                let mut number = || words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
                let (dev, ino) = (number(), number());
                let name = words.next().unwrap_or_default().to_owned();
                machine.namespaces.push(Namespace { name, dev, ino, links: many()? });
            }
            "record" => machine.records.push(serde_json::from_str(body).context("record of the runtime")?),
            "ids" => ids = many()?,
            // Beside its locks and the last address it gave.
            "host-local" if argument.parse::<IpAddr>().is_ok() => {
                machine.host_local.push((argument.to_owned(), body.trim().to_owned()))
            }
            "Bridge" | "Port" | "Interface" if !body.trim().is_empty() => {
                let rows = rows(body).with_context(|| what.to_owned())?;
                answered += 1;
                match what {
                    "Bridge" => tables.bridges = rows,
                    "Port" => tables.ports = rows,
                    _ => tables.interfaces = rows,
                }
            }
            "journal" => machine.journal = Journal::parse(body),
            "spool" => machine.spool.push(argument.to_owned()),
            "agent-id" => machine.agent_id = body.trim().to_owned(),
            _ => {}
        }
    }
    // With -j this `ip` only prints the number of a peer's namespace.
    for link in &mut machine.links {
        if let Some(of) = ids.iter().find(|of| of["id"].is_u64() && of["id"] == link["link_netnsid"]) {
            link["link_netns"] = of["name"].clone();
        }
    }
    machine.ovs = (answered == 3).then_some(tables);
    Ok(machine)
}

/// A list that `ip -j` prints; Debian 12's prints empty objects for what it leaves out.
fn array(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_json::from_str(text)?;
    Ok(all.into_iter().filter(|v| v.as_object().is_some_and(|o| !o.is_empty())).collect())
}

/// `ovs-vsctl --format=json list`: headings, and rows of as many values.
fn rows(text: &str) -> Result<Vec<BTreeMap<String, Value>>> {
    let table: Value = serde_json::from_str(text)?;
    let headings: Vec<String> = serde_json::from_value(table["headings"].clone())?;
    let rows: Vec<Vec<Value>> = serde_json::from_value(table["data"].clone())?;
    Ok(rows.into_iter().map(|r| headings.iter().cloned().zip(r).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_output_is_read() {
        let said = "\n@@oracle links\n[{\"ifname\":\"lo\",\"link_netnsid\":3},{}]\n@@oracle ids\n[{\"name\":\"cni-x\",\"id\":3},{\"name\":\"y\"}]\n@@oracle routes\n\n@@oracle namespace 4 77 cni-x\n[{\"ifname\":\"lo\"}]\n\
            \n@@oracle record\n{\"containerId\":\"c\",\"netns\":\"/run/netns/cni-x\",\"cniArgs\":[[\"K8S_POD_NAMESPACE\",\"d\"],[\"K8S_POD_NAME\",\"p\"]]}\
            \n@@oracle host-local 10.0.0.2\nc\r\n\n@@oracle host-local last_reserved_ip.0\n10.0.0.2\n@@oracle Bridge\n{\"headings\":[\"name\"],\"data\":[[\"br1\"]]}\n@@oracle Port\n\n@@oracle Interface\n\
            \n@@oracle spool .x.json\n\n@@oracle agent-id\nid\n\n@@oracle end\n";
        let m = parse(said).unwrap();
        assert_eq!((m.links.len(), m.routes.len(), m.agent_id.as_str()), (1, 0, "id"));
        assert_eq!(m.links[0]["link_netns"], "cni-x");
        let sandboxes = m.sandboxes();
        assert_eq!((sandboxes[0].pod.as_str(), sandboxes[0].netns.ino), ("d/p", 77));
        assert_eq!(m.host_local, [("10.0.0.2".to_owned(), "c".to_owned())]);
        assert_eq!(m.spool, [".x.json"]);
        assert!(m.ovs.is_none(), "a database that answers only once is none");
    }
}
