//! `mooring`: what people ask of Mooring by hand. Reads the API and, for `plan`, this host; only `release` changes anything.

mod cmd;
mod table;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "mooring", version, about = "Shows and explains what Mooring does")]
struct Args {
    /// Unix socket of a standalone API. Without it: the kubeconfig.
    #[arg(long, env = "MOORING_API_SOCKET", value_name = "PATH", global = true)]
    api_socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the steps that would bring this host's bridges to what a file says, without taking them.
    Plan(cmd::plan::Args),
    /// Bridges, nodes, pools and endpoints as tables.
    Show(cmd::show::Args),
    /// Why a pod has the addresses that it has, or none: every pool with its reason.
    #[command(subcommand)]
    Explain(cmd::explain::What),
    /// Who has an address.
    WhoHas(cmd::who_has::Args),
    /// Which addresses of a pool are free.
    Free(cmd::free::Args),
    /// Declare a node dead: its addresses may be given to others.
    Release(cmd::release::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let client = || async {
        match &args.api_socket {
            Some(path) => Ok(standalone::client::unix(path, "mooring-cli")),
            None => kube::Client::try_default().await.context("no --api-socket, and no kubeconfig could be used"),
        }
    };
    let text = match args.command {
        Command::Plan(a) => cmd::plan::run(&a).await?,
        Command::Show(a) => cmd::show::run(client().await?, &a).await?,
        Command::Explain(a) => cmd::explain::run(client().await?, &a).await?,
        Command::WhoHas(a) => cmd::who_has::run(client().await?, &a).await?,
        Command::Free(a) => cmd::free::run(client().await?, &a).await?,
        Command::Release(a) => cmd::release::run(client().await?, &a).await?,
    };
    print!("{text}");
    Ok(())
}
