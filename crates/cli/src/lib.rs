//! Options, logging, shutdown signals and exit codes of every program of this workspace.

mod config;
mod exit;
mod kafka;
mod parse;
mod secret;
mod shutdown;
mod telemetry;
mod values;
mod visible;

pub use config::{ConfigError, MAX_SECRET_BYTES, Problems, read_secret, read_text};
pub use exit::{BAD_CONFIGURATION, EXIT_CODES, chain, print_error, print_line, report};
pub use kafka::{
    KafkaOptions, MAX_TOPIC_NAME_CHARS, Optional, is_topic_char, is_topic_name, kafka_name,
    optional_kafka_name,
};
pub use parse::parse;
pub use secret::Secret;
pub use shutdown::shutdown_signal;
pub use telemetry::LogOptions;
pub use values::{milliseconds, not_blank, number, seconds};
pub use visible::visible;
