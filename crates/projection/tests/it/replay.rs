//! Replays from the beginning, with repeated and outdated records, into rows whose newest version wins.
//!
//! Such rows tolerate repetition, so a consumer without the comparison is not detected here but in `stale_consumers`.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, NewRecord};
use diesel::{QueryResult, sql_types::*};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use projection::{Poison, Projection, Record};

use crate::{
    faulty::{Fault, Faulty, wait_for_fault},
    harness::Setup,
    load::PARTITIONS,
    naive::Flaw,
    who::ConsumerKind,
};

const KEYS: i64 = 200;
const MAX_VERSION: i64 = 5;

/// The version of a key that wins.
#[derive(Clone, Copy, Debug)]
enum Winner {
    Newest,
    /// The last one in the topic, which is wrong.
    Latest,
}

/// Keeps one version of each key.
struct Versions(Winner);

impl Projection for Versions {
    type Change = (String, i64, String);

    fn decode(&self, record: &Record<'_>) -> Result<Option<Self::Change>, Poison> {
        let version = record.required_header("version")?.parse();
        let version = version.map_err(|err| Poison::new("header", err))?;
        let (key, value) = (record.key_text()?, record.payload_text()?);
        Ok(Some((key.to_owned(), version, value.to_owned())))
    }

    fn decode_tombstone(&self, _: &Record<'_>) -> Option<Self::Change> {
        None
    }

    async fn apply(
        &self,
        conn: &mut AsyncPgConnection,
        changes: &[Self::Change],
    ) -> QueryResult<()> {
        let (first, condition) = match self.0 {
            Winner::Newest => ("version", "where excluded.version > versions.version"),
            Winner::Latest => ("position", ""),
        };
        let statement = format!(
            "insert into versions
             select distinct on (key) key, version, value
             from unnest($1::text[], $2::bigint[], $3::text[])
                 with ordinality as incoming (key, version, value, position)
             order by key, {first} desc
             on conflict (key) do update set version = excluded.version, value = excluded.value
             {condition}"
        );
        diesel::sql_query(statement)
            .bind::<Array<Text>, _>(changes.iter().map(|(key, ..)| key).collect::<Vec<_>>())
            .bind::<Array<BigInt>, _>(changes.iter().map(|(_, v, _)| *v).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(changes.iter().map(|(.., v)| v).collect::<Vec<_>>())
            .execute(conn)
            .await?;
        Ok(())
    }
}

/// The topic of a scenario, and the newest version of each key.
struct History {
    setup: Setup,
    newest: BTreeMap<String, i64>,
}

impl History {
    /// Writes up to five versions per key. Some keys have only one, so that losing it is detected. Then every
    /// tenth record is repeated: some are outdated by then.
    async fn new(test: &str) -> Result<Self> {
        let setup = Setup::with_partitions(test, PARTITIONS).await?;
        let table = "create table versions (key text primary key, version bigint, value text)";
        setup.sql.batch_execute(table).await?;
        let newest = BTreeMap::new();
        let mut history = Self { setup, newest };
        let versions = (1..=MAX_VERSION).flat_map(|version| {
            let keys = (0..KEYS)
                .filter(move |key| version <= 1 + (key / i64::from(PARTITIONS)) % MAX_VERSION);
            keys.map(move |key| (key, format!("k{key}"), version))
        });
        let versions: Vec<_> = versions.collect();
        let again = versions.iter().step_by(10).cloned();
        let all: Vec<_> = versions.iter().cloned().chain(again).collect();
        history.write(&all).await?;
        Ok(history)
    }

    /// Writes versions of numbered keys.
    async fn write(&mut self, versions: &[(i64, String, i64)]) -> Result<()> {
        let texts: Vec<_> = versions
            .iter()
            .map(|(_, key, version)| (version.to_string(), value(key, *version)))
            .collect();
        let headers: Vec<_> = texts
            .iter()
            .map(|(version, _)| [("version", &**version)])
            .collect();
        let records = versions.iter().zip(&texts).zip(&headers);
        let records = records.map(|(((number, key, _), (_, value)), headers)| NewRecord {
            partition: Some((number % i64::from(PARTITIONS)) as i32),
            key: Some(key.as_bytes()),
            payload: Some(value.as_bytes()),
            headers,
            ..NewRecord::default()
        });
        let records: Vec<_> = records.collect();
        Addresses::shared()
            .write_records(&self.setup.name, &records)
            .await?;
        for (_, key, version) in versions {
            let newest = self.newest.entry(key.clone()).or_default();
            *newest = (*version).max(*newest);
        }
        Ok(())
    }

    /// Writes a last record to each partition, and waits for it.
    async fn settle(&mut self, round: i64) -> Result<()> {
        let ends = (0..i64::from(PARTITIONS)).map(|number| (number, format!("end{number}"), round));
        self.write(&ends.collect::<Vec<_>>()).await?;
        let ended =
            format!("select count(*) from versions where key like 'end%' and version = {round}");
        self.setup.sql.wait_for(&ended, PARTITIONS.into()).await
    }

    /// Counts the rows that are missing or not the newest version of their key.
    async fn count_wrong_rows(&self) -> Result<usize> {
        let query = "select key, version, value from versions";
        let rows = self.setup.sql.query(query, &[]).await?;
        let found: BTreeMap<String, (i64, String)> = rows
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2))))
            .collect();
        let is_right = |(key, version): &(&String, &i64)| {
            found.get(*key) == Some(&(**version, value(key, **version)))
        };
        ensure!(
            found.keys().all(|key| self.newest.contains_key(key)),
            "unexpected key"
        );
        Ok(self.newest.iter().filter(|row| !is_right(row)).count())
    }
}

fn value(key: &str, version: i64) -> String {
    format!("{key} in version {version}")
}

/// Applies the history with a crash in its middle, and then again from its beginning while new versions are
/// written. Returns the number of wrong rows after each.
async fn replay(kind: ConsumerKind, winner: Winner, test: &str) -> Result<(usize, usize)> {
    let mut history = History::new(test).await?;
    let projection = Arc::new(Faulty::new(Versions(winner)));
    let injected = projection.inject(Fault::Crash);
    let crashing = kind.start(&history.setup, &projection, Some("same"))?;
    wait_for_fault(&injected).await?;
    crashing.join().await?;
    let successor = kind.start(&history.setup, &projection, Some("same"))?;
    history.settle(1).await?;
    successor.stop().await?;
    let first = history.count_wrong_rows().await.context("first pass")?;

    let from_the_beginning = "update projection_offsets set next_offset = 0";
    history.setup.sql.batch_execute(from_the_beginning).await?;
    let again = kind.start(&history.setup, &projection, Some("same"))?;
    for version in MAX_VERSION + 1..MAX_VERSION + 5 {
        let newer = (0..KEYS)
            .step_by(3)
            .map(|key| (key, format!("k{key}"), version));
        history.write(&newer.collect::<Vec<_>>()).await?;
    }
    history.settle(2).await?;
    again.stop().await?;
    Ok((first, history.count_wrong_rows().await.context("replay")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_repeated_and_outdated_records_leaves_the_newest_rows() -> Result<()> {
    let wrong = replay(ConsumerKind::Projection, Winner::Newest, "replay").await?;
    assert_eq!(wrong, (0, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_damages_rows_if_the_latest_record_wins() -> Result<()> {
    let wrong = replay(ConsumerKind::Projection, Winner::Latest, "latest_replay").await?;
    println!("{wrong:?} wrong rows");
    ensure!(wrong.0 > 0, "{wrong:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_does_not_restore_what_auto_commit_lost() -> Result<()> {
    let wrong = replay(
        ConsumerKind::Naive(Flaw::AutoCommit),
        Winner::Newest,
        "auto_replay",
    )
    .await?;
    println!("{wrong:?} wrong rows");
    ensure!(wrong.0 > 0, "{wrong:?}");
    Ok(())
}
