//! Protocol versions and the answer to `VERSION`.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::Error;

/// The versions we speak. 0.1.0 and 0.2.0 are refused: their result has room for one address of each family and no
/// interfaces, and no runtime that is still maintained asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const ALL: [Version; 5] = [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
    pub const NEWEST: Version = Version::V1_1_0;

    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Results carry `ips[].version` and an always present `dns`.
    pub(crate) const fn is_legacy(self) -> bool {
        matches!(self, Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Error code 1 for anything but the versions of `ALL`. An absent `cniVersion` means 0.1.0 (libcni's reading).
    fn from_str(s: &str) -> Result<Self, Error> {
        Version::ALL.into_iter().find(|v| v.as_str() == s).ok_or_else(|| {
            let asked = if s.is_empty() { "absent, which means 0.1.0" } else { s };
            let ours: Vec<_> = Version::ALL.iter().map(|v| v.as_str()).collect();
            Error::new(Error::INCOMPATIBLE_VERSION, "incompatible CNI versions")
                .with_details(format!("config is {asked:?}, plugin supports {}", ours.join(" ")))
        })
    }
}

/// Answer to `VERSION`. The input's `cniVersion` is repeated where we know it, as the specification wants; input that
/// tells none is no error, for runtimes of 0.x send none.
pub fn reply(stdin: &[u8]) -> Value {
    let asked = serde_json::from_slice::<Value>(stdin)
        .ok()
        .and_then(|v| v.get("cniVersion").and_then(Value::as_str).and_then(|s| s.parse::<Version>().ok()))
        .unwrap_or(Version::NEWEST);
    let all: Vec<_> = Version::ALL.iter().map(|v| v.as_str()).collect();
    json!({ "cniVersion": asked.as_str(), "supportedVersions": all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_reply_repeats_the_version_asked_in() {
        assert_eq!(
            reply(br#"{"cniVersion":"1.0.0"}"#),
            json!({"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]})
        );
        for odd in [&b""[..], b"{", b"[]", br#"{"cniVersion":"9.9.9"}"#, br#"{"cniVersion":1}"#] {
            assert_eq!(reply(odd)["cniVersion"], "1.1.0");
        }
    }

    #[test]
    fn unknown_versions_are_incompatible() {
        for bad in ["", "0.1.0", "0.2.0", "1.1", "1.2.0", "v1.0.0"] {
            let e = bad.parse::<Version>().unwrap_err();
            assert_eq!(e.code, 1, "{bad}");
        }
        let e = "2.0.0".parse::<Version>().unwrap_err();
        assert_eq!(e.msg, "incompatible CNI versions");
        assert_eq!(e.details, "config is \"2.0.0\", plugin supports 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0");
    }

    #[test]
    fn versions_are_in_order() {
        assert!(Version::V0_3_1 < Version::V0_4_0 && Version::V0_4_0 < Version::V1_1_0);
    }
}
