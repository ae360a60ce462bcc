//! What can go wrong between a caller and the database, told apart by what the caller may conclude from it.

use std::sync::Arc;

/// When trying the same thing again makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After a while: the server or the network may recover.
    Later,
    /// After looking again: the outcome is unknown or the state moved on under the caller.
    Reread,
    /// Only when the request changes.
    Never,
}

/// Failure of a call. After every variant but [`Error::Disconnected`], [`Error::NotApplied`] and [`Error::Reply`] the
/// database is known to be unchanged by the call.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("endpoint {endpoint:?}: {rule}")]
    Endpoint { endpoint: String, rule: &'static str },

    /// The request was not sent.
    #[error("not connected to the OVSDB server: {reason}")]
    NotConnected { reason: Arc<str> },

    /// The request may have been carried out: the connection broke before its reply came.
    #[error("connection to the OVSDB server broke with the request under way, its outcome is unknown: {reason}")]
    Disconnected { reason: Arc<str> },

    /// The server refused the request as a whole (RFC 7047 section 4: member `error` of the reply).
    #[error("OVSDB server refused {method}: {error}{}", detail(.details))]
    Refused { method: &'static str, error: String, details: String },

    /// One operation failed; the transaction was not committed.
    #[error("OVSDB operation {index} ({operation}) failed: {error}{}", detail(.details))]
    Operation {
        /// Position in the transaction, from 0.
        index: usize,
        /// Verb and table.
        operation: String,
        /// Fixed word of the server, such as `constraint violation` or `timed out`.
        error: String,
        details: String,
    },

    /// All operations went well, the commit did not (RFC 7047 section 4.1.3: the extra element of the result).
    #[error("OVSDB commit failed: {error}{}", detail(.details))]
    Commit { error: String, details: String },

    /// The reply is not what the protocol says. For a transaction this leaves the outcome unknown too, but no
    /// conforming server sends one.
    #[error("malformed OVSDB reply to {method}: {reason}")]
    Reply { method: &'static str, reason: String },

    #[error("{field} {value:?} is not an identifier ([A-Za-z_][A-Za-z0-9_]*)")]
    Identifier { field: &'static str, value: String },

    #[error("failed to encode {method}: {reason}")]
    Encode { method: &'static str, reason: String },

    #[error("request of {len} bytes is longer than the limit of {max} bytes")]
    TooLong { len: usize, max: usize },

    /// A wait on the replica ended before what was waited for came about.
    #[error("{what} within {waited_ms} ms")]
    Timeout { what: &'static str, waited_ms: u64 },

    /// Committed, but ovs-vswitchd did not report within the time that it acted on it.
    #[error("committed, but ovs-vswitchd has not applied configuration {next_cfg} within {waited_ms} ms; is it running?")]
    NotApplied { next_cfg: i64, waited_ms: u64 },

    #[error("table Open_vSwitch has no row; the database was not initialised")]
    NoRootRow,

    #[error("failed to talk to {socket}: {reason}")]
    Unixctl { socket: String, reason: String },
}

impl Error {
    /// Fixed word for conditions and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Endpoint { .. } => "BadEndpoint",
            Error::NotConnected { .. } => "OvsdbNotConnected",
            Error::Disconnected { .. } => "OvsdbDisconnected",
            Error::Refused { .. } => "OvsdbRefused",
            Error::Operation { .. } => "OvsdbOperationFailed",
            Error::Commit { .. } => "OvsdbCommitFailed",
            Error::Reply { .. } => "OvsdbMalformedReply",
            Error::Identifier { .. } => "BadIdentifier",
            Error::Encode { .. } => "BadValue",
            Error::TooLong { .. } => "RequestTooLong",
            Error::Timeout { .. } => "OvsdbTimeout",
            Error::NotApplied { .. } => "VswitchdNotApplied",
            Error::NoRootRow => "OvsdbNotInitialised",
            Error::Unixctl { .. } => "UnixctlFailed",
        }
    }

    pub fn retry(&self) -> Retry {
        match self {
            Error::NotConnected { .. } | Error::Timeout { .. } | Error::NoRootRow | Error::Unixctl { .. } => Retry::Later,
            Error::Disconnected { .. } | Error::NotApplied { .. } | Error::Reply { .. } => Retry::Reread,
            Error::Operation { .. } if self.is_timed_out() => Retry::Reread,
            Error::Commit { .. } | Error::Operation { .. } if self.is_resource_trouble() => Retry::Later,
            _ => Retry::Never,
        }
    }

    /// The request may have been carried out; read the database again before deciding.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Error::Disconnected { .. } | Error::Reply { .. })
    }

    /// A `wait` operation was not satisfied in its time: the guarded state is not (any more) what the caller expected.
    pub fn is_timed_out(&self) -> bool {
        self.server_error() == Some("timed out")
    }

    /// A duplicate in an index, a value outside its range, too few or too many elements.
    pub fn is_constraint_violation(&self) -> bool {
        self.server_error() == Some("constraint violation")
    }

    /// A reference to a row that does not exist, or a row deleted that is still referred to.
    pub fn is_referential_integrity_violation(&self) -> bool {
        self.server_error() == Some("referential integrity violation")
    }

    /// The fixed word the server gave, where it gave one.
    pub fn server_error(&self) -> Option<&str> {
        match self {
            Error::Refused { error, .. } | Error::Operation { error, .. } | Error::Commit { error, .. } => Some(error),
            _ => None,
        }
    }

    /// RFC 7047 section 5.2: the server, not the request, is at fault.
    fn is_resource_trouble(&self) -> bool {
        matches!(self.server_error(), Some("resources exhausted" | "I/O error" | "not owner" | "canceled"))
    }
}

fn detail(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(" ({details})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_operation_and_details() {
        let error = Error::Operation {
            index: 2,
            operation: "insert Port".into(),
            error: "constraint violation".into(),
            details: "tag 5000".into(),
        };
        assert_eq!(error.to_string(), "OVSDB operation 2 (insert Port) failed: constraint violation (tag 5000)");
        assert!(error.is_constraint_violation() && error.retry() == Retry::Never);
    }

    #[test]
    fn only_a_broken_connection_leaves_the_outcome_open() {
        let reason: Arc<str> = "reset".into();
        assert!(Error::Disconnected { reason: reason.clone() }.outcome_unknown());
        assert!(!Error::NotConnected { reason }.outcome_unknown());
    }
}
