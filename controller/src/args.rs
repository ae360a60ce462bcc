//! Flags, parsed once. What users decide is in API objects, not here.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

#[derive(Debug, Parser)]
#[command(
    name = "mooring-controller",
    version,
    about = "Decides for the whole cluster: which nodes get which bridges, which addresses are free"
)]
pub struct Args {
    /// Unix socket of a standalone API. Without it: the kubeconfig, or the service account of the pod.
    #[arg(long, env = "MOORING_API_SOCKET", value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    #[command(flatten)]
    pub log: runtime::log::LogArgs,
}

/// The account under which the standalone API knows us; it may delete address leases.
pub const ACCOUNT: &str = "mooring-controller";

pub async fn client(args: &Args) -> anyhow::Result<kube::Client> {
    match &args.api_socket {
        Some(path) => Ok(standalone::client::unix(path, ACCOUNT)),
        None => kube::Client::try_default().await.context("no --api-socket, and no kubeconfig or service account could be used"),
    }
}
