//! Checks the database of a source.

use std::time::{Duration, SystemTime};

use tokio_postgres::types::ToSql;

use super::{
    Findings, Level,
    mapped::MAPPED_RULES,
    tables::{CHECKPOINT, OUTBOX_RULES, Rule, fill_in, select_topics},
};
use crate::{
    clock::Clock,
    config::{Mapping, SourceConfig},
    hints,
    ops::status::Warning,
    postgres::{
        checkpoint::{self, CheckpointError},
        leader,
        reader::{ReadError, Reader},
        session::{self, DatabaseError, Session},
        window::Cursor,
    },
};

/// The oldest supported major version.
const MIN_VERSION: i32 = 15;

/// The facts of an outbox that the checks of Kafka need.
pub(super) struct Outbox {
    /// The transactional id of the source.
    pub(super) producer_name: String,
    /// The topics of the sampled rows, with the bytes of their largest row.
    pub(super) topics: Vec<(String, usize)>,
}

/// Checks the database. Returns `None` if a failure prevented a part of the checks.
pub(super) async fn check_database(
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Option<Outbox> {
    match check_tables(source, found).await {
        Ok(outbox) => outbox,
        Err(err) => {
            let what = match &err {
                DatabaseError::Rejected { source, .. } => {
                    format!("failed to connect to the database: {}", cli::chain(source))
                }
                DatabaseError::Url(what) => what.clone(),
                DatabaseError::Failed(_)
                | DatabaseError::Moved
                | DatabaseError::Timeout(_)
                | DatabaseError::Pooler(_) => cli::chain(&err),
            };
            found.fail(what, err.hint());
            None
        }
    }
}

async fn check_tables(
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<Option<Outbox>, DatabaseError> {
    let session = session::connect(&source.database_url, "outbox-relay check").await?;
    let sql = "select current_setting('server_version_num')::int,
        current_setting('server_version'), current_database()::text, current_user::text";
    let row = session.query_one(sql, &[]).await?;
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    let (database, user): (String, String) = (row.get(2), row.get(3));
    if number / 10_000 < MIN_VERSION {
        let what = format!("Postgres {version} is not supported");
        found.fail(what, format!("Upgrade to {MIN_VERSION} or later."));
        return Ok(None);
    }
    found.pass(format!(
        "Postgres {version}, database {database}, role {user}"
    ));
    check_clock(&session, found).await?;
    let mut all_passed = true;
    let rules: &[Rule] = match source.mapping.is_own() {
        true => &OUTBOX_RULES,
        false => &MAPPED_RULES,
    };
    for rule in rules {
        let has_passed = apply_rule(&session, rule, &source.mapping, found).await?;
        if rule.is_prerequisite && !has_passed {
            found.unknown(
                "the rest of the database was not checked",
                "Fix the failure above first.",
            );
            return Ok(None);
        }
        all_passed &= has_passed || rule.is_optional;
    }
    match check_rows(&session, source, found).await {
        // A rule has already reported the cause more precisely.
        Err(DatabaseError::Failed(err)) if !all_passed && err.code().is_some() => {
            let what = format!("the rows were not checked: {}", cli::chain(&err));
            found.unknown(what, "Fix the failures above first.");
            Ok(None)
        }
        outbox => outbox.map(Some),
    }
}

async fn check_clock(session: &Session, found: &mut Findings<'_>) -> Result<(), DatabaseError> {
    let before = SystemTime::now();
    let sql = "select (date_part('epoch', clock_timestamp()) * 1000)::bigint";
    let database_ms = session.query_one(sql, &[]).await?.get(0);
    let clock = Clock::default();
    clock.record_database_time(database_ms, before, SystemTime::now());
    if let Some(Warning { message, hint, .. }) = Warning::clock(clock.database_ahead_s()) {
        found.note(format!("{message}. {hint}"));
    }
    Ok(())
}

async fn check_rows(
    session: &Session,
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<Outbox, DatabaseError> {
    let producer_name =
        check_checkpoint(session, &source.name, source.mapping.table(), found).await?;
    check_leader(session, &source.name, found).await?;
    check_sequences(session, &source.mapping, found).await?;
    check_transaction_ids(session, source, found).await?;
    check_next_rows(source, found).await?;
    let sql = select_topics(source.mapping.outbox());
    let rows = session.query(&sql, &[&source.name]).await?;
    let mut topics = Vec::with_capacity(rows.len());
    for row in &rows {
        let bytes = usize::try_from(row.get::<_, i64>(1)).unwrap_or(0);
        // `check_next_rows` reports a row without a topic.
        topics.extend(row.get::<_, Option<String>>(0).map(|topic| (topic, bytes)));
    }
    Ok(Outbox {
        producer_name,
        topics,
    })
}

/// Applies a rule. Returns true if it passed.
async fn apply_rule(
    session: &Session,
    rule: &Rule,
    mapping: &Mapping,
    found: &mut Findings<'_>,
) -> Result<bool, DatabaseError> {
    let rows = match session.query(&rule.sql(mapping), &[]).await {
        Ok(rows) => rows,
        // Only this query fails. A server that is not quite Postgres can do so.
        Err(DatabaseError::Failed(err)) if err.code().is_some() => {
            let what = format!("could not check that {}: {}", rule.passed, cli::chain(&err));
            found.unknown(what, hints::for_postgres(&err));
            return Ok(false);
        }
        Err(err) => return Err(err),
    };
    for row in &rows {
        let is_unknown = row.try_get(2).is_ok_and(|is_unknown: bool| is_unknown);
        let level = match (is_unknown, rule.is_optional) {
            (true, _) => Level::Unknown,
            (false, true) => Level::Note,
            (false, false) => Level::Fail,
        };
        found.add(level, row.get(0), row.get(1));
    }
    if rows.is_empty() {
        found.pass(rule.passed);
    }
    Ok(rows.is_empty())
}

/// Checks that no sequence is behind its table. Such a sequence repeats numbers: all rows are published, but possibly those of
/// a key in the wrong order.
async fn check_sequences(
    session: &Session,
    mapping: &Mapping,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    let (outbox, numbers) = (mapping.outbox(), mapping.fill_in(&fill_in(":sequences")));
    let sql = format!(
        "with numbers (id) as ({numbers})
         select id::regclass::text, has_sequence_privilege(id, 'select'),
             case when has_sequence_privilege(id, 'select') then pg_sequence_last_value(id) end,
             (select max(seq)::bigint from {outbox})
         from numbers join pg_sequence on seqrelid = id where seqincrement > 0 and not seqcycle"
    );
    for row in session.query(&sql, &[]).await? {
        let (sequence, is_readable): (String, bool) = (row.get(0), row.get(1));
        let (last, highest): (Option<i64>, Option<i64>) = (row.get(2), row.get(3));
        if !is_readable {
            found.unknown(
                format!("could not check that sequence {sequence} is not behind the outbox"),
                format!("Grant select on sequence {sequence} to the relay's role."),
            );
        } else if let Some(highest) =
            highest.filter(|highest| last.is_none_or(|last| last < *highest))
        {
            let hint = match highest {
                i64::MAX => "Give that row another seq: there is no higher number.".to_owned(),
                _ => format!("select setval('{sequence}', {highest})"),
            };
            found.fail(
                format!(
                    "sequence {sequence} is behind the outbox, which has a row with seq {highest}: seqs will repeat, and events \
                     of a key may be published in the wrong order"
                ),
                hint,
            );
        } else {
            found.pass(format!("sequence {sequence} is not behind the outbox"));
        }
    }
    Ok(())
}

/// The number of next rows to read.
const READ_ROWS: usize = 1_000;

/// Reads the next rows to publish in the same way as the relay.
async fn check_next_rows(
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    let session = session::connect(&source.database_url, "outbox-relay check").await?;
    let mut cursor = match checkpoint::read_cursor(&session, &source.name).await {
        Ok(cursor) => cursor,
        Err(CheckpointError::Database(err)) => return Err(err),
        // `check_checkpoint` reports other problems.
        Err(_) => Cursor::beginning(),
    };
    let reading = async {
        let reader = Reader::new(session.into_client(), &source.mapping).await?;
        if cursor.window().is_none() {
            cursor.open(reader.take_snapshot().await?);
        }
        let mut read = 0;
        loop {
            let page = reader.read_page(&cursor, READ_ROWS).await?;
            page.rows().try_for_each(|row| row.map(drop))?;
            let rows = page.rows().len();
            read += rows;
            if page.is_last() || read >= READ_ROWS {
                return Ok::<_, ReadError>(read);
            }
            // A page ends before an unreadable row.
            if let Some(last) = rows.checked_sub(1)
                && let Some(position) = page.position_after(last)
            {
                cursor.advance(position);
            }
        }
    };
    match reading.await {
        Ok(0) => found.pass("there are no pending rows"),
        Ok(rows) => found.pass(format!(
            "the next pending rows are readable ({rows} checked)"
        )),
        Err(ReadError::Database(err)) => return Err(err.into()),
        Err(err) => found.fail(cli::chain(&err), err.hint()),
    }
    Ok(())
}

/// The newest rows whose transaction id is compared with their xmin.
const COMPARED_ROWS: i64 = 1_000;

/// Checks that rows have the id of the transaction that wrote them. Otherwise the relay cannot know when they were committed.
async fn check_transaction_ids(
    session: &Session,
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    let (mapping, table) = (&source.mapping, source.mapping.table());
    let [xid, seq, _] = mapping.quoted_columns();
    let sql = format!(
        "select (select {seq}::text from {table}
                 where {xid} >= pg_snapshot_xmax(pg_current_snapshot()) order by {xid} desc limit 1),
             (select count(*) filter (where row_xmin <> row_xid) from (
                 select xmin::text::bigint as row_xmin, {xid}::text::numeric % 4294967296 as row_xid
                 from {table} where {xid} is not null and {seq} is not null order by {seq} desc limit {COMPARED_ROWS}
             ) as newest)"
    );
    let row = session.query_one(&sql, &[]).await?;
    let (future, differing): (Option<String>, i64) = (row.get(0), row.get(1));
    if let Some(seq) = future {
        found.fail(
            format!(
                "{table} has rows of another Postgres: the transaction id of the row with seq {seq} is ahead of this one"
            ),
            hints::for_foreign_rows(&source.name, mapping),
        );
    } else if differing > 0 {
        found.unknown(
            format!(
                "could not check the transaction ids of the rows: {differing} of the newest {COMPARED_ROWS} were written by \
                 another transaction than {xid}. Causes are a savepoint, an update, a rewrite of the table, or replication or a \
                 restore from another Postgres. In the last two cases some rows may never be published"
            ),
            format!(
                "If the rows come from another Postgres, run `outbox-relay reset --source {}` to publish every row of the \
                 outbox again.",
                source.name
            ),
        );
    } else {
        found.pass("the newest rows have the ids of the transactions that wrote them");
    }
    Ok(())
}

/// Checks the checkpoint. Returns the transactional id of the source, or a similar one before the first leader.
async fn check_checkpoint(
    session: &Session,
    source: &str,
    table: &str,
    found: &mut Findings<'_>,
) -> Result<String, DatabaseError> {
    let system_identifier = checkpoint::read_system_identifier(session).await?;
    let params: [&(dyn ToSql + Sync); 3] = [&source, &table, &system_identifier];
    let row = session.query_opt(CHECKPOINT, &params).await?;
    let Some(row) = row else {
        found.pass("there is no checkpoint; the first leader publishes every row that has a seq");
        return Ok(leader::producer_name(source, "check", 0));
    };
    let (epoch, resigned): (i64, bool) = (row.get(1), row.get(2));
    if row.get(3) {
        found.fail(
            "the checkpoint belongs to another Postgres or is ahead of this one, probably because the database was restored from a \
             dump or moved by pg_upgrade",
            format!(
                "If so, run `outbox-relay reset --source {source}` to publish every row of the outbox again."
            ),
        );
    } else if row.get(5) {
        found.fail(
            format!("the checkpoint belongs to another table than {table}"),
            hints::for_other_table(source),
        );
    } else {
        let age = Duration::try_from_secs_f64(row.get(4)).unwrap_or_default();
        let shutdown = if resigned {
            ", by a relay that shut down with no records in flight"
        } else {
            ""
        };
        found.pass(format!(
            "checkpoint of epoch {epoch}, stored {age:.1?} ago{shutdown}"
        ));
    }
    Ok(leader::producer_name(source, row.get(0), row.get(6)))
}

async fn check_leader(
    session: &Session,
    source: &str,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    match leader::find_lock_holder(session, source).await? {
        Some(holder) => found.note(format!(
            "the leader is {holder}; a relay started now becomes standby"
        )),
        None => found.pass("no relay leads this source now"),
    }
    Ok(())
}
