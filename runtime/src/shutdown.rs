//! One switch that every task watches: set once, never unset.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A cheap handle; clones see the same switch.
#[derive(Debug, Clone)]
pub struct Shutdown {
    rx: watch::Receiver<bool>,
    tx: watch::Sender<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    pub fn new() -> Self {
        let (tx, rx) = watch::channel(false);
        Self { rx, tx }
    }

    /// Triggers on SIGTERM and SIGINT. Needs a running tokio runtime.
    pub fn on_signals() -> std::io::Result<Self> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let s = Self::new();
        let mine = s.clone();
        // Ends with the first signal or with the process.
        tokio::spawn(async move {
            let name = tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
            tracing::info!(signal = name, "shutting down");
            mine.trigger();
        });
        Ok(s)
    }

    pub fn trigger(&self) {
        // Receivers may all be gone; the state stays for those who ask later.
        self.tx.send_replace(true);
    }

    pub fn is_set(&self) -> bool {
        *self.rx.borrow()
    }

    /// Returns when triggered; at once if it has been. Safe to cancel.
    pub async fn wait(&self) {
        let mut rx = self.rx.clone();
        // An error means that all senders are gone, which cannot be: we hold one.
        let _ = rx.wait_for(|set| *set).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_clones_see_it_even_late_ones() {
        let s = Shutdown::new();
        let a = s.clone();
        let waiter = tokio::spawn(async move { a.wait().await });
        assert!(!s.is_set());
        s.trigger();
        waiter.await.unwrap();
        s.clone().wait().await;
        assert!(s.is_set());
    }
}
