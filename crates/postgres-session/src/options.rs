//! The options of a session, and the statements that prepare it.

use std::time::Duration;

/// The settings on which the SQL of this project relies. They override the defaults of the role and of the database.
///
/// - A stricter isolation turns concurrent updates into errors.
/// - With `row_security` a query would return some of the rows; without it, it fails.
/// - The others change the meaning of a statement.
const PINNED_SETTINGS: &str = "
    set default_transaction_isolation = 'read committed';
    set default_transaction_deferrable = off;
    set synchronous_commit = on;
    set row_security = off;
    set standard_conforming_strings = on;
    set transform_null_equals = off;
    set quote_all_identifiers = off";

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
}

impl SessionOptions {
    /// Returns the statements that prepare a session. The last one returns the process id of the server.
    pub(crate) fn statements(&self) -> String {
        format!(
            "set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = {}; {PINNED_SETTINGS};
             {} select pg_backend_pid()",
            self.statement_timeout.as_millis(),
            self.lock_timeout.as_millis(),
            self.idle_in_transaction_timeout.as_millis(),
            if self.forces_writes {
                "set default_transaction_read_only = off;"
            } else {
                ""
            },
        )
    }
}
