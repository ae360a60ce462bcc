//! The CNI plugin `cni-macvlan`: forwards to the node's agent, or works alone where there is none.

use std::process::ExitCode;

use cni::{Error, Request};
use cni_macvlan::Conf;
use cni_plugin::alone::{self, Alone};
use serde_json::Value;

fn main() -> ExitCode {
    cni::shim::run("cni-macvlan", Some(alone))
}

fn alone(request: &Request) -> Result<Value, Error> {
    let conf = Conf::parse(request).map_err(|r| cni_plugin::error_of(&r))?;
    // A macvlan lives and dies with its namespace: GC has nothing to find.
    Alone { request, plugin: &conf, host: alone::kernel_host()?, gc: None }.run()
}
