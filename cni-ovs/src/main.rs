//! The CNI plugin `cni-ovs`: forwards to the node's agent, or works alone where there is none.

use std::process::ExitCode;

use cni::{Error, Request};
use cni_ovs::Conf;
use cni_plugin::alone::{Alone, OvsHost};
use serde_json::Value;

/// Where Open vSwitch's own tools look.
const DEFAULT_SOCKET: &str = "/var/run/openvswitch/db.sock";

fn main() -> ExitCode {
    cni::shim::run("cni-ovs", Some(alone))
}

fn alone(request: &Request) -> Result<Value, Error> {
    let refused = |r: planner::Refusal| cni_plugin::error_of(&r);
    let flat = flat_file(&Conf::flat_file_of(request).map_err(refused)?)?;
    let conf = Conf::parse(request, flat.as_deref()).map_err(refused)?;
    let socket = conf.socket_file.as_deref().unwrap_or(DEFAULT_SOCKET);
    let host = OvsHost::new(ovsdb::Endpoint::Unix(socket.into()))?;
    Alone { request, plugin: &conf, host, gc: Some(cni_ovs::garbage) }.run()
}

/// The first of the files that is there.
fn flat_file(paths: &[String]) -> Result<Option<String>, Error> {
    for path in paths {
        match std::fs::read_to_string(path) {
            Ok(text) => return Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("failed to read {path}: {e}"))),
        }
    }
    Ok(None)
}
