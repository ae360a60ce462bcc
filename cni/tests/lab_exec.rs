//! Executing other plugins, with shell scripts as plugins.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should")]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cni::shim::exec;
use cni::wire::Exec;
use cni::{Error, Verb};
use serde_json::json;

fn plugin(script: &str) -> (tempfile::TempDir, Exec) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plug");
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    let exec = Exec {
        plugin: "plug".into(),
        command: Verb::Add,
        container_id: "c1".into(),
        netns: Some("/run/netns/a".into()),
        ifname: "eth0".into(),
        args: "K=V".into(),
        path: format!("/nowhere:{}", dir.path().display()),
        stdin: json!({"cniVersion":"1.0.0"}),
    };
    (dir, exec)
}

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_plugin_gets_its_environment_and_its_input() {
    let (_dir, exec) = plugin(
        r#"read -r stdin; printf '{"ips":[],"got":"%s %s %s %s %s","stdin":%s}' $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS "$stdin""#,
    );
    let done = exec::run(&exec, LIMIT);
    assert!(done.ok, "{done:?}");
    let v: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(v["got"], "ADD c1 /run/netns/a eth0 K=V");
    assert_eq!(v["stdin"], json!({"cniVersion":"1.0.0"}));
    assert!(done.result("plug", Verb::Add).unwrap().is_some());
}

#[test]
fn a_plugins_error_is_its_own() {
    let (_dir, exec) = plugin(r#"cat >/dev/null; echo '{"code":11,"msg":"no lease yet","details":"d"}'; exit 1"#);
    let e = exec::run(&exec, LIMIT).result("plug", Verb::Add).unwrap_err();
    assert_eq!(e, Error::new(11, "no lease yet").with_details("d"));
    let (_dir, exec) = plugin("echo broken >&2; exit 3");
    let e = exec::run(&exec, LIMIT).result("plug", Verb::Add).unwrap_err();
    assert_eq!(e.to_string(), "plugin \"plug\" ended with exit code 3; broken");
}

#[test]
fn a_plugin_that_hangs_is_killed() {
    let (_dir, exec) = plugin("sleep 60");
    let started = Instant::now();
    let done = exec::run(&exec, Duration::from_millis(300));
    assert!(started.elapsed() < Duration::from_secs(5));
    let e = done.result("plug", Verb::Add).unwrap_err();
    assert_eq!(e.code, Error::DELEGATE);
    assert!(e.to_string().contains("did not end within 0.3 s and was killed"), "{e}");
}

#[test]
fn much_output_and_unread_input_stop_nobody() {
    let (_dir, mut exec) = plugin("head -c 3000000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' e >&2; exit 1");
    exec.stdin = json!("y".repeat(1_000_000));
    let done = exec::run(&exec, LIMIT);
    assert!(!done.ok);
    assert_eq!((done.stdout.len(), done.stderr.len()), (1024 * 1024, 4096));
}

#[test]
fn a_file_that_cannot_be_executed_says_so() {
    let (dir, exec) = plugin("");
    std::fs::set_permissions(dir.path().join("plug"), PermissionsExt::from_mode(0o644)).unwrap();
    let done = exec::run(&exec, LIMIT);
    assert!(!done.ok && done.stderr.contains("failed to execute"), "{done:?}");
}
