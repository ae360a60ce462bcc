//! mooring-agent: flags, logging, signals; everything else is the library's.

use anyhow::Context;
use bridge_agent::args::Args;
use clap::Parser;
use runtime::Shutdown;

/// Calls wait for the kernel and for sockets, not for the processor: two threads keep a slow one from holding all up.
const THREADS: usize = 2;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    runtime::log::init(&args.log)?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("failed to start tokio")?;
    tokio.block_on(async {
        let shutdown = Shutdown::on_signals().context("failed to listen for signals")?;
        bridge_agent::run::run(args, shutdown).await
    })
}
