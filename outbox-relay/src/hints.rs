//! What to do about what goes wrong most often, in words for whoever runs the relay.

use tokio_postgres::error::SqlState;

use crate::config::Mapping;

pub(crate) const SILENT_POSTGRES: &str =
    "look whether Postgres hangs, or something on the way swallows what is sent";
pub(crate) const TABLES: &str = "make the tables as crates/outbox/migrations does, or mend \
    what the configuration says of your own; `outbox-relay check` says what is missing";
pub(crate) const KAFKA_AWAY: &str = "look whether the brokers run, and whether kafka.brokers names \
    them; publishing goes on by itself";
pub(crate) const NOT_KAFKA: &str = "look whether the brokers run, and whether kafka.brokers names \
    them: host and port of a listener that speaks Kafka, in the way that is configured";
pub(crate) const LETTERS_REJECTED: &str = "create it, allow Describe and Write on it, or take \
    dead_letter_topic out of the configuration";
pub(crate) const REJECTED: &str = "create the topic, raise the limit that is named, allow \
    Describe and Write on it, or repair the row; or set on_rejection to park_key or dead_letter";
pub(crate) const SHARED_EVENT_ID: &str = "give each event an id of its own: as the outbox's \
    owner, set event_id to gen_random_uuid() in one of these rows";
pub(crate) const ROW: &str = "repair the row, or delete it; what is behind it follows";

const UNREACHABLE: &str =
    "look whether Postgres runs, and whether host and port in database_url are right";

/// What to do where a checkpoint is of another table than the one that is configured.
pub(crate) fn for_other_table(source: &str) -> String {
    format!(
        "give what is another outbox a source.name of its own, or, if this table has taken the other's \
         place, run `outbox-relay reset --source {source}`, which publishes every row that it holds"
    )
}

/// What to do where rows have transaction ids that are still to come.
pub(crate) fn for_foreign_rows(source: &str, mapping: &Mapping) -> String {
    if mapping.is_own() {
        return format!(
            "run `outbox-relay reset --source {source}`, which gives them ids of this one, and publishes every row that \
             the outbox still holds once more"
        );
    }
    for_foreign_rows_of(mapping.table(), mapping.xid())
}

/// The same for a table that others made.
pub(crate) fn for_foreign_rows_of(table: &str, xid: &str) -> String {
    let xid = xid.replace('"', "\"\"");
    format!(
        "as the table's owner, run `update {table} set \"{xid}\" = default \
         where \"{xid}\" >= pg_snapshot_xmax(pg_current_snapshot())`"
    )
}

/// What to do about an error of Postgres, or of the way to it.
pub(crate) fn for_postgres(err: &tokio_postgres::Error) -> &'static str {
    let Some(code) = err.code() else {
        return UNREACHABLE;
    };
    match *code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "give name and password of the relay's role in database_url"
        }
        SqlState::INVALID_CATALOG_NAME => {
            "create the database, or give the right name in database_url"
        }
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "grant it to the relay's role; `outbox-relay check` prints the statements"
        }
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN => TABLES,
        SqlState::UNDEFINED_FUNCTION => {
            "run outbox-relay/sql/relay.sql, and let source.columns.payload name a column of type bytea, text, json or jsonb"
        }
        SqlState::IDLE_SESSION_TIMEOUT => {
            "this relay was suspended, or cut off, for seconds: look at its machine; it stands by or \
             leads again by itself"
        }
        SqlState::LOCK_NOT_AVAILABLE => {
            "another session holds a lock on the outbox or the relay's own tables: pg_blocking_pids() names it"
        }
        // Classes 22, data exceptions, and XX: a value is damaged.
        ref code if code.code().starts_with("22") => {
            "a row can't be read as the configuration says; repair it, or mend source.columns"
        }
        ref code if code.code().starts_with("XX") => {
            "a row may be damaged: look into Postgres' log, and repair or delete it"
        }
        ref code if code.code().starts_with("54") => {
            "a row is too large to be read; delete it, or divide it"
        }
        SqlState::TOO_MANY_CONNECTIONS => {
            "raise the limit that is named (max_connections, or the role's or the database's), or close some connections"
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => {
            "give the primary in database_url: this Postgres is a standby, or takes no writes"
        }
        _ => "look into Postgres' log; publishing goes on by itself when it is gone",
    }
}
