//! The API on a unix socket, as an agent of its own process has it: it can go, be silent, and come back with what it had.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use runtime::Shutdown;
use tokio::task::JoinHandle;

use crate::world::World;

pub struct Served {
    pub server: standalone::Server,
    dir: tempfile::TempDir,
    serving: Option<(Shutdown, JoinHandle<std::io::Result<()>>)>,
}

fn new() -> standalone::Server {
    standalone::Server::new(standalone::kinds::builtin(), api::crds::all()).unwrap()
}

impl Served {
    /// With an agent that talks to it.
    pub async fn start() -> (Self, World) {
        let mut served = Self { server: new(), dir: tempfile::tempdir().unwrap(), serving: None };
        served.serve();
        let w = World::with_client(served.server.clone(), standalone::client::unix(served.socket(), "mooring-agent")).await;
        w.until("the socket is there", || served.socket().exists()).await;
        (served, w)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn serve(&mut self) {
        let (server, socket, stop) = (self.server.clone(), self.socket(), Shutdown::new());
        let stopped = stop.clone();
        let serving = tokio::spawn(async move { server.serve_unix(&socket, async move { stopped.wait().await }).await });
        self.serving = Some((stop, serving));
    }

    pub async fn stop(&mut self) {
        if let Some((stop, serving)) = self.serving.take() {
            stop.trigger();
            serving.await.unwrap().unwrap();
        }
    }

    /// Stopped, it takes connections and never answers, until this is dropped.
    pub fn silent(&self) -> UnixListener {
        std::fs::remove_file(self.socket()).ok();
        UnixListener::bind(self.socket()).unwrap()
    }

    /// Comes back with what it had.
    pub fn restart(&mut self) {
        std::fs::remove_file(self.socket()).ok();
        let snapshot = self.dir.path().join("snapshot");
        self.server.save(&snapshot).unwrap();
        self.server = new();
        self.server.load(&snapshot).unwrap();
        self.serve();
    }
}
