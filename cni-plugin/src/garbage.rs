//! What GC has to go by where there is no agent: the marks that ADD left on what outlives a container's namespace. Pure.

use std::collections::BTreeMap;

use model::{AttachmentId, Owner};

/// `external_ids` key: program of the runtime whose ADD made the port.
pub const RUNTIME_KEY: &str = "mooring-runtime";
/// `external_ids` key: the plugin's process that made it, `<pid>/<start time>`. While it runs, its ADD is not complete.
pub const PROCESS_KEY: &str = "mooring-process";

/// What a GC call leaves alone.
#[derive(Clone, Copy)]
pub struct Stays<'a> {
    /// CNI `name`: other networks' attachments stay.
    pub network: &'a str,
    /// Other runtimes' stay; empty (it cannot be told): all stay.
    pub runtime: &'a str,
    /// Attachments that the runtime knows.
    pub valid: &'a [AttachmentId],
    /// Of a value of `PROCESS_KEY`.
    pub is_running: &'a dyn Fn(&str) -> bool,
}

impl std::fmt::Debug for Stays<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stays")
            .field("network", &self.network)
            .field("runtime", &self.runtime)
            .field("valid", &self.valid)
            .finish()
    }
}

impl Stays<'_> {
    /// Whether a port with these `external_ids`, which a plugin alone has made, is garbage. `network_key` holds the network.
    pub fn is_garbage(&self, owner: &Owner, network_key: &str, external_ids: &BTreeMap<String, String>) -> bool {
        let get = |key: &str| external_ids.get(key).map(String::as_str);
        get(network_key) == Some(self.network)
            && !self.runtime.is_empty()
            && get(RUNTIME_KEY) == Some(self.runtime)
            && !self.valid.contains(&owner.attachment)
            && !get(PROCESS_KEY).is_some_and(|p| (self.is_running)(p))
    }
}
