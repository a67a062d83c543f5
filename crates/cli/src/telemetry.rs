use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, filter::LevelFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// The options of logging.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// Log at this level (error, warn, info, debug, trace or off), or at levels per module: info,outbox_relay=debug
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true, value_parser = parse_filter)]
    log_level: Filter,
    /// Log in this format: lines of text, or one JSON object per line
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

/// The text of an [`EnvFilter`], which is not `Clone`.
#[derive(Clone, Debug)]
struct Filter(String);

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogOptions {
    /// Installs the subscriber, which logs to standard error.
    pub fn install(self) {
        let registry = tracing_subscriber::registry().with(EnvFilter::new(self.log_level.0));
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

fn parse_filter(text: &str) -> Result<Filter, String> {
    let reason = || {
        format!(
            "invalid value {text:?}: must be a level, or levels per module such as info,hyper=warn"
        )
    };
    // EnvFilter reads a word that is not a level as a module, and logs only that module: a typo would
    // disable all logs.
    let is_word = |part: &str| !part.contains(['=', '[', ']', '{', '}']);
    let mut words = text.split(',').filter(|part| is_word(part));
    if words.any(|word| word.is_empty() || word.parse::<LevelFilter>().is_err()) {
        return Err(reason());
    }
    let parsed = text.parse::<EnvFilter>();
    parsed
        .map(|_| Filter(text.to_owned()))
        .map_err(|_| reason())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_with_an_invalid_part_is_rejected() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,outbox_relay=debug",
            "[call{path=a}]=debug",
        ] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,debgu", "info,", "a=b", "a=info=b", "["] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
