//! Why a plan cannot be made.

use std::fmt;

/// What kind of fault it is; callers map it to a CNI error code or a condition's reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The configuration itself is wrong: nothing changes until the user changes it.
    Invalid,
    /// Something it names is not there (bridge, master, NIC).
    Missing,
    /// Something else is in the way (name taken, uplink in another bridge).
    Conflict,
    /// It may work later without anybody changing the configuration.
    Later,
}

/// A refusal names the field, its value and the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub class: Class,
    /// Path of the field as the user wrote it: `master`, `trunk[1].maxID`, `spec.uplink.interface`.
    pub field: String,
    pub value: String,
    /// What was expected, with the likely cause where we know it.
    pub rule: String,
}

impl Refusal {
    pub fn new(class: Class, field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self { class, field: field.into(), value: value.to_string(), rule: rule.into() }
    }

    pub fn invalid(field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::new(Class::Invalid, field, value, rule)
    }

    pub fn missing(field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::new(Class::Missing, field, value, rule)
    }

    pub fn conflict(field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::new(Class::Conflict, field, value, rule)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: {}", self.field, self.value, self.rule)
    }
}

impl std::error::Error for Refusal {}
