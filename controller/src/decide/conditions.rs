//! Conditions: set one, keeping the time of the last transition where the status did not change.

use api::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Stamp;

/// A verdict, before it becomes a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub kind: &'static str,
    pub status: bool,
    /// A fixed word in camel case; also a metric label.
    pub reason: &'static str,
    pub message: String,
}

/// Longest message of a condition; the rest is in events and logs. A status is sent to every watcher.
const MAX_MESSAGE: usize = 1024;

impl Verdict {
    pub fn new(kind: &'static str, status: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status, reason, message: message.into() }
    }
}

/// The list with these verdicts in it; conditions of other kinds stay as they are.
pub fn with(old: &[Condition], verdicts: &[Verdict], generation: Option<i64>, now: &Stamp) -> Vec<Condition> {
    let mut out: Vec<Condition> = old.iter().filter(|c| verdicts.iter().all(|v| v.kind != c.type_)).cloned().collect();
    for v in verdicts {
        let status = if v.status { "True" } else { "False" }.to_owned();
        let same = old.iter().find(|c| c.type_ == v.kind && c.status == status);
        let mut message = v.message.clone();
        if message.len() > MAX_MESSAGE {
            let cut = (0..=MAX_MESSAGE).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(cut);
        }
        out.push(Condition {
            type_: v.kind.to_owned(),
            status,
            reason: v.reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: same.map_or(Time(now.0), |c| c.last_transition_time.clone()),
        });
    }
    out.sort_by(|a, b| a.type_.cmp(&b.type_));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_moves_only_with_the_status() {
        let at = |s: &str| Stamp(s.parse().unwrap());
        let ready = |on, msg: &str| [Verdict::new("Ready", on, "Because", msg)];
        let a = with(&[], &ready(true, "one"), Some(1), &at("2026-01-01T00:00:00Z"));
        let b = with(&a, &ready(true, "two"), Some(2), &at("2026-01-02T00:00:00Z"));
        assert_eq!(b[0].last_transition_time, a[0].last_transition_time);
        assert_eq!((b[0].message.as_str(), b[0].observed_generation), ("two", Some(2)));
        let c = with(&b, &ready(false, "three"), Some(2), &at("2026-01-03T00:00:00Z"));
        assert_ne!(c[0].last_transition_time, b[0].last_transition_time);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "ä".repeat(MAX_MESSAGE);
        let c = with(&[], &[Verdict::new("Ready", true, "R", long)], None, &Stamp("2026-01-01T00:00:00Z".parse().unwrap()));
        assert!(c[0].message.len() <= MAX_MESSAGE);
    }
}
