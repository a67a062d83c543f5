//! What every program of this workspace starts with: options that are checked whole, logs, the
//! signals that ask for its end, and exit codes that mean something.

mod config;
mod exit;
mod kafka;
mod shutdown;
mod telemetry;
mod visible;

pub use config::{ConfigError, Problems};
pub use exit::{BAD_CONFIGURATION, EXIT_CODES, chain, complain, parse, print_line, report};
pub use kafka::{MAX_TOPIC_NAME_CHARS, is_topic_char, is_topic_name};
pub use shutdown::shutdown_signal;
pub use telemetry::{LogOptions, LogSettings};
pub use visible::visible;
