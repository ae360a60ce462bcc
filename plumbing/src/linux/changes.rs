//! One number that grows when the host changes. One task owns the notifications; it ends with the host it belongs to, and
//! cancelling it loses nothing but notifications.

use std::time::Duration;

use netlink::{Monitor, Netns};
use ovsdb::Replica;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::ovs::Ovs;

/// A change seldom comes alone: a new link is some ten notifications. They count as one when they come this close together.
const SETTLE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Changes {
    count: watch::Receiver<u64>,
    task: tokio::task::AbortHandle,
}

impl Changes {
    pub fn start(netns: &Netns, ovs: Option<&Ovs>) -> Self {
        let (send, count) = watch::channel(0);
        let monitor = Monitor::open_in(netns).map_err(|e| e.to_string()).and_then(readable);
        let replica = ovs.map(|o| o.replica().clone());
        let task = tokio::spawn(async move {
            match monitor {
                Ok(monitor) => follow(&monitor, replica, &send).await,
                Err(error) => tracing::error!(error, "changes of links are not noticed"),
            }
        });
        Self { count, task: task.abort_handle() }
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.clone()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe because some types change their descriptor while registered; a monitor keeps its own to the end"
)]
fn readable(monitor: Monitor) -> Result<AsyncFd<Monitor>, String> {
    AsyncFd::new(monitor).map_err(|e| e.to_string())
}

async fn follow(monitor: &AsyncFd<Monitor>, replica: Option<Replica>, count: &watch::Sender<u64>) {
    let mut status = replica.as_ref().map(Replica::subscribe);
    loop {
        let ovs = async {
            match &mut status {
                Some(s) => s.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = monitor.readable() => match ready {
                Ok(mut guard) => {
                    let changed = monitor.get_ref().changed();
                    guard.clear_ready();
                    match changed {
                        Ok(true) => {}
                        Ok(false) => continue,
                        Err(error) => {
                            tracing::error!(%error, "changes of links are noticed no longer");
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "changes of links are noticed no longer");
                    return;
                }
            },
            alive = ovs => if !alive { status = None; },
        }
        tokio::time::sleep(SETTLE).await;
        count.send_modify(|n| *n += 1);
    }
}
