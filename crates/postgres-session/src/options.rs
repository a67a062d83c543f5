//! The options of a session, and the statements that prepare it.

use std::time::Duration;

use tokio_postgres::Client;

/// The settings on which the SQL of this project relies. They override the defaults of the role and of the database.
///
/// - A stricter isolation turns concurrent updates into errors.
/// - With `row_security` a query would return some of the rows; without it, it fails.
/// - The others change the meaning of a statement.
const PINNED_SETTINGS: [(&str, &str); 7] = [
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("synchronous_commit", "on"),
    ("row_security", "off"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("quote_all_identifiers", "off"),
];

/// The options of a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The `application_name`, which `pg_stat_activity` shows.
    pub application_name: &'static str,
    /// The limit on opening the session, with TLS, authentication and settings.
    pub connect_timeout: Duration,
    /// The `statement_timeout`. Zero: no limit.
    pub statement_timeout: Duration,
    /// The `lock_timeout`. Zero: no limit.
    pub lock_timeout: Duration,
    /// The `idle_in_transaction_session_timeout`. Zero: no limit.
    pub idle_in_transaction_timeout: Duration,
    /// Overrides `default_transaction_read_only`, with which a DBA freezes a database, for example before a switchover.
    pub forces_writes: bool,
    /// The longest wait for the next byte of a response; then the session ends. Longer than `statement_timeout`. `None`: the
    /// caller limits its waits.
    pub response_timeout: Option<Duration>,
}

impl SessionOptions {
    /// Returns the limits of a service's calls, of its background work, and of its commands.
    pub const fn for_service(application_name: &'static str) -> Self {
        Self {
            application_name,
            connect_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(15),
            forces_writes: false,
            // Later than the server's own limit, whose error says more.
            response_timeout: Some(Duration::from_secs(12)),
        }
    }

    /// Returns the statements that prepare a session. The first column of the last one is the process id of the server.
    pub(crate) fn statements(&self) -> String {
        let mut settings = vec![
            milliseconds("statement_timeout", self.statement_timeout),
            milliseconds("lock_timeout", self.lock_timeout),
            milliseconds(
                "idle_in_transaction_session_timeout",
                self.idle_in_transaction_timeout,
            ),
        ];
        settings.extend(PINNED_SETTINGS.map(|(name, value)| (name, value.to_owned())));
        if self.forces_writes {
            settings.push(("default_transaction_read_only", "off".to_owned()));
        }
        // A low default could cancel the next statement.
        format!("set statement_timeout = 0; {}", settings_sql(&settings))
    }
}

/// Returns a setting with a limit. Zero means no limit.
fn milliseconds(name: &'static str, limit: Duration) -> (&'static str, String) {
    (name, limit.as_millis().to_string())
}

/// Changes settings of a session, for as long as it exists.
///
/// # Errors
/// If the server rejects a setting.
pub async fn apply_settings(
    client: &Client,
    settings: &[(&str, impl AsRef<str> + Sync)],
) -> Result<(), tokio_postgres::Error> {
    client.simple_query(&settings_sql(settings)).await.map(drop)
}

/// Returns a statement that changes settings. Its first column is the process id of the server; the aggregates make it one row.
///
/// Its functions are those of Postgres, whatever the search path and the functions of other schemas are.
///
/// It differs only in a literal, so `pg_stat_statements` has one entry for all of them. Each `set` would have its own.
fn settings_sql(settings: &[(&str, impl AsRef<str>)]) -> String {
    let json: serde_json::Map<_, _> = settings
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_ref().into()))
        .collect();
    let json = serde_json::Value::Object(json).to_string();
    format!(
        "select pg_catalog.min(pg_catalog.pg_backend_pid()), pg_catalog.count(pg_catalog.set_config(key, value, false))
         from pg_catalog.json_each_text('{}'::pg_catalog.json)",
        json.replace('\'', "''")
    )
}
