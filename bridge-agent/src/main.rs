//! mooring-agent: flags, logging, signals; everything else is the library's.

use anyhow::Context;
use bridge_agent::args::Args;
use clap::Parser;
use runtime::Shutdown;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    runtime::log::init(&args.log)?;
    // One thread: a call waits for the kernel, on threads of its own, and for sockets. Handing it from worker to worker cost
    // more than its part of the work.
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start tokio")?;
    tokio.block_on(async {
        let shutdown = Shutdown::on_signals().context("failed to listen for signals")?;
        // A task, for each wake-up of the future that is waited for here is a write to an eventfd and a turn of the poll.
        tokio::spawn(bridge_agent::run::run(args, shutdown)).await.context("the agent ended in a panic")?
    })
}
