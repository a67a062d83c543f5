use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, filter::LevelFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// How and how much to log.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// What to log: a level, or levels by module as in "info,outbox_relay=debug"
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true, value_parser = filter)]
    log_level: Filter,
    /// Whether lines are for people, "text", or for programs, "json", one object a line
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

/// The text of an [`EnvFilter`], which is no `Clone`.
#[derive(Clone, Debug)]
struct Filter(String);

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogOptions {
    /// Sends what the program logs to standard error.
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

fn filter(text: &str) -> Result<Filter, String> {
    let reason = || format!("{text:?} isn't a level, nor levels by module as in info,hyper=warn");
    // The filter takes a word that is no level for a module of which everything is to be logged,
    // and of the others nothing: a typing mistake would end all logs.
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
    fn a_filter_is_understood_as_a_whole_or_not_at_all() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,outbox_relay=debug",
            "[call{path=a}]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,debgu", "info,", "a=b", "a=info=b", "["] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
