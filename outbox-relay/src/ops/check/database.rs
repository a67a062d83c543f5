//! What is found in a source's database.

use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::{
    Findings, Level,
    mapped::MAPPED_RULES,
    tables::{CHECKPOINT, RULES, Rule, fill_in, topics},
};
use crate::{
    config::{Mapping, SourceConfig},
    hints,
    postgres::{
        checkpoint::{self, CheckpointError},
        leader,
        reader::{ReadError, Reader},
        session::{self, DatabaseError, Session},
        window::Cursor,
    },
};

/// The oldest version with everything that is asked of it.
const OLDEST_VERSION: i32 = 15;

/// What has to be known of a source to ask Kafka about it.
pub(super) struct Outbox {
    /// The source's name towards the brokers.
    pub(super) producer_name: String,
    /// Topics, and the bytes of their largest row, among the rows that were looked at.
    pub(super) topics: Vec<(String, usize)>,
}

/// Looks at the source's database; none if it could not be looked at whole.
pub(super) async fn check(source: &SourceConfig, found: &mut Findings<'_>) -> Option<Outbox> {
    match look(source, found).await {
        Ok(outbox) => outbox,
        Err(err) => {
            let what = match &err {
                DatabaseError::Rejected { source, .. } => {
                    format!("can't reach the database: {}", cli::chain(source))
                }
                DatabaseError::Url(what) => what.clone(),
                DatabaseError::Failed(_) | DatabaseError::Timeout(_) => cli::chain(&err),
            };
            found.fail(what, err.hint());
            None
        }
    }
}

async fn look(
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<Option<Outbox>, DatabaseError> {
    let session = session::connect(&source.database_url, "outbox-relay check").await?;
    let sql = "select current_setting('server_version_num')::int,
        current_setting('server_version'), current_database()::text, current_user::text";
    let row = session.query_one(sql, &[]).await?;
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    let (database, user): (String, String) = (row.get(2), row.get(3));
    if number / 10_000 < OLDEST_VERSION {
        let what = format!("Postgres is of version {version}");
        found.fail(what, format!("move to {OLDEST_VERSION} or newer"));
        return Ok(None);
    }
    found.pass(format!(
        "Postgres {version}, database {database}, role {user}"
    ));
    let mut is_whole = true;
    let rules: &[Rule] = match source.mapping.is_own() {
        true => &RULES,
        false => &MAPPED_RULES,
    };
    for rule in rules {
        let is_fine = apply(&session, rule, &source.mapping, found).await?;
        if rule.is_basic && !is_fine {
            found.unknown("nothing else of it was looked at", "mend this first");
            return Ok(None);
        }
        is_whole &= is_fine || rule.is_optional;
    }
    match look_at_rows(&session, source, found).await {
        // That was told already, in better words.
        Err(DatabaseError::Failed(err)) if !is_whole && err.code().is_some() => {
            let what = format!("its rows were not looked at: {}", cli::chain(&err));
            found.unknown(what, "mend what is above first");
            Ok(None)
        }
        outbox => outbox.map(Some),
    }
}

async fn look_at_rows(
    session: &Session,
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<Outbox, DatabaseError> {
    let producer_name =
        look_at_checkpoint(session, &source.name, source.mapping.table(), found).await?;
    look_at_lock(session, &source.name, found).await?;
    look_at_numbers(session, &source.mapping, found).await?;
    look_at_transactions(session, source, found).await?;
    look_at_next_rows(source, found).await?;
    let sql = topics(source.mapping.outbox());
    let rows = session.query(&sql, &[&source.name]).await?;
    let mut topics = Vec::with_capacity(rows.len());
    for row in &rows {
        let bytes = usize::try_from(row.get::<_, i64>(1)).unwrap_or(0);
        // Of a row without one, it was told that it can't be published.
        topics.extend(row.get::<_, Option<String>>(0).map(|topic| (topic, bytes)));
    }
    Ok(Outbox {
        producer_name,
        topics,
    })
}

/// Whether everything is as the rule says.
async fn apply(
    session: &Session,
    rule: &Rule,
    mapping: &Mapping,
    found: &mut Findings<'_>,
) -> Result<bool, DatabaseError> {
    let rows = match session.query(&rule.sql(mapping), &[]).await {
        Ok(rows) => rows,
        // It is this question alone that Postgres, or something like it, does not answer.
        Err(DatabaseError::Failed(err)) if err.code().is_some() => {
            let what = format!("could not check that {}: {}", rule.fine, cli::chain(&err));
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
        found.pass(rule.fine);
    }
    Ok(rows.is_empty())
}

/// A sequence that is behind its table gives out numbers that rows have already: all are published, but those of a key
/// may come in the wrong order.
async fn look_at_numbers(
    session: &Session,
    mapping: &Mapping,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    let (outbox, numbers) = (mapping.outbox(), mapping.fill_in(&fill_in(":numbers")));
    let sql = format!(
        "with numbers (id) as ({numbers})
         select id::regclass::text, has_sequence_privilege(id, 'select'),
             case when has_sequence_privilege(id, 'select') then pg_sequence_last_value(id) end,
             (select max(seq)::bigint from {outbox})
         from numbers join pg_sequence on seqrelid = id where seqincrement > 0 and not seqcycle"
    );
    for row in session.query(&sql, &[]).await? {
        let (sequence, may_read): (String, bool) = (row.get(0), row.get(1));
        let (last, highest): (Option<i64>, Option<i64>) = (row.get(2), row.get(3));
        if !may_read {
            found.unknown(
                format!("could not check that sequence {sequence} is not behind the outbox"),
                format!("grant select on sequence {sequence} to the relay's role"),
            );
        } else if let Some(highest) =
            highest.filter(|highest| last.is_none_or(|last| last < *highest))
        {
            let hint = match highest {
                i64::MAX => "give that row another seq: no number comes after it".to_owned(),
                _ => format!("select setval('{sequence}', {highest})"),
            };
            found.fail(
                format!(
                    "sequence {sequence} is behind the outbox, which has a row with seq {highest}: numbers are given out \
                     again, and events of a key may be published in the wrong order"
                ),
                hint,
            );
        } else {
            found.pass(format!("sequence {sequence} is not behind the outbox"));
        }
    }
    Ok(())
}

/// Rows that are read to see whether they can be.
const READ_ROWS: usize = 1_000;

/// Reads the rows that are published next, as the relay does.
async fn look_at_next_rows(
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    let session = session::connect(&source.database_url, "outbox-relay check").await?;
    let mut cursor = match checkpoint::read_cursor(&session, &source.name).await {
        Ok(cursor) => cursor,
        Err(CheckpointError::Database(err)) => return Err(err),
        // What else is wrong with it was told.
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
            // A page ends before a row that can't be read.
            if let Some(last) = rows.checked_sub(1)
                && let Some(position) = page.position_after(last)?
            {
                cursor.advance(position);
            }
        }
    };
    match reading.await {
        Ok(0) => found.pass("no row waits that could not be read"),
        Ok(rows) => found.pass(format!("the next rows can be read, {rows} of them")),
        Err(ReadError::Database(err)) => return Err(err.into()),
        Err(err) => found.fail(cli::chain(&err), err.hint()),
    }
    Ok(())
}

/// Newest rows whose transaction is compared with the one that wrote them.
const COMPARED_ROWS: i64 = 1_000;

/// A row has the id of the transaction that wrote it, or nothing tells when it was committed.
async fn look_at_transactions(
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
            format!("{table} has rows of another Postgres: the transaction of that with seq {seq} is still to come here"),
            hints::for_foreign_rows(&source.name, mapping),
        );
    } else if differing > 0 {
        found.unknown(
            format!(
                "could not check whose transaction ids the rows have: {differing} of the newest {COMPARED_ROWS} were written \
                 by another transaction than their {xid} says. A savepoint, an update or a rewrite of the table does that, \
                 and so does replication or a restore from another Postgres, of which some may never be published"
            ),
            format!(
                "if they came from another Postgres, run `outbox-relay reset --source {}`, which publishes every row that the \
                 outbox still holds once more",
                source.name
            ),
        );
    } else {
        found.pass("the newest rows have the ids of the transactions that wrote them");
    }
    Ok(())
}

/// Returns the source's name towards the brokers, or what stands for it as long as it has none.
async fn look_at_checkpoint(
    session: &Session,
    source: &str,
    table: &str,
    found: &mut Findings<'_>,
) -> Result<String, DatabaseError> {
    let system_identifier = checkpoint::read_system_identifier(session).await?;
    let params: [&(dyn ToSql + Sync); 3] = [&source, &table, &system_identifier];
    let row = session.query_opt(CHECKPOINT, &params).await?;
    let Some(row) = row else {
        found.pass("no relay has led it yet; the first publishes every row that has a seq");
        return Ok(leader::producer_name(source, "check", 0));
    };
    let (epoch, resigned): (i64, bool) = (row.get(1), row.get(2));
    if row.get(3) {
        found.fail(
            "the checkpoint is of another Postgres, or of a later time: was the database restored \
             from a dump, or moved by pg_upgrade?",
            format!(
                "if so, run `outbox-relay reset --source {source}`, which publishes every row that the \
                 outbox still holds once more"
            ),
        );
    } else if row.get(5) {
        found.fail(
            format!("the checkpoint is of another table than {table}"),
            hints::for_other_table(source),
        );
    } else {
        let age = Duration::try_from_secs_f64(row.get(4)).unwrap_or_default();
        let how = if resigned {
            ", by a relay that ended with nothing on its way"
        } else {
            ""
        };
        found.pass(format!(
            "checkpoint of epoch {epoch}, stored {age:.1?} ago{how}"
        ));
    }
    Ok(leader::producer_name(source, row.get(0), row.get(6)))
}

async fn look_at_lock(
    session: &Session,
    source: &str,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    match leader::find_lock_holder(session, source).await? {
        Some(holder) => found.note(format!(
            "led by {holder}; a relay that is started now stands by"
        )),
        None => found.pass("no relay leads it now"),
    }
    Ok(())
}
