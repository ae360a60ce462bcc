//! Waiting times between tries: doubling, with jitter, bounded.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Yields `min`, 2 `min`, 4 `min` ... up to `max`, each spread evenly over its upper half, so that many clients that failed
/// together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, tries: 0 }
    }

    /// After a success: the next wait is `min` again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    pub fn next_wait(&mut self) -> Duration {
        let full = self.min.saturating_mul(1u32.checked_shl(self.tries).unwrap_or(u32::MAX)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(0.5 + 0.5 * unit_random())
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }
}

/// Evenly in [0, 1). Each `RandomState` has fresh keys from the system, which is random enough to spread clients.
fn unit_random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_again_after_a_success() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut b = Backoff::new(min, max);
        for full in [100, 200, 400, 800, 1000, 1000] {
            let w = b.next_wait();
            assert!(w >= Duration::from_millis(full / 2) && w <= Duration::from_millis(full), "{w:?} for {full}");
        }
        for _ in 0..100 {
            assert!(b.next_wait() <= max);
        }
        b.reset();
        assert!(b.next_wait() <= min);
    }
}
