//! `cargo xtask`: the chores of this repository that are no test.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "xtask", about = "Chores of this repository")]
enum Command {
    /// Write deploy/crds from the Rust types.
    Crds {
        /// Write nothing; fail when a file is not what would be written.
        #[arg(long)]
        check: bool,
    },
    /// Check layers, module trees, generated files and the rest that the tidy test checks.
    Tidy,
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Crds { check: false } => {
            for path in xtask::crds::write(&xtask::workspace())? {
                println!("{path}");
            }
        }
        Command::Crds { check: true } => {
            let stale = xtask::crds::stale(&xtask::workspace())?;
            if !stale.is_empty() {
                eprintln!("not what `cargo xtask crds` writes: {}", stale.join(", "));
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Tidy => {
            let mut all = Vec::new();
            for (name, check) in xtask::tidy::CHECKS {
                all.extend(check(&xtask::workspace())?.into_iter().map(|f| format!("{name}: {f}")));
            }
            if !all.is_empty() {
                eprintln!("{}", all.join("\n"));
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
