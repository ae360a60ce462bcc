//! A thread for one piece of work that is mostly the kernel's: there the hands do everything at once, for nobody else waits on it,
//! instead of handing each part to another thread and being woken when it is done. Knows nothing of the work.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tokio::runtime::Handle;

thread_local! {
    static OWN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` to its end on one of tokio's threads for blocking work; to be called within a runtime. Dropping the future does not
/// stop it. The error is what a panic said.
pub async fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, String> {
    let runtime = Handle::current();
    let act = move || {
        let _own = Own::begin();
        runtime.block_on(work)
    };
    tokio::task::spawn_blocking(act).await.map_err(|e| e.to_string())
}

struct Own;

impl Own {
    fn begin() -> Self {
        OWN.set(true);
        Self
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // The thread serves others next.
        OWN.set(false);
    }
}

/// Whether the calling thread is one of `run`, and may be held up.
pub(crate) fn is_here() -> bool {
    OWN.get()
}

/// Waits for a future on such a thread. Tokio's own way is refused where it waits for another future already. Inside that one's
/// turn tokio's count of how much may be done before others have theirs is not renewed, so nothing is counted.
pub(crate) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(tokio::task::unconstrained(future));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::park(),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// More than tokio lets one task do in a turn (128 at present).
    const MUCH: usize = 1000;

    #[tokio::test]
    async fn work_on_a_thread_of_its_own_may_wait_within_a_wait() {
        assert!(!is_here());
        let done = run(async {
            let inner = wait_for(async {
                let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
                (0..MUCH).for_each(|i| tx.send(i).unwrap());
                let mut sum = 0;
                for _ in 0..MUCH {
                    sum += rx.recv().await.unwrap();
                }
                // Woken by the runtime's own thread.
                tokio::time::sleep(Duration::from_millis(5)).await;
                tokio::spawn(async move { sum }).await.unwrap()
            });
            (inner, is_here())
        });
        assert_eq!(done.await, Ok((MUCH * (MUCH - 1) / 2, true)));
        assert!(!tokio::task::spawn_blocking(is_here).await.unwrap());
    }

    #[tokio::test]
    async fn a_panic_is_told_and_the_thread_is_everybodys_again() {
        let told = run(async { panic!("on purpose") }).await;
        assert!(told.is_err_and(|e: String| e.contains("panic")));
        assert!(!tokio::task::spawn_blocking(is_here).await.unwrap());
    }
}
