use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How and how much to log.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// What to log: a level, or levels by module as in "info,outbox_relay=debug"
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true)]
    log_level: EnvFilter,
    /// Whether lines are for people or for programs
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

impl LogOptions {
    /// Sends what the program logs to standard error.
    pub fn install(self) {
        let registry = tracing_subscriber::registry().with(self.log_level);
        let lines = fmt::layer().with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => {
                let colours = std::io::stderr().is_terminal();
                registry
                    .with(lines.with_ansi(colours).with_target(false))
                    .init();
            }
            LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
        }
    }
}
