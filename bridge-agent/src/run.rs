//! Wiring: which client, which host, and the tasks that make up an agent. Knows what there is to start and in which order,
//! and nothing of what it does.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use plumbing::{Endpoint, Host, LinuxHost};
use runtime::Shutdown;

use crate::agent_id;
use crate::args::Args;
use crate::attach::{Agent, Me};
use crate::caches::Caches;
use crate::cni_server::Server;
use crate::endpoints::Endpoints;
use crate::events::Events;
use crate::journal::Journal;
use crate::leases::Leases;
use crate::node::NodeLoop;
use crate::sandboxes::looker;

/// Name of the journal in the run directory.
pub const JOURNAL: &str = "journal";
/// Name of the spool in the state directory: a DEL that waits outlives a boot.
pub const SPOOL: &str = "spool";
/// The name under which the stand-in for the API lets this process delete leases.
const ACCOUNT: &str = "mooring-agent";

/// Files and names; the rest of what an agent needs comes with it.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: String,
    pub namespace: String,
    pub cni_socket: PathBuf,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub cni_conf_dir: PathBuf,
    pub netns_dir: PathBuf,
    pub primary: Option<String>,
    /// As the flag has it; none: this node has no Open vSwitch.
    pub ovsdb: Option<String>,
}

/// The agent of this host, until the shutdown.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let client = match &args.api_socket {
        Some(path) => standalone::client::unix(path, ACCOUNT),
        None => Client::try_default()
            .await
            .context("no kubeconfig, and not in a cluster: name the socket of mooring-standalone with --api-socket")?,
    };
    #[cfg(feature = "stop-at-step")]
    let client = crate::stop::client(client);
    let endpoint = args.ovsdb_endpoint()?;
    let ovsdb = endpoint.as_ref().map(Endpoint::to_string);
    let host = LinuxHost::new(endpoint).await.context("failed to open the host's netlink")?;
    let config = Config {
        node: args.node,
        namespace: args.namespace,
        cni_socket: args.cni_socket,
        state_dir: args.state_dir,
        run_dir: args.run_dir,
        cni_conf_dir: args.cni_conf_dir,
        netns_dir: args.netns_dir,
        primary: args.primary,
        ovsdb,
    };
    run_on(Arc::new(host), client, config, shutdown).await
}

/// An agent on any host with any client. Returns after the shutdown, when what was in hand has ended.
pub async fn run_on<H: Host + 'static>(host: Arc<H>, client: Client, config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let agent_id = agent_id::load(&config.state_dir)?.to_string();
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("failed to make {}", config.run_dir.display()))?;
    let (journal, replay) = Journal::open(&config.run_dir.join(JOURNAL))?;
    tracing::info!(node = config.node, agent_id, records = replay.records, dropped = replay.dropped, "starting");
    let journal = Arc::new(journal);
    let caches = Caches::start(&client, &config.node, &shutdown);
    let endpoints = Arc::new(Endpoints::new(client.clone()));
    let events = Arc::new(Events::start(client.clone(), &config.node, shutdown.clone()));
    let leases = Leases::new(
        client.clone(),
        caches.clone(),
        events.clone(),
        &config.node,
        &agent_id,
        journal.clone(),
        looker(host.clone(), config.netns_dir.clone()),
    );
    let me = Me {
        node: config.node.clone(),
        agent_id: agent_id.clone(),
        namespace: config.namespace,
        cni_conf_dir: config.cni_conf_dir,
        primary: config.primary,
        spool: config.state_dir.join(SPOOL),
        netns_dir: config.netns_dir,
        ovsdb: config.ovsdb,
    };
    let agent = Arc::new(Agent::new(
        me,
        host.clone(),
        client.clone(),
        caches.clone(),
        journal.clone(),
        leases,
        endpoints.clone(),
        events,
    ));
    agent.spool.prepare().with_context(|| format!("failed to make the spool in {}", config.state_dir.display()))?;
    // Before the sweep: with the journal as it was, a DEL needs nobody to look up what it is about.
    let drained = agent.drain_at_start().await;
    tracing::info!(?drained, "carried out what was deleted meanwhile");
    let swept = agent.sweep().await;
    tracing::info!(?swept, "compared the journal with the host");
    // Only now: no call comes in while an earlier life is tidied up.
    let server = Server::bind(&config.cni_socket)?;
    let node = NodeLoop::new(host, client, caches, journal, &config.node, &agent_id);
    tokio::join!(
        server.run(agent.clone(), shutdown.clone()),
        node.run(shutdown.clone()),
        endpoints.run(shutdown.clone()),
        agent.leases.run(shutdown.clone()),
        agent.drain_behind(shutdown.clone()),
        agent.publish_again(shutdown.clone()),
        agent.look_for_strays(shutdown.clone()),
    );
    // The next agent makes its own; a caller that finds none is told so at once.
    let _ = std::fs::remove_file(&config.cni_socket);
    tracing::info!("stopped");
    Ok(())
}
