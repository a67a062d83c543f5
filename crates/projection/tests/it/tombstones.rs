//! Records with a null value.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::Addresses;
use diesel::QueryResult;
use diesel_async::AsyncPgConnection;
use projection::{Poison, Projection, Record, RedriveOutcome, dead_letters, redrive};

use crate::{
    harness::{Counts, DEAD, Setup, TOTAL},
    raw_record::write_raw_record,
    who::ConsumerKind,
};

/// Counts tombstones under another key than payloads.
struct Ends;

impl Projection for Ends {
    type Change = String;

    fn decode(&self, record: &Record<'_>) -> Result<Option<String>, Poison> {
        Counts.decode(record)
    }

    fn decode_tombstone(&self, tombstone: &Record<'_>) -> Option<String> {
        Some(format!("end {}", tombstone.key_text().ok()?))
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, changes: &[String]) -> QueryResult<()> {
        Counts.apply(conn, changes).await
    }
}

/// Counts what was applied with this key.
fn count_of(key: &str) -> String {
    format!("select coalesce(sum(count), 0) from counts where key = '{key}'")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_with_any_headers_is_never_poison() -> Result<()> {
    let setup = Setup::with_partitions("tombstones", 1).await?;
    let member = ConsumerKind::Projection.start(&setup, &Arc::new(Ends), None)?;
    let servers = Addresses::shared();
    let kinds: [&[(&str, &str)]; 3] = [&[], &[("other", "x")], &[("ce_type", "count")]];
    for headers in kinds {
        servers
            .write_record(&setup.name, Some(b"a"), None, headers)
            .await?;
    }
    for header in [
        (&b"ce_type\xff"[..], Some(&b"count"[..])),
        (b"ce_type", None),
    ] {
        write_raw_record(&setup.name, b"a", None, header).await?;
    }
    // Not text: this projection has nothing with such a key.
    servers
        .write_record(&setup.name, Some(b"\xff"), None, &[])
        .await?;
    setup.count("a").await?;
    setup.sql.wait_for(&count_of("a"), 1).await?;
    member.stop().await?;
    assert_eq!(setup.sql.count(&count_of("end a")).await?, 5);
    assert_eq!(setup.sql.count(DEAD).await?, 0);
    let skipped = "select sum(skipped)::bigint from projection_offsets";
    assert_eq!(setup.sql.count(skipped).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_value_is_a_payload() -> Result<()> {
    let setup = Setup::new("empty").await?;
    let member = ConsumerKind::Projection.start(&setup, &Arc::new(Ends), None)?;
    let servers = Addresses::shared();
    for headers in [&[("ce_type", "count")][..], &[]] {
        servers
            .write_record(&setup.name, Some(b"a"), Some(b""), headers)
            .await?;
    }
    setup.sql.wait_for(DEAD, 1).await?;
    member.stop().await?;
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    assert_eq!(setup.sql.count(&count_of("a")).await?, 1);
    let unchanged =
        "select count(*) from dead_letters where payload = '' and error_class = 'header'";
    assert_eq!(setup.sql.count(unchanged).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_applies_a_tombstone_that_an_earlier_version_dead_lettered() -> Result<()> {
    let setup = Setup::new("redriven").await?;
    let insert = format!(
        "insert into dead_letters (projection, topic, partition, record_offset, key, payload,
             header_names, header_values, error_class, error)
         values ('{0}', '{0}', 0, 0, 'a', null, '{{}}', '{{}}', 'header', 'missing')",
        setup.name
    );
    setup.sql.batch_execute(&insert).await?;
    let mut conn = setup.connection().await?;
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 1).await?;
    let id = dead_letters
        .first()
        .context("a dead letter")?
        .dead_letter_id;
    let redriven = redrive(&mut conn, &Ends, &setup.name, id).await?;
    assert_eq!(redriven, RedriveOutcome::Applied);
    assert_eq!(setup.sql.count(&count_of("end a")).await?, 1);
    assert_eq!(setup.sql.count(DEAD).await?, 0);
    Ok(())
}
