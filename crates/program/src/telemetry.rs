use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, filter::LevelFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::{config::Problems, exit};

/// How and how much to log.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// What to log: a level, or levels by module as in "info,outbox_relay=debug"
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true)]
    log_level: String,
    /// Whether lines are for people, "text", or for programs, "json", one object a line
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    log_format: String,
}

/// [`LogOptions`], checked.
#[derive(Debug)]
pub struct LogSettings {
    filter: EnvFilter,
    format: LogFormat,
}

#[derive(Clone, Copy, Debug)]
enum LogFormat {
    Text,
    Json,
}

impl LogOptions {
    /// The settings, or notes of what is wrong with them.
    pub fn check(self, problems: &mut Problems) -> Option<LogSettings> {
        let filter = problems.check("LOG_LEVEL", filter(&self.log_level));
        let format = problems.check("LOG_FORMAT", format(&self.log_format));
        Some(LogSettings {
            filter: filter?,
            format: format?,
        })
    }

    /// Sends what the program logs to standard error. Ends the process with 64 where the options
    /// can't be used; who has others to check begins with [`check`](Self::check).
    pub fn install(self) {
        let mut problems = Problems::default();
        let settings = self.check(&mut problems);
        match problems.into_result(settings) {
            Ok(settings) => settings.install(),
            Err(mistakes) => exit::end_with(&mistakes),
        }
    }
}

impl LogSettings {
    /// Sends what the program logs to standard error.
    pub fn install(self) {
        let registry = tracing_subscriber::registry().with(self.filter);
        let lines = fmt::layer().with_writer(std::io::stderr);
        match self.format {
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

fn filter(text: &str) -> Result<EnvFilter, String> {
    let reason = || format!("{text:?} isn't a level, nor levels by module as in info,hyper=warn");
    // The filter takes a word that is no level for a module of which everything is to be logged,
    // and of the others nothing: a typing mistake would end all logs.
    let is_word = |part: &str| !part.contains(['=', '[', ']', '{', '}']);
    let mut words = text.split(',').filter(|part| is_word(part));
    if words.any(|word| word.is_empty() || word.parse::<LevelFilter>().is_err()) {
        return Err(reason());
    }
    text.parse().map_err(|_| reason())
}

fn format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    }
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
