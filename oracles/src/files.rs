//! What the agent finds on disk at its start: the journal, and, where the first line is `spool`, a DEL that waits.
//! A line of the journal that begins with `!` gets its checksum here, for a fuzzer does not find one.

use std::path::Path;

use bridge_agent::journal::{Entry, Journal};
use cni::shim::spool;
use serde_json::Value;

use crate::json::alike;

pub fn check(data: &[u8]) {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory for files");
    }
    DIR.with(|dir| match data.strip_prefix(b"spool\n") {
        Some(text) => waiting_del(dir.path(), text),
        None => journal(&dir.path().join("journal"), data),
    });
}

fn journal(path: &Path, data: &[u8]) {
    let mut bytes = Vec::new();
    let mut lines = 0;
    for line in data.split(|b| *b == b'\n') {
        if let Some(json) = line.strip_prefix(b"!") {
            bytes.extend(format!("{:016x} ", fnv1a(json)).into_bytes());
            bytes.extend(json);
        } else {
            bytes.extend(line);
        }
        bytes.push(b'\n');
        lines += usize::from(!line.is_empty());
    }
    std::fs::write(path, &bytes).expect("a file of ours");
    let (first, replay) = Journal::open(path).expect("whatever a journal holds, it opens");
    assert_eq!(replay.records + replay.dropped, lines, "a line is either read or dropped");
    let all = first.all();
    assert!(all.iter().all(|e| first.get(&e.key).as_ref() == Some(e)));
    drop(first);

    let (second, replay) = Journal::open(path).expect("it was rewritten");
    assert_eq!((replay.records, replay.dropped), (all.len(), 0), "a rewritten journal holds the living, whole");
    assert!(same(&second.all(), &all));
    // Written one by one and taken away again.
    for entry in &all {
        second.put(entry.clone()).expect("there is room");
    }
    assert!(same(&second.all(), &all));
    for entry in &all {
        second.remove(&entry.key).expect("there is room");
    }
    assert!(second.is_empty() && !second.is_broken());
    drop(second);
    let (third, replay) = Journal::open(path).expect("it is still a journal");
    assert!(third.is_empty() && replay.dropped == 0);
}

fn same(a: &[Entry], b: &[Entry]) -> bool {
    let json = |e: &[Entry]| serde_json::to_value(e).unwrap_or(Value::Null);
    a.len() == b.len() && alike(&json(a), &json(b))
}

/// FNV-1a of 64 bits, as its authors give it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(14_695_981_039_346_656_037, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211))
}

fn waiting_del(dir: &Path, text: &[u8]) {
    let file = dir.join("in.json");
    std::fs::write(&file, text).expect("a file of ours");
    let found = spool::read(&file);
    std::fs::remove_file(&file).expect("a file of ours");
    let Ok(request) = found else { return };
    let spool_dir = dir.join("spool");
    std::fs::create_dir_all(&spool_dir).expect("a directory of ours");
    spool::write(&spool_dir, &request).expect("what was read fits");
    let listing = spool::list(&spool_dir).expect("a directory of ours");
    assert_eq!((listing.ready.len(), listing.temp.len()), (1, 0));
    let again = spool::read(&listing.ready[0]).expect("what was written is read");
    std::fs::remove_file(&listing.ready[0]).expect("a file of ours");
    let json = |r: &spool::Spooled| serde_json::to_value(r).unwrap_or(Value::Null);
    assert!(alike(&json(&request), &json(&again)), "{request:?} became {again:?}");
    if let Ok(call) = request.call.request() {
        assert_eq!(call.verb, request.call.verb);
    }
}
