//! The lab as a program: the holder of a machine, the sweeper, the stand-ins, the demo.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use integration_tests::lab::{Lab, Options};
use integration_tests::{run, space};

#[derive(Parser)]
#[command(about = "The lab: simulated nodes with real Open vSwitch and real CNI plugins")]
struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Hold a machine's namespaces until standard input closes (used by the lab itself)
    #[command(hide = true)]
    Hold { name: String },
    /// Build the bare network with Open vSwitch on every node, without anything of the product, and leave it running
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Keep it only until standard input closes
        #[arg(long)]
        wait: bool,
    },
    /// Remove what killed and kept runs left behind
    Clean,
    /// List what runs left behind; fails if there is anything
    Leftovers,
}

fn main() -> ExitCode {
    match act(Args::parse().command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("mooring-lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Cmd) -> Result<ExitCode> {
    match command {
        Cmd::Hold { name } => space::hold(&name)?,
        Cmd::Up { nodes, wait } => {
            let lab = Lab::start(&Options { exe: std::env::current_exe()?, nodes })?;
            for space in lab.spaces() {
                println!("{}\tnsenter -t {} -a", space.name(), space.pid());
            }
            if wait {
                std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            } else {
                lab.keep()?;
            }
        }
        Cmd::Clean => {
            for run in run::clean()? {
                println!("removed {run}");
            }
        }
        Cmd::Leftovers => {
            let left = run::leftovers()?;
            for run in &left {
                println!("left behind: {run}");
            }
            if !left.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
