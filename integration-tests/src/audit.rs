//! What an API server was asked, by its own audit log: who, which verb, of which kind, with which answer. It knows the log's
//! format (audit.k8s.io/v1, one JSON object a line) and nothing of the product.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::cluster::text;

/// One request that was answered.
#[derive(Debug, Clone)]
pub struct Call {
    /// The last part of the account's name.
    pub user: String,
    /// `create`, `list`, ...
    pub verb: String,
    /// Plural name, with `/status` or another part behind it.
    pub resource: String,
    /// Status code of the answer.
    pub code: u16,
    /// When the answer was complete.
    pub at: Timestamp,
}

impl Call {
    /// It changes something, whether or not that was granted.
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }
}

/// Reads the log from where it was last read to.
#[derive(Debug)]
pub struct Audit {
    file: PathBuf,
    read: u64,
}

impl Audit {
    /// From the beginning of the log.
    pub fn new(file: PathBuf) -> Self {
        Self { file, read: 0 }
    }

    /// The calls since the last time, of the accounts that the policy names.
    ///
    /// # Errors
    /// The log cannot be read, or is no audit log.
    pub fn calls(&mut self) -> Result<Vec<Call>> {
        let mut file = File::open(&self.file).with_context(|| format!("no audit log {}", self.file.display()))?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // The last line may still be in the making.
        let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        self.read += end as u64;
        bytes[..end].split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(call).collect()
    }

    /// Waits until the account has written nothing for two seconds; all calls since the last time.
    ///
    /// # Errors
    /// It does not come to rest within `limit`.
    pub fn until_quiet(&mut self, user: &str, limit: Duration) -> Result<Vec<Call>> {
        let began = Instant::now();
        let mut quiet = Instant::now();
        let mut all = Vec::new();
        while quiet.elapsed() < Duration::from_secs(2) {
            ensure!(began.elapsed() < limit, "{user} still writes after {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(100));
            let new = self.calls()?;
            if new.iter().any(|c| c.user == user && c.is_write()) {
                quiet = Instant::now();
            }
            all.extend(new);
        }
        Ok(all)
    }
}

fn call(line: &[u8]) -> Result<Call> {
    let v: Value = serde_json::from_slice(line).context("a line of the audit log is no JSON")?;
    let (resource, sub) = (text(&v, "/objectRef/resource"), text(&v, "/objectRef/subresource"));
    let user = text(&v, "/user/username");
    Ok(Call {
        user: user.rsplit(':').next().unwrap_or_default().to_owned(),
        verb: text(&v, "/verb"),
        resource: if sub.is_empty() { resource } else { format!("{resource}/{sub}") },
        code: v.pointer("/responseStatus/code").and_then(Value::as_u64).and_then(|c| c.try_into().ok()).unwrap_or_default(),
        at: text(&v, "/stageTimestamp").parse().context("a line of the audit log has no time")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_a_call_and_half_a_line_waits() {
        let line = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"x","stage":"ResponseComplete","requestURI":"/apis/mooring.dev/v1alpha1/nodenetworks/n1/status","verb":"patch","user":{"username":"system:serviceaccount:kube-system:mooring-agent"},"objectRef":{"resource":"nodenetworks","name":"n1","subresource":"status"},"responseStatus":{"metadata":{},"code":409},"requestReceivedTimestamp":"2026-01-01T00:00:00.000001Z","stageTimestamp":"2026-01-01T00:00:00.250000Z"}"#;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        std::fs::write(&file, format!("{line}\n{}", &line[..40])).unwrap();
        let mut audit = Audit::new(file.clone());
        let calls = audit.calls().unwrap();
        assert_eq!(calls.len(), 1);
        let c = &calls[0];
        assert_eq!(
            (c.user.as_str(), c.verb.as_str(), c.resource.as_str(), c.code),
            ("mooring-agent", "patch", "nodenetworks/status", 409)
        );
        assert!(c.is_write());
        std::fs::write(&file, format!("{line}\n{line}\n")).unwrap();
        assert_eq!(audit.calls().unwrap().len(), 1);
        assert!(audit.calls().unwrap().is_empty());
    }
}
