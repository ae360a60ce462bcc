//! A person's view of the API: apply, label, delete, and the tables that `kubectl get` prints. It knows objects as JSON
//! and columns as paths, nothing of their meaning.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::apply;
use crate::space::Space;

/// A kind by apiVersion and name.
pub type Kind = (&'static str, &'static str);
/// Core pods.
pub const PODS: Kind = ("v1", "Pod");
/// Core nodes.
pub const NODES: Kind = ("v1", "Node");
/// Core events.
pub const EVENTS: Kind = ("v1", "Event");
/// Deployments.
pub const DEPLOYMENTS: Kind = ("apps/v1", "Deployment");
/// Pools.
pub const POOLS: Kind = ("spiderpool.spidernet.io/v2beta1", "SpiderIPPool");
/// Endpoints.
pub const ENDPOINTS: Kind = ("spiderpool.spidernet.io/v2beta1", "SpiderEndpoint");
/// Coordinators.
pub const COORDINATORS: Kind = ("spiderpool.spidernet.io/v2beta1", "SpiderCoordinator");
/// NetworkAttachmentDefinitions.
pub const NADS: Kind = ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition");
/// Bridges.
pub const BRIDGES: Kind = ("mooring.dev/v1alpha1", "Bridge");
/// What each node has of them.
pub const NODE_NETWORKS: Kind = ("mooring.dev/v1alpha1", "NodeNetwork");
/// Leases.
pub const LEASES: Kind = ("mooring.dev/v1alpha1", "AddressLease");

/// The API behind a standalone socket, for callers that wait.
pub struct Cluster {
    runtime: Runtime,
    client: Client,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

impl Cluster {
    /// # Errors
    /// No runtime can be made. The API itself may come up later.
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(async { standalone::client::unix(socket, "lab") });
        Ok(Self { runtime, client })
    }

    /// As a user of a real API server that is on another machine of the lab.
    ///
    /// # Errors
    /// The machine is gone, or the kubeconfig is unusable.
    pub fn on_kube(kubeconfig: &Path, space: &Space) -> Result<Self> {
        let net = Arc::new(File::open(space.netns())?);
        let enter = move || setns(&*net, CloneFlags::CLONE_NEWNET).expect("root enters the namespace of a machine it made");
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().on_thread_start(enter).build()?;
        let config = kube::config::Kubeconfig::read_from(kubeconfig)?;
        let client = runtime.block_on(async {
            let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
            let inner = Client::try_from(config)?;
            // A connection is made by whoever asks for it: by the runtime's own thread, which is on that machine.
            let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
                let inner = inner.clone();
                async move { anyhow::Ok(tokio::spawn(async move { inner.send(request).await }).await??) }
            });
            anyhow::Ok(Client::new(service, "default"))
        })?;
        Ok(Self { runtime, client })
    }

    /// `kubectl apply -f FILE...`
    ///
    /// # Errors
    /// A file is unreadable, or an object is refused.
    pub fn apply(&self, files: &[PathBuf]) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for file in files {
            let yaml = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
            lines.extend(self.apply_text(&yaml).with_context(|| format!("failed to apply {}", file.display()))?);
        }
        Ok(lines)
    }

    /// As [`Cluster::apply`], from text.
    ///
    /// # Errors
    /// An object is refused.
    pub fn apply_text(&self, yaml: &str) -> Result<Vec<String>> {
        self.runtime.block_on(apply::apply(&self.client, yaml))
    }

    /// `kubectl label node NODE KEY=VALUE`; no value removes the label.
    ///
    /// # Errors
    /// There is no such node.
    pub fn label_node(&self, node: &str, key: &str, value: Option<&str>) -> Result<()> {
        let patch = json!({"metadata": {"labels": {key: value}}});
        let api = apply::api(&self.client, NODES.0, NODES.1, None);
        self.runtime.block_on(api.patch(node, &PatchParams::default(), &Patch::Merge(patch)))?;
        Ok(())
    }

    /// One object.
    ///
    /// # Errors
    /// It is not there.
    pub fn get(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Result<Value> {
        let api = apply::api(&self.client, kind.0, kind.1, namespace);
        let object = self.runtime.block_on(api.get(name)).with_context(|| format!("{} {name}", kind.1))?;
        Ok(serde_json::to_value(object)?)
    }

    /// All objects of a kind (in `default`, where it has namespaces), by name.
    ///
    /// # Errors
    /// The API does not answer.
    pub fn list(&self, kind: Kind) -> Result<Vec<Value>> {
        let api = apply::api(&self.client, kind.0, kind.1, None);
        let list = self.runtime.block_on(api.list(&ListParams::default())).with_context(|| format!("list of {}", kind.1))?;
        let mut items = list.items.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
        items.sort_by_key(|o| text(o, "/metadata/name"));
        Ok(items)
    }

    /// `kubectl delete KIND NAME`; not there is fine.
    ///
    /// # Errors
    /// The API refuses.
    pub fn delete(&self, kind: Kind, name: &str) -> Result<()> {
        let api = apply::api(&self.client, kind.0, kind.1, None);
        match self.runtime.block_on(api.delete(name, &DeleteParams::default())) {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(e) => Err(e).with_context(|| format!("delete {} {name}", kind.1)),
        }
    }

    /// A merge patch.
    ///
    /// # Errors
    /// The API refuses.
    pub fn patch(&self, kind: Kind, name: &str, patch: &Value) -> Result<()> {
        let api = apply::api(&self.client, kind.0, kind.1, None);
        let done: Result<DynamicObject, _> =
            self.runtime.block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)));
        done.map(|_| ()).with_context(|| format!("patch {} {name}", kind.1))
    }

    /// The pods of a Deployment's `app` label, all Running, or why not.
    ///
    /// # Errors
    /// Fewer than `count` run: with the newest warning about them.
    pub fn running(&self, app: &str, count: usize) -> Result<Vec<Value>> {
        let mut pods = self.list(PODS)?;
        pods.retain(|p| text(p, "/metadata/labels/app") == app && p.pointer("/metadata/deletionTimestamp").is_none());
        let running = pods.iter().filter(|p| text(p, "/status/phase") == "Running").count();
        if running == count {
            return Ok(pods);
        }
        let about = |e: &Value| text(e, "/involvedObject/name").starts_with(&format!("{app}-"));
        let mut warnings: Vec<Value> = self.list(EVENTS)?.into_iter().filter(about).collect();
        warnings.sort_by_key(|e| text(e, "/lastTimestamp"));
        let why = warnings.last().map(|e| text(e, "/message")).unwrap_or_default();
        bail!("{running} of {count} pods of {app} run; {why}")
    }

    /// A table as kubectl prints it.
    ///
    /// # Errors
    /// The API does not answer.
    pub fn table(&self, kind: Kind, columns: &[(&str, &str)]) -> Result<String> {
        let mut rows = vec![std::iter::once("NAME").chain(columns.iter().map(|c| c.0)).map(str::to_owned).collect()];
        for object in self.list(kind)? {
            let mut row = vec![text(&object, "/metadata/name")];
            row.extend(columns.iter().map(|(_, path)| text(&object, path)));
            rows.push(row);
        }
        Ok(aligned(&rows))
    }

    /// `kubectl get pods -o wide`, whose columns are computed and not read.
    ///
    /// # Errors
    /// The API does not answer.
    pub fn pods_wide(&self) -> Result<String> {
        let names = ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"];
        let mut rows = vec![names.map(str::to_owned).to_vec()];
        for pod in self.list(PODS)? {
            let containers = pod.pointer("/status/containerStatuses").and_then(Value::as_array).cloned().unwrap_or_default();
            let all = pod.pointer("/spec/containers").and_then(Value::as_array).map_or(0, Vec::len);
            let ready = containers.iter().filter(|c| c["ready"] == true).count();
            let restarts: u64 = containers.iter().filter_map(|c| c["restartCount"].as_u64()).sum();
            let created: k8s_openapi::jiff::Timestamp = text(&pod, "/metadata/creationTimestamp").parse()?;
            let age = k8s_openapi::jiff::Timestamp::now().as_second() - created.as_second();
            let or_none = |path| Some(text(&pod, path)).filter(|t| !t.is_empty()).unwrap_or("<none>".into());
            rows.push(vec![
                text(&pod, "/metadata/name"),
                format!("{ready}/{all}"),
                text(&pod, "/status/phase"),
                restarts.to_string(),
                format!("{age}s"),
                or_none("/status/podIP"),
                or_none("/spec/nodeName"),
                or_none("/status/nominatedNodeName"),
                "<none>".into(),
            ]);
        }
        Ok(aligned(&rows))
    }

    /// A condition of an object is True.
    ///
    /// # Errors
    /// It is not: with reason and message.
    pub fn condition(&self, kind: Kind, name: &str, condition: &str) -> Result<()> {
        let object = self.get(kind, None, name)?;
        let list = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        let all: Vec<String> = list
            .iter()
            .map(|c| format!("{}={} {} {}", text(c, "/type"), text(c, "/status"), text(c, "/reason"), text(c, "/message")))
            .collect();
        let is = list.iter().any(|c| text(c, "/type") == condition && text(c, "/status") == "True");
        ensure!(is, "{} {name} is not {condition}: {}", kind.1, all.join("; "));
        Ok(())
    }
}

/// What a path leads to, as text; empty where there is nothing.
pub fn text(object: &Value, path: &str) -> String {
    match object.pointer(path) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Columns three blanks apart, as kubectl's.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(c, text)| format!("{text:<width$}", width = widths[c]));
        out.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["NAME".to_owned(), "IP".to_owned()], vec!["a-long-name".to_owned(), "1".to_owned()]];
        assert_eq!(aligned(&rows), "NAME          IP\na-long-name   1\n");
    }

    #[test]
    fn what_is_absent_is_an_empty_cell() {
        assert_eq!(text(&json!({"a": null}), "/a"), "");
        assert_eq!(text(&json!({"a": [{"b": 4}]}), "/a/0/b"), "4");
    }
}
