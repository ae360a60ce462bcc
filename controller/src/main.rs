//! The cluster-side process: `mooring-controller`.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = controller::args::Args::parse();
    runtime::log::init(&args.log)?;
    let shutdown = runtime::Shutdown::on_signals()?;
    let client = controller::args::client(&args).await?;
    controller::run::run(client, shutdown).await
}
