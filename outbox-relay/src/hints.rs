//! Hints for operators: what to do about the most frequent errors. Each is one or more imperative sentences.

use tokio_postgres::error::SqlState;

use crate::config::Mapping;

pub(crate) const SILENT_POSTGRES: &str =
    "Check that Postgres is responsive and that no proxy or firewall drops the connection.";
pub(crate) const DATABASE_URL: &str = "Correct database_url.";
pub(crate) const MOVED: &str = "After a failover, stop the former primary if it still accepts writes. The relay connects to \
    the new one automatically.";
pub(crate) const POOLER: &str =
    "Set the host and port of Postgres in database_url, or use a pool in session mode.";
pub(crate) const TABLES: &str = "Create the tables as in crates/outbox/migrations, or correct the mapping of your own \
    table. `outbox-relay check` lists what is missing.";
pub(crate) const KAFKA_UNAVAILABLE: &str = "Check that the brokers are running and that kafka.brokers lists them. \
    Publishing resumes automatically.";
pub(crate) const CREDENTIALS: &str = "Correct the settings of [kafka.sasl], or repair what issues tokens. Publishing resumes automatically.";
pub(crate) const UNFENCED: &str = "Publishing resumes automatically. The sink kafka does not have to wait; with rdkafka, a lower \
    kafka.delivery_timeout_ms makes the wait shorter.";
pub(crate) const NOT_KAFKA: &str = "Check that the brokers are running and that kafka.brokers lists host and port of a \
    Kafka listener with the configured security.";
pub(crate) const DEAD_LETTER_TOPIC: &str = "Create the topic, allow Describe and Write on it, or remove \
    dead_letter_topic from the configuration.";
pub(crate) const REJECTED: &str = "Create the topic, raise the named limit, allow Describe and Write, or repair the row. \
    Or set on_rejection to park_key or dead_letter.";
pub(crate) const CANNOT_PARK: &str = "park_key parks up to 1,000 keys, each of at most 2,000 bytes, of topics of at most 249 \
    characters. Remove the cause of the rejections, or repair the row, and run `outbox-relay parked retry` or `drop`.";
pub(crate) const REJECTED_BY_ENVIRONMENT: &str = "Allow Describe and Write on the topic, and check the clock of this \
    machine. Publishing resumes automatically. on_rejection does not apply to this error, which is not the record's.";
pub(crate) const CONSECUTIVE_REJECTIONS: &str = "Every event of this topic was rejected, more than \
    max_consecutive_rejections. Run `outbox-relay dead-letters retry --topic TOPIC` to park the previous ones in front of later events, \
    then repair the topic or its events. Or raise max_consecutive_rejections.";
pub(crate) const SHARED_EVENT_ID: &str = "Give each event its own id: as the owner of the outbox, set event_id to \
    gen_random_uuid() in one of these rows.";
pub(crate) const ROW: &str =
    "Repair or delete the row. The rows after it are published automatically.";

const POSTGRES_UNREACHABLE: &str =
    "Check that Postgres is running, and that host, port and password in database_url are correct.";

/// Returns the hint for a checkpoint that belongs to another table than the configured one.
pub(crate) fn for_other_table(source: &str) -> String {
    format!(
        "Give each outbox a source.name of its own. If this table replaces the other one, run \
         `outbox-relay reset --source {source}` to publish all of its rows."
    )
}

/// Returns the hint for rows whose transaction ids are ahead of the cluster.
pub(crate) fn for_foreign_rows(source: &str, mapping: &Mapping) -> String {
    if mapping.is_own() {
        return format!(
            "Run `outbox-relay reset --source {source}` to give these rows ids of this Postgres and to publish every row \
             of the outbox again."
        );
    }
    for_foreign_rows_of(mapping.table(), mapping.xid())
}

/// Returns the same hint for a mapped table, which `reset` does not change.
pub(crate) fn for_foreign_rows_of(table: &str, xid: &str) -> String {
    let xid = xid.replace('"', "\"\"");
    format!(
        "As the table's owner, run `update {table} set \"{xid}\" = default \
         where \"{xid}\" >= pg_snapshot_xmax(pg_current_snapshot())`."
    )
}

/// Returns the hint for an error of Postgres or of the connection to it.
pub(crate) fn for_postgres(err: &tokio_postgres::Error) -> &'static str {
    let Some(code) = err.code() else {
        return POSTGRES_UNREACHABLE;
    };
    match *code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "Set name and password of the relay's role in database_url."
        }
        SqlState::INVALID_CATALOG_NAME => {
            "Create the database, or correct its name in database_url."
        }
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "Grant the privilege to the relay's role. `outbox-relay check` prints the statements."
        }
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN => TABLES,
        SqlState::UNDEFINED_FUNCTION => {
            "Run outbox-relay/sql/relay.sql, and map source.columns.payload to a column of type bytea, text, json or jsonb."
        }
        SqlState::IDLE_SESSION_TIMEOUT => {
            "Check the machine of this relay: the process was suspended or disconnected for seconds. It becomes standby or \
             leader again automatically."
        }
        SqlState::LOCK_NOT_AVAILABLE => {
            "End the session that holds a lock on the outbox or on the relay's tables. pg_blocking_pids() returns its pid."
        }
        // Classes 22, data exceptions, and XX: a value is damaged.
        ref code if code.code().starts_with("22") => {
            "Repair the row whose value does not have the configured type, or correct source.columns."
        }
        ref code if code.code().starts_with("XX") => {
            "Check the Postgres log for a damaged row, and repair or delete it."
        }
        ref code if code.code().starts_with("54") => {
            "Delete or split the row that is too large to be read."
        }
        SqlState::TOO_MANY_CONNECTIONS => {
            "Raise the named limit (max_connections, or that of the role or the database), or close some connections."
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => {
            "Set the primary in database_url: this Postgres is a standby or read-only."
        }
        _ => "Check the Postgres log. Publishing resumes automatically when the cause is gone.",
    }
}
