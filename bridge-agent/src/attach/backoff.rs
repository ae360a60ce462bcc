//! Pods whose pools are empty. The runtime tries a failing pod again every few seconds for as long as it exists, and each
//! try waits for seconds and, without a map, looks into every pool: a node full of such pods has no place for other calls, and
//! without a controller it is a storm at the API server. So a try that comes too early is answered from here. Knows no API; a
//! free address that is known ends the wait at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use plumbing::Host;
use runtime::Backoff;

use super::Agent;
use super::pools::window;
use crate::caches::Pod;

/// The first wait: an address that comes back is in the next map, a second later.
const MIN: Duration = Duration::from_secs(2);
/// The last: without a controller nothing else says that there is an address again.
const MAX: Duration = Duration::from_secs(60);
/// Pods that are remembered: twice what a node holds. One that is forgotten only asks a little more often.
const REMEMBERED: usize = 512;

/// By pod, NIC and pools.
#[derive(Debug, Default)]
pub struct EmptyPools(Mutex<HashMap<String, Waiting>>);

#[derive(Debug)]
struct Waiting {
    backoff: Backoff,
    until: Instant,
}

/// One for each pod, NIC and list of pools; another pod of the same name is another one.
pub fn key(pod: &Pod, nic: &str, pools: &[String]) -> String {
    let pod = pod.reference();
    format!("{}/{}/{}/{nic}/{}", pod.namespace, pod.name, pod.uid, pools.join(","))
}

impl EmptyPools {
    /// How long it is too early to ask; none: ask.
    pub fn too_early(&self, key: &str, now: Instant) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).map(|w| w.until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// All pools were found empty.
    pub fn found_empty(&self, key: &str, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED
            && !all.contains_key(key)
            && let Some(oldest) = all.iter().min_by_key(|(_, w)| w.until).map(|(k, _)| k.clone())
        {
            all.remove(&oldest);
        }
        let w = all.entry(key.to_owned()).or_insert_with(|| Waiting { backoff: Backoff::new(MIN, MAX), until: now });
        w.until = now + w.backoff.next_wait();
    }

    /// It has its address.
    pub fn found(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl<H: Host + 'static> Agent<H> {
    /// Whether it makes no sense to ask now: these pools were empty for this pod a moment ago, no map says otherwise, and no
    /// address of theirs rests on this node.
    pub(super) fn pools_are_empty(&self, key: &str, pools: &[String], checked: &api::convert::Checked) -> bool {
        self.empty.too_early(key, Instant::now()).is_some()
            && !pools.iter().any(|p| self.leases.has_idle(p) || self.map_says_free(p, checked))
    }

    fn map_says_free(&self, pool: &str, checked: &api::convert::Checked) -> bool {
        let Some(allocatable) = checked.pools.allocatable(pool) else { return false };
        let map = self.caches.pool_map_watch(pool).borrow().clone().flatten();
        map.as_deref().map(window).is_some_and(|w| w.chunks.iter().flat_map(ipam::Chunk::iter).any(|ip| allocatable.contains(ip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_the_wait_is_longer_up_to_a_minute() {
        let e = EmptyPools::default();
        let mut now = Instant::now();
        assert_eq!(e.too_early("p", now), None);
        for full in [2u64, 4, 8, 16, 32, 60, 60] {
            e.found_empty("p", now);
            let left = e.too_early("p", now).unwrap();
            let full = Duration::from_secs(full);
            assert!(left >= full / 2 && left <= full, "{left:?} of {full:?}");
            assert_eq!(e.too_early("other", now), None);
            now += left;
            assert_eq!(e.too_early("p", now), None);
        }
        e.found("p");
        e.found_empty("p", now);
        assert!(e.too_early("p", now).unwrap() <= MIN, "it begins anew");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_first_to_end_goes_first() {
        let e = EmptyPools::default();
        let now = Instant::now();
        for i in 0..2 * REMEMBERED {
            e.found_empty(&i.to_string(), now + Duration::from_secs(i as u64 * 100));
        }
        assert_eq!(e.0.lock().unwrap().len(), REMEMBERED);
        assert!(e.too_early(&(2 * REMEMBERED - 1).to_string(), now).is_some());
        assert!(e.too_early("0", now).is_none());
    }
}
