//! Other projects' plugins, executed by the caller of the call in hand. Does not know what they do.

use cni::wire::Exec;
use cni::{AddResult, Error, Verb};
use plumbing::Host;
use serde_json::Value;

use super::Agent;
use crate::cni_server::{RunError, Runner, with_causes};

/// One execution.
#[derive(Debug, Clone)]
pub(crate) struct Foreign<'a> {
    pub plugin: &'a str,
    pub verb: Verb,
    pub container_id: &'a str,
    pub netns: Option<&'a str>,
    pub ifname: &'a str,
    pub args: &'a str,
    pub path: &'a str,
    pub conf: Value,
}

impl<H: Host + 'static> Agent<H> {
    pub(crate) async fn exec<R: Runner>(&self, f: Foreign<'_>, runner: &mut R) -> Result<Option<AddResult>, Error> {
        let (plugin, verb) = (f.plugin.to_owned(), f.verb);
        let exec = Exec {
            plugin: plugin.clone(),
            command: verb,
            container_id: f.container_id.to_owned(),
            netns: f.netns.map(str::to_owned),
            ifname: f.ifname.to_owned(),
            args: f.args.to_owned(),
            path: f.path.to_owned(),
            stdin: f.conf,
        };
        let done = runner.exec(exec).await.map_err(|e| match e {
            RunError::HungUp(_) | RunError::Nobody(_) | RunError::Send(..) => Error::new(Error::TRY_AGAIN, with_causes(&e)),
            RunError::Timeout(_) => Error::new(Error::DELEGATE, e.to_string()),
        })?;
        let mut result = done.result(&plugin, verb);
        if let Err(e) = &mut result {
            e.msg = format!("plugin {plugin} failed ({verb}): {}", e.msg);
        }
        result
    }
}
