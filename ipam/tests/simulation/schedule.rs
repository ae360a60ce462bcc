//! What happens in one run, as a list: pods come and go, things break. Made from a seed, printed, and made shorter as long as
//! it still fails. Does not know what the world makes of it.

use std::fmt;
use std::time::Duration;

/// splitmix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Milliseconds in `from..=to`.
    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Any address.
    Any,
    /// Ordinal of a StatefulSet.
    Ordinal(usize),
    /// The n-th address of the pool, by name.
    Address(usize),
}

/// What the network or the API server does to requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing arrives.
    Partition,
    /// Carried out, but no answer comes.
    NoAnswer,
    /// Carried out up to a minute later, long after the client gave up.
    Late,
    /// 500, carried out or not.
    Error500,
    /// 429.
    TooMany,
    /// Slow by two seconds.
    Slow,
    /// Answers of lists are old.
    Stale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Create {
        pod: usize,
        node: usize,
        asks: Asks,
    },
    Delete {
        pod: usize,
    },
    /// The runtime hangs up on an ADD that is under way.
    HangUp {
        pod: usize,
    },
    Requests {
        node: usize,
        mode: Mode,
        percent: u64,
        ms: u64,
    },
    /// Events of watches, maps included, do not come.
    WatchesLost {
        node: usize,
        ms: u64,
    },
    /// After so many steps of the agent's work.
    Crash {
        node: usize,
        steps: u64,
    },
    /// Sandboxes and journal are gone.
    Reboot {
        node: usize,
        ms: u64,
    },
    /// The same, and the disk too: another machine under the old name.
    Recreate {
        node: usize,
        ms: u64,
    },
    /// The agent loses its id and nothing else.
    LoseDisk {
        node: usize,
    },
    /// The agent is killed, and its journal has lost each record with this probability.
    LoseJournal {
        node: usize,
        percent: u64,
    },
    /// Dead, and declared dead so much later: what it sent may still be on its way.
    Die {
        node: usize,
        fenced_after_ms: u64,
    },
    ControllerDown {
        ms: u64,
    },
    /// The controller dies after so many of its writes: in the middle of a fencing, between two maps.
    ControllerDies {
        writes: u64,
        ms: u64,
    },
    /// The controller's watch stands still: its maps and its fencing go by what was.
    ControllerLate {
        ms: u64,
    },
    /// Somebody without a lease uses the n-th of all addresses.
    Stranger {
        address: usize,
        ms: u64,
    },
    /// etcd goes back; `bump`: the revision goes on from where it was.
    Restore {
        by_ms: u64,
        bump: bool,
    },
    /// A wall clock, of a node or of the controller, goes so wrong. The machine has none: it counts only where quarantines begin,
    /// and where they end.
    Clock {
        node: Option<usize>,
        secs: i64,
    },
}

impl What {
    /// A new life of an agent begins.
    pub fn starts_agents(self) -> bool {
        use What::{Crash, LoseDisk, LoseJournal, Reboot, Recreate};
        matches!(self, Crash { .. } | LoseDisk { .. } | LoseJournal { .. } | Reboot { .. } | Recreate { .. })
    }

    /// What leaves traces that only the hourly comparison finds: something old came back that no living agent remembers.
    pub fn needs_comparison(self) -> bool {
        self.starts_agents() || matches!(self, What::Restore { .. } | What::Die { .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    pub at: Duration,
    pub what: What,
}

#[derive(Debug, Clone)]
pub struct Schedule {
    pub seed: u64,
    pub nodes: usize,
    pub addresses: usize,
    /// Addresses of a second pool, for when the first gives none; 0: there is none.
    pub second: usize,
    /// Addresses of a pool of IPv6, of which each pod gets one too; 0: there is none.
    pub v6: usize,
    pub actions: Vec<Action>,
}

impl Schedule {
    pub fn of_seed(seed: u64) -> Self {
        let mut r = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1));
        let nodes = 2 + usize::from(r.chance(30));
        // From a pool that is always short to one that allows spares.
        let addresses = if r.chance(50) { 2 + r.below(5) } else { 10 + r.below(30) } as usize;
        let second = if r.chance(15) { 1 + r.below(6) } else { 0 } as usize;
        let v6 = if r.chance(20) { 2 + r.below(if addresses < 7 { 5 } else { 30 }) } else { 0 } as usize;
        let mut at = Duration::ZERO;
        let mut pods = 0;
        let count = 4 + r.below(14);
        let faulty = r.chance(85);
        let mut actions = Vec::new();
        for _ in 0..count {
            at += match r.below(10) {
                0..5 => r.ms(0, 50),
                5..8 => r.ms(50, 3000),
                8 => r.ms(3000, 20_000),
                _ => r.ms(55_000, 70_000),
            };
            let node = r.below(nodes as u64) as usize;
            let what = match r.below(if faulty { 111 } else { 62 }) {
                0..34 => {
                    pods += 1;
                    let asks = match r.below(10) {
                        0..6 => Asks::Any,
                        6..8 => Asks::Ordinal(r.below(2) as usize),
                        _ => Asks::Address(r.below((addresses + second) as u64) as usize),
                    };
                    What::Create { pod: pods - 1, node, asks }
                }
                34..60 => What::Delete { pod: r.below(pods.max(1) as u64) as usize },
                60..62 => What::HangUp { pod: r.below(pods.max(1) as u64) as usize },
                62..76 => {
                    let mode =
                        [Mode::Partition, Mode::NoAnswer, Mode::Late, Mode::Error500, Mode::TooMany, Mode::Slow, Mode::Stale]
                            [r.below(7) as usize];
                    What::Requests { node, mode, percent: [20, 50, 100][r.below(3) as usize], ms: 500 + r.below(20_000) }
                }
                76..79 => What::WatchesLost { node, ms: 1000 + r.below(60_000) },
                79..87 => What::Crash { node, steps: r.below(12) },
                87..89 => What::Reboot { node, ms: 1000 + r.below(20_000) },
                89..91 => What::Recreate { node, ms: 1000 + r.below(20_000) },
                91..93 => What::LoseDisk { node },
                93..95 => What::Die { node, fenced_after_ms: r.below(120_000) },
                95..96 => What::ControllerDown { ms: r.below(30_000) },
                96..99 => What::Restore { by_ms: r.below(90_000), bump: r.chance(50) },
                99..101 => {
                    let node = Some(node).filter(|_| r.chance(50));
                    What::Clock { node, secs: r.below(4000) as i64 - 2000 }
                }
                101..104 => What::Stranger { address: r.below((addresses + second + v6) as u64) as usize, ms: r.below(120_000) },
                104..107 => What::ControllerDies { writes: r.below(4), ms: r.below(30_000) },
                107..109 => What::ControllerLate { ms: r.below(15_000) },
                _ => What::LoseJournal { node, percent: [50, 100][r.below(2) as usize] },
            };
            actions.push(Action { at, what });
        }
        Self { seed, nodes, addresses, second, v6, actions }
    }

    /// The shortest list that still fails, by leaving out what can be left out.
    pub fn shrink(&self, fails: impl Fn(&Schedule) -> bool) -> Self {
        let mut best = self.clone();
        let mut chunk = best.actions.len().div_ceil(2).max(1);
        loop {
            let mut i = 0;
            let mut shorter = false;
            while i < best.actions.len() {
                let mut next = best.clone();
                next.actions.drain(i..(i + chunk).min(best.actions.len()));
                if fails(&next) {
                    best = next;
                    shorter = true;
                } else {
                    i += chunk;
                }
            }
            if chunk == 1 && !shorter {
                return best;
            }
            chunk = if shorter { chunk } else { chunk.div_ceil(2) };
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, nodes, addresses, second, v6, .. } = self;
        writeln!(f, "seed {seed}, {nodes} nodes, {addresses} addresses, {second} in a second pool, {v6} of IPv6")?;
        for a in &self.actions {
            writeln!(f, "  {:>9.3} s  {:?}", a.at.as_secs_f64(), a.what)?;
        }
        Ok(())
    }
}
