//! Where a process can be made to end, for tests only: with the feature `stop-at-step` and `MOORING_STOP_AT=<verb>:<k>` in its
//! environment it aborts at the k-th step after the first call of that verb, as a crash would. Without the feature, which is
//! how it is shipped, nothing of this is there. Does not know what a step does.

#[cfg(feature = "stop-at-step")]
mod counting {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    static AT: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static ARMED: AtomicBool = AtomicBool::new(false);
    static STEPS: AtomicU64 = AtomicU64::new(0);

    fn at() -> Option<&'static (String, u64)> {
        let parsed = || {
            let text = std::env::var("MOORING_STOP_AT").ok()?;
            let (verb, step) = text.split_once(':')?;
            Some((verb.to_owned(), step.parse().ok()?))
        };
        AT.get_or_init(parsed).as_ref()
    }

    /// A call of this verb came: from the first one that is meant, steps count.
    pub fn begin(verb: &str) {
        if at().is_some_and(|(v, _)| v == verb) {
            ARMED.store(true, Ordering::SeqCst);
        }
    }

    /// A step: the process ends here if it is the one, having done `last`.
    pub fn step_after(what: &dyn std::fmt::Display, last: impl FnOnce()) {
        let Some((verb, step)) = at() else { return };
        if !ARMED.load(Ordering::SeqCst) {
            return;
        }
        let now = STEPS.fetch_add(1, Ordering::SeqCst);
        if now == *step {
            last();
            eprintln!("stopped at step {now} of {verb}: {what}");
            std::process::abort();
        }
    }

    /// A step.
    pub fn step(what: &dyn std::fmt::Display) {
        step_after(what, || {});
    }
}

#[cfg(feature = "stop-at-step")]
pub use counting::{begin, step, step_after};

#[cfg(not(feature = "stop-at-step"))]
mod nothing {
    /// Nothing.
    #[inline(always)]
    pub fn begin(_verb: &str) {}

    /// Nothing.
    #[inline(always)]
    pub fn step(_what: &dyn std::fmt::Display) {}

    /// Nothing.
    #[inline(always)]
    pub fn step_after(_what: &dyn std::fmt::Display, _last: impl FnOnce()) {}
}

#[cfg(not(feature = "stop-at-step"))]
pub use nothing::{begin, step, step_after};
