//! The only place that writes to the API. A `Write` is a value that `decide` made; a write that fails marks its part dirty
//! again, because the object has changed meanwhile or the API is not to be had.

use std::fmt;

use api::mooring::{AddressLease, Bridge, NodeNetwork, PoolMap};
use api::{NetworkAttachmentDefinition, SpiderCoordinator, SpiderIPPool, SpiderMultusConfig};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource};
use serde_json::Value;

/// Kinds that the controller writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Pool,
    PoolMap,
    Lease,
    MultusConfig,
    Nad,
    Coordinator,
    Bridge,
    NodeNetwork,
    Node,
    Event,
}

impl Kind {
    fn resource(self) -> ApiResource {
        match self {
            Kind::Pool => ApiResource::erase::<SpiderIPPool>(&()),
            Kind::PoolMap => ApiResource::erase::<PoolMap>(&()),
            Kind::Lease => ApiResource::erase::<AddressLease>(&()),
            Kind::MultusConfig => ApiResource::erase::<SpiderMultusConfig>(&()),
            Kind::Nad => ApiResource::erase::<NetworkAttachmentDefinition>(&()),
            Kind::Coordinator => ApiResource::erase::<SpiderCoordinator>(&()),
            Kind::Bridge => ApiResource::erase::<Bridge>(&()),
            Kind::NodeNetwork => ApiResource::erase::<NodeNetwork>(&()),
            Kind::Node => ApiResource::erase::<Node>(&()),
            Kind::Event => ApiResource::erase::<Event>(&()),
        }
    }
}

/// One write to one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: String,
    pub op: Op,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The whole object. "Exists already" is a conflict.
    Create(Value),
    /// RFC 7396; a `metadata.resourceVersion` in it guards against writing over what we have not seen.
    Patch(Value),
    /// The same to the status subresource.
    PatchStatus(Value),
    /// The whole object with the resourceVersion that was read.
    Replace(Value),
    Delete {
        uid: Option<String>,
        /// Only as it was decided about.
        resource_version: Option<String>,
    },
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match &self.op {
            Op::Create(_) => "create",
            Op::Patch(_) => "patch",
            Op::PatchStatus(_) => "patch status of",
            Op::Replace(_) => "replace",
            Op::Delete { .. } => "delete",
        };
        write!(f, "{verb} {:?} ", self.kind)?;
        if let Some(ns) = &self.namespace {
            write!(f, "{ns}/")?;
        }
        f.write_str(&self.name)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("failed to {write}: the object has changed since it was read")]
    Conflict { write: String },
    #[error("failed to {write}")]
    Api {
        write: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("failed to {write}: it is no object of that kind")]
    Shape {
        write: String,
        #[source]
        source: serde_json::Error,
    },
}

/// Carries one write out. "Not there" is success for a delete, and for a patch whose object went meanwhile.
pub async fn write(client: &Client, w: &Write) -> Result<(), WriteError> {
    let resource = w.kind.resource();
    let api: Api<DynamicObject> = match &w.namespace {
        Some(ns) => Api::namespaced_with(client.clone(), ns, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let object = |v: &Value| {
        serde_json::from_value::<DynamicObject>(v.clone()).map_err(|source| WriteError::Shape { write: w.to_string(), source })
    };
    let params = PatchParams::default();
    let result = match &w.op {
        Op::Create(v) => api.create(&PostParams::default(), &object(v)?).await.map(drop),
        Op::Replace(v) => api.replace(&w.name, &PostParams::default(), &object(v)?).await.map(drop),
        Op::Patch(v) => api.patch(&w.name, &params, &Patch::Merge(v)).await.map(drop),
        Op::PatchStatus(v) => api.patch_status(&w.name, &params, &Patch::Merge(v)).await.map(drop),
        Op::Delete { uid, resource_version } => {
            let only = Preconditions { uid: uid.clone(), resource_version: resource_version.clone() };
            let p = DeleteParams {
                preconditions: (uid.is_some() || resource_version.is_some()).then_some(only),
                ..Default::default()
            };
            api.delete(&w.name, &p).await.map(drop)
        }
    };
    match result {
        Ok(()) => Ok(()),
        Err(kube::Error::Api(s)) if s.code == 404 && !matches!(w.op, Op::Create(_)) => Ok(()),
        // An Event's name says what it tells; it has been told.
        Err(kube::Error::Api(s)) if s.code == 409 && w.kind == Kind::Event => Ok(()),
        Err(kube::Error::Api(s)) if s.code == 409 => Err(WriteError::Conflict { write: w.to_string() }),
        Err(e) => Err(WriteError::Api { write: w.to_string(), source: Box::new(e) }),
    }
}

impl WriteError {
    /// The cause in words, for logs.
    pub fn source_text(&self) -> String {
        std::error::Error::source(self).map(ToString::to_string).unwrap_or_default()
    }
}

/// `metadata` of a patch that must not write over what was not seen.
pub fn guard<K: Resource>(obj: &K) -> Value {
    serde_json::json!({ "resourceVersion": obj.meta().resource_version })
}
