//! The kinds that are served: a table of built-in ones and those of CustomResourceDefinitions. It does not know objects,
//! only how their kind is named, scoped and checked.

use std::collections::HashMap;

use k8s_openapi::api::{apps, coordination, core};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::schema::{self, Schema};

/// One served kind in one version.
#[derive(Debug)]
pub struct Kind {
    /// API group, empty for core.
    pub group: String,
    /// The version that is served and stored.
    pub version: String,
    /// `Pod`
    pub kind: String,
    /// `pods`
    pub plural: String,
    /// `pod`
    pub singular: String,
    /// `po`
    pub short_names: Vec<String>,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// Has `/status`; then the main resource ignores `status` and `/status` ignores all else.
    pub status: bool,
    /// Counts `metadata.generation`.
    pub generation: bool,
    /// PUT without a resourceVersion is allowed.
    pub unconditional_update: bool,
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub fields: Vec<String>,
    /// What an object must look like.
    pub shape: Shape,
}

/// How an object of a kind is checked.
#[derive(Debug)]
pub enum Shape {
    /// By the generated type: wrong types are refused, unknown fields dropped.
    Typed(fn(Value) -> Result<Value, serde_json::Error>),
    /// By the schema of its CRD.
    Schema(Box<Schema>),
}

/// Why a CustomResourceDefinition cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No version is the stored one.
    #[error("crd {0}: no version has storage: true")]
    NoStorageVersion(String),
    /// More than one served version would need conversion, which this server does not do.
    #[error("crd {0}: more than one served version")]
    ManyVersions(String),
    /// The schema is unusable.
    #[error("crd {name}: {source}")]
    Schema {
        /// `metadata.name` of the CRD.
        name: String,
        /// What is wrong in it.
        source: schema::Error,
    },
    /// Two kinds with one path.
    #[error("{0} is defined twice")]
    Twice(String),
}

impl Kind {
    /// `apps/v1`, or `v1` for core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, as "not found" messages name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Deployment.apps`, as "is invalid" messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// Whether this is that built-in kind.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }

    /// A kind of a CRD: its stored version.
    pub fn from_crd(crd: &CustomResourceDefinition) -> Result<Self, Error> {
        let spec = &crd.spec;
        let name = crd.metadata.name.clone().unwrap_or_else(|| format!("{}.{}", spec.names.plural, spec.group));
        if spec.versions.iter().filter(|v| v.served).count() > 1 {
            return Err(Error::ManyVersions(name));
        }
        let Some(version) = spec.versions.iter().find(|v| v.storage) else {
            return Err(Error::NoStorageVersion(name));
        };
        let open_api = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let open_api = open_api.map_or_else(
            || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            |s| serde_json::to_value(s).expect("a schema is plain data"),
        );
        let schema = Schema::new(&open_api).map_err(|source| Error::Schema { name, source })?;
        let fields = version.selectable_fields.iter().flatten();
        Ok(Self {
            group: spec.group.clone(),
            version: version.name.clone(),
            kind: spec.names.kind.clone(),
            plural: spec.names.plural.clone(),
            singular: spec.names.singular.clone().unwrap_or_else(|| spec.names.kind.to_lowercase()),
            short_names: spec.names.short_names.clone().unwrap_or_default(),
            namespaced: spec.scope == "Namespaced",
            status: version.subresources.as_ref().is_some_and(|s| s.status.is_some()),
            generation: true,
            unconditional_update: false,
            fields: fields.map(|f| f.json_path.trim_start_matches('.').to_owned()).collect(),
            shape: Shape::Schema(Box::new(schema)),
        })
    }
}

fn typed<T: Serialize + DeserializeOwned>(value: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

const CLUSTER: u8 = 1;
const STATUS: u8 = 2;
const GENERATION: u8 = 4;
/// PUT needs a resourceVersion.
const CONDITIONAL: u8 = 8;

fn builtin_kind<T: Serialize + DeserializeOwned>(
    path: &str,
    names: [&str; 3],
    short: &[&str],
    flags: u8,
    fields: &[&str],
) -> Kind {
    let (group, version) = path.split_once('/').unwrap_or(("", path));
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: names[0].to_owned(),
        plural: names[1].to_owned(),
        singular: names[2].to_owned(),
        short_names: short.iter().map(|s| (*s).to_owned()).collect(),
        namespaced: flags & CLUSTER == 0,
        status: flags & STATUS != 0,
        generation: flags & GENERATION != 0,
        unconditional_update: flags & CONDITIONAL == 0,
        fields: fields.iter().map(|s| (*s).to_owned()).collect(),
        shape: Shape::Typed(typed::<T>),
    }
}

/// The built-in kinds that our controllers use, and the NetworkAttachmentDefinition.
pub fn builtin() -> Vec<Kind> {
    let pod = [
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ];
    let event = [
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "type",
    ];
    vec![
        builtin_kind::<core::v1::Node>("v1", ["Node", "nodes", "node"], &["no"], CLUSTER | STATUS, &["spec.unschedulable"]),
        builtin_kind::<core::v1::Namespace>(
            "v1",
            ["Namespace", "namespaces", "namespace"],
            &["ns"],
            CLUSTER | STATUS,
            &["status.phase"],
        ),
        builtin_kind::<core::v1::Pod>("v1", ["Pod", "pods", "pod"], &["po"], STATUS | GENERATION, &pod),
        builtin_kind::<core::v1::ConfigMap>("v1", ["ConfigMap", "configmaps", "configmap"], &["cm"], 0, &[]),
        builtin_kind::<core::v1::Event>("v1", ["Event", "events", "event"], &["ev"], 0, &event),
        builtin_kind::<core::v1::Service>(
            "v1",
            ["Service", "services", "service"],
            &["svc"],
            STATUS,
            &["spec.clusterIP", "spec.type"],
        ),
        builtin_kind::<apps::v1::Deployment>(
            "apps/v1",
            ["Deployment", "deployments", "deployment"],
            &["deploy"],
            STATUS | GENERATION,
            &[],
        ),
        builtin_kind::<apps::v1::ReplicaSet>(
            "apps/v1",
            ["ReplicaSet", "replicasets", "replicaset"],
            &["rs"],
            STATUS | GENERATION,
            &["status.replicas"],
        ),
        builtin_kind::<apps::v1::StatefulSet>(
            "apps/v1",
            ["StatefulSet", "statefulsets", "statefulset"],
            &["sts"],
            STATUS | GENERATION,
            &[],
        ),
        builtin_kind::<coordination::v1::Lease>("coordination.k8s.io/v1", ["Lease", "leases", "lease"], &[], CONDITIONAL, &[]),
        network_attachment_definition(),
    ]
}

/// The kind of the Network Plumbing Working Group's CRD (Multi-CNI specification 1.3, section 3).
fn network_attachment_definition() -> Kind {
    let schema = json!({"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": {"type": "object", "properties": {"config": {"type": "string"}}},
    }});
    Kind {
        group: "k8s.cni.cncf.io".to_owned(),
        version: "v1".to_owned(),
        kind: "NetworkAttachmentDefinition".to_owned(),
        plural: "network-attachment-definitions".to_owned(),
        singular: "network-attachment-definition".to_owned(),
        short_names: vec!["net-attach-def".to_owned()],
        namespaced: true,
        status: false,
        generation: true,
        unconditional_update: false,
        fields: Vec::new(),
        shape: Shape::Schema(Box::new(Schema::new(&schema).expect("a constant schema is valid"))),
    }
}

/// Index of a kind in [`Kinds`].
pub type KindId = usize;

/// All served kinds, found by path or by owner reference.
#[derive(Debug)]
pub struct Kinds {
    all: Vec<Kind>,
    by_path: HashMap<(String, String, String), KindId>,
    by_kind: HashMap<(String, String), KindId>,
}

impl Kinds {
    /// Fails when two kinds share a path.
    pub fn new(all: Vec<Kind>) -> Result<Self, Error> {
        let mut by_path = HashMap::new();
        let mut by_kind = HashMap::new();
        for (id, kind) in all.iter().enumerate() {
            let path = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
            if by_path.insert(path, id).is_some() {
                return Err(Error::Twice(kind.resource()));
            }
            by_kind.insert((kind.group.clone(), kind.kind.clone()), id);
        }
        Ok(Self { all, by_path, by_kind })
    }

    /// Every kind in its order.
    pub fn all(&self) -> &[Kind] {
        &self.all
    }

    /// The kind behind an id of this table.
    pub fn get(&self, id: KindId) -> &Kind {
        &self.all[id]
    }

    /// By group, version and plural name.
    pub fn at_path(&self, group: &str, version: &str, plural: &str) -> Option<KindId> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).copied()
    }

    /// By `apiVersion` and `kind`; the version is not looked at, as an owner may be named by any.
    pub fn of_reference(&self, api_version: &str, kind: &str) -> Option<KindId> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.by_kind.get(&(group.to_owned(), kind.to_owned())).copied()
    }
}
