//! `mooring explain pod NAMESPACE/NAME`: for every NIC, which source names its pools, in which order they are tried, why the
//! others are not, and what the pod has. The same decision as the agent's, made again from the same words.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, bail};
use api::convert::{self, Checked};
use api::mooring::{AddressLease, label_value};
use api::{NetworkAttachmentDefinition, SpiderIPPool, SpiderReservedIP, annotations, keys};
use cni_meta::{DEFAULT_NETWORK_NAMESPACE, Nad, Selection, interface_names};
use ipam::{Ask, FamilyNames, NicOfPod};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use model::IfName;

#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// A pod.
    Pod {
        /// NAMESPACE/NAME, or NAME in the namespace default.
        name: String,
    },
}

pub async fn run(client: Client, what: &What) -> anyhow::Result<String> {
    let What::Pod { name } = what;
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let Some(pod) = Api::<Pod>::namespaced(client.clone(), namespace).get_opt(name).await? else {
        bail!("there is no pod {namespace}/{name}")
    };
    let mut out = String::new();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    writeln!(out, "pod {namespace}/{name} on {}", if node.is_empty() { "no node yet" } else { &node })?;
    let world = World::read(&client, namespace).await?;
    match nics(&client, &pod, namespace).await {
        Err(e) => writeln!(out, "  its networks cannot be read: {e:#}")?,
        Ok(nics) => {
            let all: Vec<NicOfPod> = nics.iter().map(|n| NicOfPod { name: n.name.clone(), network: n.network.clone() }).collect();
            for nic in &nics {
                out.push_str(&world.nic(&pod, namespace, &node, nic, &all)?);
            }
        }
    }
    out.push_str(&held(&client, &node, namespace, name).await?);
    Ok(out)
}

/// A NIC that the pod has or will have.
struct PodNic {
    name: String,
    network: Option<String>,
    /// Pools of its network's configuration; none where the network does not use our IPAM.
    ours: Option<FamilyNames>,
}

struct World {
    pools: Checked,
    namespace: BTreeMap<String, String>,
}

impl World {
    async fn read(client: &Client, namespace: &str) -> anyhow::Result<Self> {
        let list = ListParams::default();
        let reserved = Api::<SpiderReservedIP>::all(client.clone()).list(&list).await?;
        let pools = Api::<SpiderIPPool>::all(client.clone()).list(&list).await?;
        let ns = Api::<Namespace>::all(client.clone()).get_opt(namespace).await?;
        let namespace = ns.and_then(|n| n.metadata.annotations).unwrap_or_default();
        Ok(Self { pools: convert::pools(&pools.items, &reserved.items), namespace })
    }

    fn nic(&self, pod: &Pod, namespace: &str, node: &str, nic: &PodNic, all: &[NicOfPod]) -> anyhow::Result<String> {
        let mut out = String::new();
        let network = nic.network.as_deref().unwrap_or("the cluster's network");
        let Some(conf) = &nic.ours else {
            writeln!(out, "  {} ({network}): its addresses do not come from pools", nic.name)?;
            return Ok(out);
        };
        writeln!(out, "  {} ({network}):", nic.name)?;
        if let Some(list) = annotations::ips(pod.annotations())? {
            let mine = list.iter().filter(|e| e.interface.as_ref().is_none_or(|i| i.as_str() == nic.name));
            for ip in mine.flat_map(|e| &e.ips) {
                writeln!(out, "    asks for {} ({})", ip.ip, keys::IPS)?;
            }
        }
        let mut sources = match convert::sources(pod.annotations(), &self.namespace) {
            Ok(s) => s,
            Err(e) => {
                writeln!(out, "    no pool: {e}")?;
                return Ok(out);
            }
        };
        sources.conf = conf.clone();
        let ask =
            Ask { node, namespace, nics: all, current: &nic.name, agent_namespace: DEFAULT_NETWORK_NAMESPACE, sources: &sources };
        match ipam::choose(&self.pools.pools, &ask) {
            Err(e) => writeln!(out, "    no pool: {e}")?,
            Ok(choices) => {
                for c in choices.iter().filter(|c| c.nic == nic.name) {
                    for (family, list) in [("IPv4", &c.v4), ("IPv6", &c.v6)] {
                        if let Some(list) = list {
                            writeln!(out, "    {family} from {} ({})", list.join(", then "), c.source)?;
                        }
                    }
                    for r in &c.rejected {
                        writeln!(out, "    not {r}")?;
                    }
                }
            }
        }
        for (pool, why) in &self.pools.invalid {
            writeln!(out, "    not {pool}: {why}")?;
        }
        Ok(out)
    }
}

/// eth0, then the networks in the pod's order.
async fn nics(client: &Client, pod: &Pod, namespace: &str) -> anyhow::Result<Vec<PodNic>> {
    let annotation = |key: &str| pod.annotations().get(key).filter(|v| !v.trim().is_empty());
    let eth0 = IfName::new("eth0").expect("a name of four letters");
    let primary = annotation(keys::DEFAULT_NETWORK).map(|a| Selection::parse_default_network(a)).transpose()?.flatten();
    let more = annotation(keys::NETWORKS).map(|a| Selection::parse_networks(a, namespace)).transpose()?.unwrap_or_default();
    let mut out = vec![match &primary {
        Some(s) => nic(client, eth0.as_str(), s).await?,
        None => PodNic { name: eth0.to_string(), network: None, ours: None },
    }];
    for (s, name) in more.iter().zip(interface_names(&more, &eth0)?) {
        out.push(nic(client, name.as_str(), s).await?);
    }
    Ok(out)
}

async fn nic(client: &Client, name: &str, s: &Selection) -> anyhow::Result<PodNic> {
    let nads = Api::<NetworkAttachmentDefinition>::namespaced(client.clone(), &s.namespace);
    let nad =
        nads.get_opt(&s.name).await?.with_context(|| format!("there is no NetworkAttachmentDefinition {}", s.reference()))?;
    let nad = Nad { namespace: s.namespace.clone(), name: s.name.clone(), config: nad.config().unwrap_or_default().to_owned() };
    // A configuration that lies on the node's disk cannot be read from here.
    let ours = if nad.is_on_disk() { None } else { conf_pools(&nad)? };
    Ok(PodNic { name: name.to_owned(), network: Some(s.reference()), ours })
}

/// `default_ipv4_ippool` and `default_ipv6_ippool` of the plugin whose IPAM is ours.
fn conf_pools(nad: &Nad) -> anyhow::Result<Option<FamilyNames>> {
    let list = nad.list(None)?;
    let ipam = list.plugins.iter().map(|p| &p["ipam"]).find(|i| i["type"] == "spiderpool");
    let names = |key: &str| {
        let list = ipam?[key].as_array()?;
        Some(list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect::<Vec<_>>()).filter(|l| !l.is_empty())
    };
    Ok(ipam.map(|_| FamilyNames { v4: names("default_ipv4_ippool"), v6: names("default_ipv6_ippool") }))
}

async fn held(client: &Client, node: &str, namespace: &str, name: &str) -> anyhow::Result<String> {
    let mut out = String::new();
    // By the label of its node; a pod without a node has nothing. Another node's of the same label are another pod's.
    let list = ListParams::default().labels(&format!("{}={}", keys::LEASE_NODE, label_value(node)));
    let leases = if node.is_empty() { Vec::new() } else { Api::<AddressLease>::all(client.clone()).list(&list).await?.items };
    let mine: Vec<_> = leases
        .iter()
        .filter_map(|l| Some((l, l.spec.holder.as_ref()?)))
        .filter(|(_, h)| h.pod_namespace == namespace && h.pod_name == name)
        .collect();
    if mine.is_empty() {
        writeln!(out, "  it holds no address")?;
    }
    for (l, h) in mine {
        writeln!(out, "  holds {} of pool {} on {}", l.spec.address, l.spec.pool, h.interface)?;
    }
    Ok(out)
}
