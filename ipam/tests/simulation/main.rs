//! A seeded simulation of several agents: the real machine, a model of everything around it, and everything that can go wrong
//! there. `MOORING_SCHEDULES` says how many schedules (`make simulate`: a million), `MOORING_SEED` replays one with all it did.
#![allow(clippy::unwrap_used)]

mod check;
mod control;
mod faults;
mod pods;
mod regressions;
mod schedule;
mod server;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use schedule::Schedule;
use world::World;

fn run(s: &Schedule) -> Result<u64, String> {
    let mut w = World::new(s);
    w.run(s)?;
    Ok(w.steps)
}

/// Schedule, reason and all that happened, of the shortest one that fails like this.
fn explain(s: &Schedule) -> String {
    let shortest = s.shrink(|s| run(s).is_err());
    let mut w = World::new(&shortest);
    w.trace = Some(Vec::new());
    let why = w.run(&shortest).unwrap_err();
    let trace = w.trace.unwrap().join("\n");
    format!(
        "{trace}\n\n{why}\n\nthe shortest schedule:\n{shortest}\nagain, with all that happens: MOORING_SEED={} cargo test --profile lab -p ipam --test simulation every_schedule -- --nocapture",
        s.seed
    )
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v:?} is not a number")))
}

#[test]
fn every_schedule_gives_no_address_twice_loses_none_and_settles() {
    if let Some(seed) = number("MOORING_SEED") {
        let s = Schedule::of_seed(seed);
        assert!(run(&s).is_ok(), "{}", explain(&s));
        println!("seed {seed} passes");
        return;
    }
    let count = number("MOORING_SCHEDULES").unwrap_or(100_000);
    let began = std::time::Instant::now();
    let (next, steps, failed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(None::<u64>));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count || failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                        return;
                    }
                    match run(&Schedule::of_seed(seed)) {
                        Ok(n) => {
                            steps.fetch_add(n, Ordering::Relaxed);
                        }
                        Err(_) => {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(seed);
                        }
                    }
                }
            });
        }
    });
    if let Some(seed) = failed.into_inner().unwrap() {
        panic!("{}", explain(&Schedule::of_seed(seed)));
    }
    println!("{count} schedules, {} events, {:.1?}", steps.into_inner(), began.elapsed());
}
