//! `mooring-standalone`: the stand-in API as a process: flags, log, snapshot, socket, signals. It does not know any verb.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use standalone::{Server, kinds};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Serves the kinds that Mooring uses on a unix socket, without a cluster.
#[derive(Debug, Parser)]
#[command(name = "mooring-standalone", version)]
struct Args {
    /// Socket to serve; it gets mode 0600
    #[arg(long, env = "MOORING_STANDALONE_SOCKET", default_value = "/run/mooring/standalone.sock")]
    socket: PathBuf,
    /// File that keeps the objects over restarts; without it they are gone with the process
    #[arg(long, env = "MOORING_STANDALONE_SNAPSHOT")]
    snapshot: Option<PathBuf>,
    /// Log filter, such as info or standalone=debug
    #[arg(long, env = "MOORING_LOG", default_value = "info")]
    log: String,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();

    let server = Server::new(kinds::builtin(), api::crds::all()).context("failed to set up the served kinds")?;
    if let Some(path) = &args.snapshot {
        let found = server.load(path).context("failed to take over the snapshot; move it away to start empty")?;
        // Before anything is served: the versions that this start skips over must stay skipped when it is killed before its
        // first snapshot, or the next start would give the same ones out. And a file that cannot be written is told now.
        server.save(path).context("failed to write the snapshot")?;
        tracing::info!(path = %path.display(), found, "snapshot");
    }
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let until_stopped = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone: also a reason to stop.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let keeper = args.snapshot.clone().map(|path| {
        let (server, stopped) = (server.clone(), until_stopped(stopped.clone()));
        tokio::spawn(async move { server.keep_snapshot(&path, stopped).await })
    });
    tracing::info!(socket = %args.socket.display(), "serving");
    let serving = server.serve_unix(&args.socket, async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let served = serving.await.with_context(|| format!("failed to serve {}", args.socket.display()));
    // Only now: what was written while the last requests ended is in the last snapshot.
    stop.send_replace(true);
    if let Some(keeper) = keeper {
        keeper.await?.context("failed to write the last snapshot")?;
    }
    tracing::info!("stopped");
    served
}
