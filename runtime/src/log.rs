//! Logging: one line per event on standard error, text or JSON.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Flags that every process has.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Filter as tracing-subscriber's EnvFilter reads it: a level, or `target=level` joined by commas.
    #[arg(long = "log", env = "MOORING_LOG", default_value = "info", value_name = "FILTER")]
    pub filter: String,
    #[arg(long = "log-format", env = "MOORING_LOG_FORMAT", default_value = "text", value_enum)]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("--log {0:?} is not a log filter")]
    Filter(String, #[source] tracing_subscriber::filter::ParseError),
    #[error("logging is set up already")]
    Twice,
}

/// Sets the process's logging up. Call once.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&args.filter).map_err(|e| LogError::Filter(args.filter.clone(), e))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match args.format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().try_init(),
    };
    done.map_err(|_| LogError::Twice)
}
