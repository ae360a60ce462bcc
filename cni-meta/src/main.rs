//! One CNI plugin under several names: `mooring`, `coordinator`, `spiderpool`, `ifacer`. All of them only forward to the
//! node's agent, which reads from the configuration's `type` which one is meant.

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(std::path::Path::new).and_then(|p| p.file_name()).and_then(|n| n.to_str());
    cni::shim::run(name.unwrap_or("cni-meta"), None)
}
