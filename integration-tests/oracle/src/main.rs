//! mooring-oracle: looks at a running lab until nothing is wrong, or the time is over; then says what stayed wrong, a line
//! each, and fails.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use leak_oracle::api::{self, Source};
use leak_oracle::facts::Facts;
use leak_oracle::judge::{Finding, Steady, judge};
use leak_oracle::machine;
use leak_oracle::wire::{self, Place};

#[derive(Debug, Parser)]
#[command(about = "Says what is duplicate, leaked or stale in a lab; silent when nothing is")]
struct Args {
    /// A node and the pid of its holder
    #[arg(long = "node", value_name = "NAME=PID", required = true)]
    nodes: Vec<String>,
    /// NICs that each node has by itself
    #[arg(long, value_delimiter = ',', default_value = "ens192,eth0")]
    uplinks: Vec<String>,
    /// The API's unix socket
    #[arg(long)]
    api_socket: Option<PathBuf>,
    /// In place of it, a command that GETs the path which follows (`kubectl get --raw`)
    #[arg(long, value_delimiter = ' ')]
    api_command: Vec<String>,
    /// There is none: plugins run alone
    #[arg(long)]
    no_api: bool,
    /// A NIC, and its machine's holder, that asks on the wire who has the pods' addresses
    #[arg(long, value_name = "PID:NIC")]
    wire: Vec<String>,
    /// A line that an earlier look said, and that is not to be said again
    #[arg(long, value_name = "LINE")]
    known: Vec<String>,
    /// How long something may still be on its way
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    settle: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(left) if left.is_empty() => ExitCode::SUCCESS,
        Ok(left) => {
            for finding in left {
                println!("{finding}");
            }
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("mooring-oracle: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<Vec<Finding>> {
    let source = match &args.api_socket {
        Some(socket) => Some(Source::Socket(socket.clone())),
        None if !args.api_command.is_empty() => Some(Source::Command(args.api_command.clone())),
        None if args.no_api => None,
        None => bail!("--api-socket, --api-command or --no-api says where the API is"),
    };
    let pair = |text: &str, by: char| -> Result<(String, String)> {
        let (a, b) = text.split_once(by).with_context(|| format!("{text:?} is not two parts with {by:?} between"))?;
        Ok((a.to_owned(), b.to_owned()))
    };
    let nodes = args.nodes.iter().map(|n| pair(n, '=').and_then(|(name, pid)| Ok((name, pid.parse::<u32>()?))));
    let nodes = nodes.collect::<Result<Vec<_>>>()?;
    let places = args.wire.iter().map(|w| pair(w, ':').and_then(|(pid, nic)| Ok(Place { pid: pid.parse()?, nic })));
    let places = places.collect::<Result<Vec<_>>>()?;
    let deadline = Instant::now() + Duration::from_secs(args.settle);
    let mut steady = Steady::default();
    loop {
        let mut facts = Facts::default();
        if let Some(source) = &source {
            facts.api = api::read(source)?;
        }
        for (name, pid) in &nodes {
            facts.machines.push(machine::read(name, *pid, &args.uplinks)?);
        }
        // The wire is asked when all else is right: it takes longest, and one look is enough.
        if judge(&facts, &now()?).is_empty() {
            let living: Vec<_> = facts.machines.iter().flat_map(|m| m.sandboxes()).collect();
            let ips: Vec<_> = living.iter().flat_map(|s| s.addresses()).map(|(ip, _)| ip).collect();
            for place in &places {
                facts.wire.extend(wire::ask(place, &ips)?);
            }
        }
        let found = judge(&facts, &now()?);
        steady.look(found.into_iter().filter(|f| !args.known.contains(&f.to_string())).collect());
        if steady.is_silent() || Instant::now() > deadline {
            return Ok(steady.left().to_vec());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn now() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%FT%TZ"]).output().context("date")?;
    ensure!(output.status.success(), "date fails");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
