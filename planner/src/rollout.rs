//! Which nodes change next. Knows neither what changes on them nor how long it takes.

/// How many nodes may be changing or failed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxUnavailable {
    Count(u32),
    /// Of all nodes that the Bridges select, rounded up.
    Percent(u32),
}

impl Default for MaxUnavailable {
    fn default() -> Self {
        MaxUnavailable::Percent(10)
    }
}

impl MaxUnavailable {
    /// At least one, or nothing would ever change.
    pub fn of(self, nodes: usize) -> usize {
        match self {
            MaxUnavailable::Count(n) => (n as usize).max(1),
            MaxUnavailable::Percent(p) => (nodes * p as usize).div_ceil(100).max(1),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Has what is wanted.
    Done,
    /// Has an older state and was not told yet.
    Pending,
    /// Was told and has not reported.
    Changing,
    /// Was told and reported a failure, or a refusal.
    Failed,
    /// `mooring.dev/paused`: neither told nor counted.
    Paused,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeProgress {
    pub name: String,
    /// Changes after all others.
    pub control_plane: bool,
    pub progress: Progress,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Next {
    /// To be told now, by name.
    pub start: Vec<String>,
    /// Nodes whose failure holds the rest back.
    pub held_by: Vec<String>,
}

/// Stops at the first failure; control-plane nodes go when no other is left.
pub fn next(nodes: &[NodeProgress], max: MaxUnavailable) -> Next {
    let count = |p: Progress| nodes.iter().filter(|n| n.progress == p).count();
    let mut held_by: Vec<String> = nodes.iter().filter(|n| n.progress == Progress::Failed).map(|n| n.name.clone()).collect();
    held_by.sort();
    if !held_by.is_empty() {
        return Next { start: Vec::new(), held_by };
    }
    let all = nodes.len() - count(Progress::Paused);
    let room = max.of(all).saturating_sub(count(Progress::Changing));
    let busy = |n: &&NodeProgress| !n.control_plane && matches!(n.progress, Progress::Pending | Progress::Changing);
    let workers_left = nodes.iter().any(|n| busy(&n));
    let mut waiting: Vec<&NodeProgress> =
        nodes.iter().filter(|n| n.progress == Progress::Pending && (!n.control_plane || !workers_left)).collect();
    waiting.sort_by(|a, b| a.name.cmp(&b.name));
    Next { start: waiting.into_iter().take(room).map(|n| n.name.clone()).collect(), held_by }
}
