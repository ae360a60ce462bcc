//! A stand-in for the Deployment controller, the ReplicaSet controller and the scheduler in one: pods from templates,
//! spread over the nodes. It does not know what the pods' annotations mean.
//!
//! Any event marks the loop dirty; the loop reads all and decides anew. Pods go with their Deployment by ownerReference.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;

/// The label that says which template a pod is of.
const HASH: &str = "pod-template-hash";
/// Kubernetes' own alphabet for generated names: no vowels, no look-alikes.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Runs until killed.
///
/// # Errors
/// None so far: a failed round is printed and tried again.
pub async fn run(client: Client) -> Result<()> {
    let config = watcher::Config::default;
    let deployments = watcher(Api::<Deployment>::all(client.clone()), config()).map(|_| ());
    let pods = watcher(Api::<Pod>::all(client.clone()), config()).map(|_| ());
    let nodes = watcher(Api::<Node>::all(client.clone()), config()).map(|_| ());
    let mut dirty = pin!(futures_util::stream::select(deployments, futures_util::stream::select(pods, nodes)));
    while dirty.next().await.is_some() {
        // Events that come together are one round.
        while tokio::time::timeout(Duration::from_millis(20), dirty.next()).await.is_ok_and(|event| event.is_some()) {}
        if let Err(e) = round(&client).await {
            eprintln!("deployments: {e:#}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    Ok(())
}

async fn round(client: &Client) -> Result<()> {
    let all = ListParams::default();
    let nodes = Api::<Node>::all(client.clone()).list(&all).await?.items;
    let pods = Api::<Pod>::all(client.clone()).list(&all).await?.items;
    for deployment in Api::<Deployment>::all(client.clone()).list(&all).await?.items {
        if deployment.metadata.deletion_timestamp.is_none() {
            reconcile(client, &deployment, &nodes, &pods).await?;
        }
    }
    Ok(())
}

async fn reconcile(client: &Client, deployment: &Deployment, nodes: &[Node], pods: &[Pod]) -> Result<()> {
    let Some(spec) = &deployment.spec else { return Ok(()) };
    let api: Api<Pod> = Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
    let hash = word(fnv(serde_json::to_string(&spec.template)?.as_bytes()), 10);
    let uid = deployment.uid().unwrap_or_default();
    let owned = |p: &&Pod| p.owner_references().iter().any(|o| o.uid == uid) && p.metadata.deletion_timestamp.is_none();
    let (current, old): (Vec<&Pod>, Vec<&Pod>) = pods.iter().filter(owned).partition(|p| p.labels().get(HASH) == Some(&hash));
    let want = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    // Recreate rather than rolling: pods of another template go first, so that fixed addresses are free.
    for pod in old.iter().chain(current.iter().skip(want)) {
        let _ = api.delete(&pod.name_any(), &DeleteParams::default()).await;
    }
    if old.is_empty() {
        let mut placed: Vec<String> = current.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect();
        for _ in current.len()..want {
            let Some(node) = choose(deployment, nodes, &placed) else { break };
            let pod = pod_of(deployment, &hash, &node)?;
            api.create(&PostParams::default(), &pod).await?;
            placed.push(node);
        }
    }
    let ready = current.iter().filter(|p| is_ready(p)).count();
    let known = deployment.status.as_ref();
    let (now, then) = (
        (current.len() as i32, ready as i32),
        (known.and_then(|s| s.replicas).unwrap_or(0), known.and_then(|s| s.ready_replicas).unwrap_or(0)),
    );
    if now != then {
        let status = json!({"status": {"replicas": now.0, "readyReplicas": now.1, "availableReplicas": now.1,
                                       "updatedReplicas": now.0, "observedGeneration": deployment.metadata.generation}});
        let api: Api<Deployment> = Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
        api.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    }
    Ok(())
}

/// A pod's Ready condition.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The Ready node that the template allows and that has the fewest of its pods; none twice where the template's
/// anti-affinity says so.
fn choose(deployment: &Deployment, nodes: &[Node], placed: &[String]) -> Option<String> {
    let template = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let empty = BTreeMap::new();
    let selector = template.node_selector.as_ref().unwrap_or(&empty);
    let apart = template
        .affinity
        .as_ref()
        .and_then(|a| a.pod_anti_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
        .is_some_and(|terms| terms.iter().any(|t| t.topology_key == "kubernetes.io/hostname"));
    let count = |node: &str| placed.iter().filter(|p| *p == node).count();
    let ready = |node: &&Node| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let fits = |node: &&Node| selector.iter().all(|(key, value)| node.labels().get(key) == Some(value));
    let name = template.node_name.clone();
    let mut names: Vec<String> = nodes.iter().filter(ready).filter(fits).map(|n| n.name_any()).collect();
    names.retain(|n| name.as_ref().is_none_or(|only| only == n));
    names.sort();
    names.into_iter().filter(|n| !apart || count(n) == 0).min_by_key(|n| count(n))
}

fn pod_of(deployment: &Deployment, hash: &str, node: &str) -> Result<Pod> {
    let spec = deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let given = spec.metadata.unwrap_or_default();
    let mut labels = given.labels.unwrap_or_default();
    labels.insert(HASH.into(), hash.into());
    let random = u64::from_be_bytes(uuid::Uuid::new_v4().as_bytes()[..8].try_into()?);
    let pod = json!({
        "metadata": {
            "name": format!("{}-{hash}-{}", deployment.name_any(), word(random, 5)),
            "namespace": deployment.namespace(),
            "labels": labels,
            "annotations": given.annotations,
            // In a cluster the ReplicaSet stands between; it would add nothing here.
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name_any(),
                                 "uid": deployment.uid(), "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": spec.spec,
    });
    let mut pod: Pod = serde_json::from_value(pod)?;
    pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
    Ok(pod)
}

/// FNV-1a, 64 bit.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn word(mut number: u64, length: usize) -> String {
    let mut out = String::new();
    for _ in 0..length {
        out.push(char::from(ALPHABET[(number % ALPHABET.len() as u64) as usize]));
        number /= ALPHABET.len() as u64;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(spec: serde_json::Value) -> Deployment {
        let value = json!({"metadata": {"name": "d", "namespace": "default", "uid": "u"}, "spec": {
            "selector": {}, "template": {"metadata": {"annotations": {"a": "b"}}, "spec": spec}}});
        serde_json::from_value(value).unwrap()
    }

    fn nodes(names: &[(&str, &str)]) -> Vec<Node> {
        let node = |(name, ready): &(&str, &str)| {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        names.iter().map(node).collect()
    }

    #[test]
    fn pods_are_spread_over_ready_nodes() {
        let nodes = nodes(&[("n1", "True"), ("n2", "True"), ("n3", "False")]);
        let d = deployment(json!({"containers": []}));
        assert_eq!(choose(&d, &nodes, &[]), Some("n1".into()));
        assert_eq!(choose(&d, &nodes, &["n1".into()]), Some("n2".into()));
        assert_eq!(choose(&d, &nodes, &["n1".into(), "n2".into()]), Some("n1".into()));
    }

    #[test]
    fn anti_affinity_by_host_name_allows_one_a_node() {
        let nodes = nodes(&[("n1", "True"), ("n2", "True")]);
        let d = deployment(json!({"containers": [], "affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}}}));
        assert_eq!(choose(&d, &nodes, &["n1".into()]), Some("n2".into()));
        assert_eq!(choose(&d, &nodes, &["n1".into(), "n2".into()]), None);
    }

    #[test]
    fn a_node_selector_is_respected() {
        let nodes = nodes(&[("n1", "True"), ("n2", "True")]);
        let d = deployment(json!({"containers": [], "nodeSelector": {"kubernetes.io/hostname": "n2"}}));
        assert_eq!(choose(&d, &nodes, &["n2".into()]), Some("n2".into()));
    }

    #[test]
    fn a_pod_has_the_names_of_a_replica_set_and_the_templates_annotations() {
        let pod = pod_of(&deployment(json!({"containers": []})), "6f8dddd88d", "n1").unwrap();
        let name = pod.name_any();
        assert!(name.starts_with("d-6f8dddd88d-") && name.len() == "d-6f8dddd88d-".len() + 5, "{name}");
        assert_eq!(pod.annotations()["a"], "b");
        assert_eq!(pod.spec.unwrap().node_name.unwrap(), "n1");
        assert_eq!(pod.metadata.owner_references.unwrap()[0].uid, "u");
    }
}
