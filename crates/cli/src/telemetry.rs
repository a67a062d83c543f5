use std::io::IsTerminal as _;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// The crates of this workspace, which log no values of rows, records and requests at any level.
const OWN_CRATES: [&str; 16] = [
    "acceptance",
    "bench",
    "cli",
    "demo",
    "devstack",
    "kafka_client",
    "lab",
    "order_service",
    "outbox",
    "outbox_relay",
    "postgres_session",
    "projection",
    "proto",
    "service_kit",
    "tls",
    "user_service",
];
/// The cap of all other crates. Below it, tokio-postgres logs parameters of statements and notices, h2 headers, and tonic
/// errors of messages that it can't decode.
const LIBRARY_LEVEL: Level = Level::WARN;

/// The options of logging.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// Log at this level (error, warn, info, debug, trace or off), or at levels per module: info,outbox_relay=debug.
    /// Libraries log only warnings and errors at any level, because their other messages contain values
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
        let registry = registry(&self.log_level.0);
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
        tracing::trace!("libraries log only warnings and errors");
    }
}

/// Creates a registry of what `filter` selects and [`is_allowed`] permits.
fn registry(filter: &str) -> impl Subscriber + for<'a> LookupSpan<'a> + Send + Sync {
    tracing_subscriber::registry()
        .with(EnvFilter::new(filter))
        .with(filter_fn(is_allowed))
}

fn is_allowed(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let crate_name = target.split_once("::").map_or(target, |(name, _)| name);
    *metadata.level() <= LIBRARY_LEVEL || OWN_CRATES.contains(&crate_name)
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
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns what a program logs with this filter when a library logs secrets.
    fn log_with(filter: &str) -> String {
        let log = Log::default();
        let writer = log.clone();
        let lines = fmt::layer().with_writer(move || writer.clone());
        tracing::subscriber::with_default(registry(filter).with(lines), || {
            let _call = tracing::error_span!(target: "service_kit", "call").entered();
            let _connection = tracing::info_span!(target: "h2", "connection", secret = 1).entered();
            tracing::debug!(target: "tokio_postgres::query", secret = 1, "parameters");
            tracing::info!(target: "tokio_postgres", secret = 1, "notice");
            tracing::trace!(target: "outbox_relay_fork", secret = 1, "similar name");
            tracing::warn!(target: "tokio_postgres", "library warning");
            tracing::trace!(target: "service_kit::server", "own trace");
        });
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    /// The crate of a workspace member that is not listed would lose its info lines.
    #[test]
    fn every_crate_of_the_workspace_may_log() {
        // They run in tests only.
        const TESTS: [&str; 2] = ["e2e_tests", "testkit"];
        let manifest = include_str!("../../../Cargo.toml");
        let (_, members) = manifest.split_once("members = [").unwrap();
        let (members, _) = members.split_once(']').unwrap();
        let names = members
            .split(',')
            .map(|member| member.trim().trim_matches('"'));
        let names = names.filter_map(|path| path.rsplit('/').next());
        let mut names: Vec<String> = names.map(|name| name.replace('-', "_")).collect();
        names.retain(|name| !name.is_empty() && !TESTS.contains(&name.as_str()));
        names.sort();
        assert_eq!(names, OWN_CRATES);
    }

    #[test]
    fn no_filter_makes_a_library_log_below_warn() {
        for (filter, expected) in [
            ("trace", &["library warning", "own trace"][..]),
            ("info", &["library warning"]),
            ("off,tokio_postgres=trace", &["library warning"]),
            ("off,tokio_postgres::query=trace,h2=trace", &[]),
            ("off,[call]=trace", &["library warning", "own trace"]),
            ("off,[{secret}]=trace", &[]),
        ] {
            let log = log_with(filter);
            assert!(!log.contains("secret"), "{filter}: {log}");
            for line in ["library warning", "own trace"] {
                let is_expected = expected.contains(&line);
                assert_eq!(log.contains(line), is_expected, "{filter}: {log}");
            }
        }
    }

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
