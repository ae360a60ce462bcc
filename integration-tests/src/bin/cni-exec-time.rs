//! How long CNI plugins take from exec to exit: `cni-exec-time RUNS VERB PLUGIN...`. The plugins take turns, so that whatever
//! else the machine does hits all alike. Prints the median and the 95th percentile of each, and the ratio of the first
//! plugin's median to each other's. VERB is VERSION or any verb that needs no network (an error counts: it is a run).

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [runs, verb, plugins @ ..] = args.as_slice() else { bail!("usage: cni-exec-time RUNS VERB PLUGIN...") };
    let runs: usize = runs.parse().with_context(|| format!("RUNS {runs:?}"))?;
    if plugins.is_empty() || runs == 0 {
        bail!("usage: cni-exec-time RUNS VERB PLUGIN...");
    }
    let mut times = vec![Vec::with_capacity(runs); plugins.len()];
    // The first round only fills caches.
    for round in 0..=runs {
        for (plugin, times) in plugins.iter().zip(&mut times) {
            let time = once(plugin, verb)?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    let mut first = None;
    for (plugin, times) in plugins.iter().zip(&mut times) {
        times.sort();
        let median = times[times.len() / 2];
        let p95 = times[times.len() * 95 / 100];
        let first = *first.get_or_insert(median);
        let ratio = first.as_secs_f64() / median.as_secs_f64();
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let size = std::fs::metadata(plugin)?.len();
        println!("{plugin}: median {:.3} ms, p95 {:.3} ms, first/this {ratio:.2}, {size} bytes", ms(median), ms(p95));
    }
    Ok(())
}

fn once(plugin: &str, verb: &str) -> Result<Duration> {
    let started = Instant::now();
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to execute {plugin}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Go's plugins do not read it for VERSION.
        let _ = stdin.write_all(br#"{"cniVersion":"1.0.0"}"#);
    }
    let status = child.wait()?;
    if verb == "VERSION" && !status.success() {
        bail!("{plugin} {verb}: {status}");
    }
    Ok(started.elapsed())
}
