//! What a plugin prints when it fails: code, message, details (specification, section "Error").

use std::fmt;

use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub code: u32,
    pub msg: String,
    /// May be empty; then it is left out.
    pub details: String,
}

impl Error {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// At DEL it would mean that nothing need be cleaned up; we answer success instead.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const INVALID_ENV: u32 = 4;
    pub const IO_FAILURE: u32 = 5;
    pub const DECODE_FAILURE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    /// The runtime should come again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no ADD could be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD works, containers that exist have limited connectivity.
    pub const LIMITED: u32 = 51;
    /// Ours, from 100 on: something that the configuration names is not there.
    pub const MISSING: u32 = 100;
    /// Something else is in the way.
    pub const CONFLICT: u32 = 101;
    /// The host refused a change; everything was undone.
    pub const APPLY: u32 = 102;
    /// A delegated plugin failed in a way that is no CNI error.
    pub const DELEGATE: u32 = 103;
    /// CHECK found a difference.
    pub const CHECK: u32 = 104;
    /// A bug.
    pub const INTERNAL: u32 = 999;

    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    pub fn env(msg: impl Into<String>) -> Self {
        Self::new(Self::INVALID_ENV, msg)
    }

    pub fn decode(msg: impl Into<String>) -> Self {
        Self::new(Self::DECODE_FAILURE, msg)
    }

    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(Self::INVALID_CONFIG, msg)
    }

    pub fn io(msg: impl Into<String>) -> Self {
        Self::new(Self::IO_FAILURE, msg)
    }

    /// As printed on standard output. `version` is the request's `cniVersion` as it came, for an error may be about it.
    pub fn to_value(&self, version: &str) -> Value {
        let mut v = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            v["details"] = json!(self.details);
        }
        v
    }

    /// Reads an error that another plugin printed; none where the text is not one.
    pub fn from_stdout(stdout: &str) -> Option<Self> {
        let v: Value = serde_json::from_str(stdout).ok()?;
        let text = |key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = u32::try_from(v.get("code")?.as_u64()?).ok()?;
        Some(Self { code, msg: text("msg"), details: text("details") })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_round_trips_and_leaves_out_empty_details() {
        let e = Error::config("missing network name");
        assert_eq!(e.to_value("1.0.0").to_string(), r#"{"cniVersion":"1.0.0","code":7,"msg":"missing network name"}"#);
        assert_eq!(Error::from_stdout(&e.to_value("1.0.0").to_string()), Some(e.clone()));
        let d = e.with_details("stdin");
        assert_eq!(Error::from_stdout(&d.to_value("0.4.0").to_string()), Some(d));
        for other in ["", "panic: oops", "{}", r#"{"code":-1}"#, r#"{"code":"7"}"#] {
            assert_eq!(Error::from_stdout(other), None, "{other}");
        }
    }
}
