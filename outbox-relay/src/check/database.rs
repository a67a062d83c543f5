//! What is found in a source's database.

use std::time::Duration;

use tokio_postgres::Client;

use super::{
    Findings, Level,
    mapped::MAPPED_RULES,
    tables::{CHECKPOINT, RULES, Rule, topics},
};
use crate::{
    advice,
    config::{Mapping, SourceConfig},
    leader,
    session::{self, DatabaseError, answered},
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
            match &err {
                DatabaseError::Failed(cause) => {
                    found.wrong(program::chain(&err), advice::for_postgres(cause));
                }
                DatabaseError::Refused { way_out, source } => {
                    let what = format!("can't reach the database: {}", program::chain(source));
                    found.wrong(what, way_out);
                }
                DatabaseError::Url(what) => found.wrong(what, "mend database_url"),
                DatabaseError::Silent => found.wrong(program::chain(&err), advice::SILENT_POSTGRES),
            }
            None
        }
    }
}

async fn look(
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<Option<Outbox>, DatabaseError> {
    let client = session::connect(&source.database_url, "outbox-relay check").await?;
    let row = one(
        &client,
        "select current_setting('server_version_num')::int,
        current_setting('server_version'), current_database()::text, current_user::text",
    )
    .await?;
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    let (database, user): (String, String) = (row.get(2), row.get(3));
    if number / 10_000 < OLDEST_VERSION {
        let what = format!("Postgres is of version {version}");
        found.wrong(what, format!("move to {OLDEST_VERSION} or newer"));
        return Ok(None);
    }
    found.ok(format!(
        "Postgres {version}, database {database}, role {user}"
    ));
    let mut is_whole = true;
    let rules: &[Rule] = match source.mapping.is_own() {
        true => &RULES,
        false => &MAPPED_RULES,
    };
    for rule in rules {
        let is_fine = apply(&client, rule, &source.mapping, found).await?;
        if rule.is_basic && !is_fine {
            return Ok(None);
        }
        is_whole &= is_fine || rule.is_optional;
    }
    match look_at_rows(&client, source, found).await {
        // That was told already, in better words.
        Err(_) if !is_whole => Ok(None),
        outbox => outbox.map(Some),
    }
}

async fn look_at_rows(
    client: &Client,
    source: &SourceConfig,
    found: &mut Findings<'_>,
) -> Result<Outbox, DatabaseError> {
    let producer_name =
        look_at_checkpoint(client, &source.name, source.mapping.table(), found).await?;
    look_at_lock(client, &source.name, found).await?;
    let sql = topics(source.mapping.outbox());
    let rows =
        answered(async { Ok::<_, DatabaseError>(client.query(&sql, &[&source.name]).await?) })
            .await?;
    let mut topics = Vec::with_capacity(rows.len());
    for row in &rows {
        let bytes = usize::try_from(row.get::<_, i64>(1)).unwrap_or(0);
        match row.get::<_, Option<String>>(0) {
            Some(topic) => topics.push((topic, bytes)),
            None => found.wrong("the outbox has rows without a topic", advice::ROW),
        }
    }
    Ok(Outbox {
        producer_name,
        topics,
    })
}

async fn one(client: &Client, sql: &str) -> Result<tokio_postgres::Row, DatabaseError> {
    answered(async { Ok(client.query_one(sql, &[]).await?) }).await
}

/// Whether everything is as the rule says.
async fn apply(
    client: &Client,
    rule: &Rule,
    mapping: &Mapping,
    found: &mut Findings<'_>,
) -> Result<bool, DatabaseError> {
    let sql = mapping.fill_in(rule.sql);
    let rows = answered(async { Ok::<_, DatabaseError>(client.query(&sql, &[]).await?) }).await?;
    for row in &rows {
        let level = if rule.is_optional {
            Level::Note
        } else {
            Level::Wrong
        };
        found.add(level, row.get(0), row.get(1));
    }
    if rows.is_empty() {
        found.ok(rule.fine);
    }
    Ok(rows.is_empty())
}

/// Returns the source's name towards the brokers, or what stands for it as long as it has none.
async fn look_at_checkpoint(
    client: &Client,
    source: &str,
    table: &str,
    found: &mut Findings<'_>,
) -> Result<String, DatabaseError> {
    let asking = async {
        let row = client.query_opt(CHECKPOINT, &[&source, &table]).await?;
        Ok::<_, DatabaseError>(row)
    };
    let row = answered(asking).await?;
    let Some(row) = row else {
        found.ok("no relay has led it yet; the first ships every row that has a seq");
        return Ok(leader::producer_name(source, "check", 0));
    };
    let (epoch, resigned): (i64, bool) = (row.get(1), row.get(2));
    if row.get(3) {
        found.wrong(
            "the checkpoint is of another Postgres, or of a later time: was the database restored \
             from a dump, or moved by pg_upgrade?",
            format!(
                "if so, run `outbox-relay reset --source {source}`, which ships every row that the \
                 outbox still holds once more"
            ),
        );
    } else if row.get(5) {
        found.wrong(
            format!("the checkpoint is of another table than {table}"),
            advice::for_other_table(source),
        );
    } else {
        let age = Duration::try_from_secs_f64(row.get(4)).unwrap_or_default();
        let how = if resigned {
            ", by a relay that ended with nothing on its way"
        } else {
            ""
        };
        found.ok(format!(
            "checkpoint of epoch {epoch}, stored {age:.1?} ago{how}"
        ));
    }
    Ok(leader::producer_name(source, row.get(0), row.get(6)))
}

async fn look_at_lock(
    client: &Client,
    source: &str,
    found: &mut Findings<'_>,
) -> Result<(), DatabaseError> {
    match answered(leader::holder(client, source)).await? {
        Some(holder) => found.note(format!(
            "led by {holder}; a relay that is started now stands by"
        )),
        None => found.ok("no relay leads it now"),
    }
    Ok(())
}
