//! Tables are rebuilt beside the live ones, and swapped.

use anyhow::Result;
use devstack::{Addresses, NewRecord, Sql, WAIT_TIMEOUT};
use postgres_session::SqlState;
use projection::{RebuildOptions, Rebuildable, drop_replaced, rebuild};

use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use tokio::sync::oneshot;

use crate::harness::{Counts, Setup, TOTAL};

impl Rebuildable for Counts {
    const TABLES: &'static [&'static str] = &["counts"];
}

impl Setup {
    pub(crate) fn rebuild_options(&self) -> RebuildOptions {
        RebuildOptions {
            brokers: Addresses::shared().brokers().to_owned(),
            name: self.name.clone(),
            topic: self.name.clone(),
        }
    }

    async fn rebuild(&self) -> Result<u64> {
        let (mut conn, mut swap_conn) = (self.session().await?, self.session().await?);
        let options = self.rebuild_options();
        let rebuilt = rebuild(&mut conn, &mut swap_conn, &Counts, &options).await?;
        Ok(rebuilt.records)
    }
}

/// Returns the sum of the stored offsets.
async fn sum_offsets(sql: &Sql) -> Result<i64> {
    sql.count("select sum(next_offset) from projection_offsets")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_replaces_damaged_tables_while_the_consumer_runs() -> Result<()> {
    let setup = Setup::new("rebuild").await?;
    let running = setup.apply_all(20, 5).await?;
    setup
        .sql
        .batch_execute("update counts set count = count + 100")
        .await?;
    assert_eq!(setup.rebuild().await?, 20);
    assert_eq!(setup.sql.count(TOTAL).await?, 20);
    // The consumer continues from the offsets of the new tables.
    setup.count("k0").await?;
    setup.sql.wait_for(TOTAL, 21).await?;
    assert_eq!(sum_offsets(&setup.sql).await?, 21);
    // The replaced tables are kept for inspection, and block the next rebuild.
    let old = "select sum(count) from projection_replaced.counts";
    assert_eq!(setup.sql.count(old).await?, 520);
    let err = setup.rebuild().await.unwrap_err().to_string();
    assert!(err.contains("--drop-old"), "{err}");
    drop_replaced(&mut setup.session().await?).await?;
    assert_eq!(setup.rebuild().await?, 21);
    assert_eq!(setup.sql.count(TOTAL).await?, 21);
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_under_load_loses_nothing_and_applies_nothing_twice() -> Result<()> {
    let setup = Setup::new("loaded").await?;
    let running = setup.apply_all(50, 7).await?;
    let load = async {
        for number in 0..300 {
            setup.count(&format!("k{}", number % 7)).await?;
        }
        anyhow::Ok(())
    };
    let (loaded, rebuilt) = tokio::join!(load, setup.rebuild());
    loaded?;
    rebuilt?;
    setup.sql.wait_for(TOTAL, 350).await?;
    assert_eq!(sum_offsets(&setup.sql).await?, 350);
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_rebuild_resumes() -> Result<()> {
    let setup = Setup::new("resumed").await?;
    let running = setup.apply_all(30, 5).await?;
    running.stop().await;
    // An open transaction that has read the table blocks the swap.
    let reader = setup.open_transaction_on_counts().await?;
    let first = setup.rebuild();
    let built = "select coalesce(sum(next_offset), 0) from projection_offsets
                 where projection like '% rebuild'";
    tokio::select! {
        result = first => anyhow::bail!("swapped during an open transaction: {result:?}"),
        built = setup.sql.wait_for(built, 30) => built?,
    }
    reader.batch_execute("rollback").await?;
    assert_eq!(setup.rebuild().await?, 0);
    assert_eq!(setup.sql.count(TOTAL).await?, 30);
    Ok(())
}

/// A batch has 10,000 records, and the rebuild stops catching up 1,000 before the end: it has read some of those
/// ahead.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_has_read_ahead_ends() -> Result<()> {
    const RECORDS: i64 = 10_600;
    let setup = Setup::with_partitions("ahead", 1).await?;
    let record = NewRecord {
        key: Some(b"key"),
        payload: Some(b"{}"),
        headers: &[("ce_type", "count")],
        ..NewRecord::default()
    };
    Addresses::shared()
        .write_records(&setup.name, &[record; RECORDS as usize])
        .await?;
    // A projection that has applied nothing yet.
    let offsets = format!(
        "insert into projection_offsets (projection, topic, partition, next_offset)
         values ('{0}', '{0}', 0, 0)",
        setup.name
    );
    setup.sql.batch_execute(&offsets).await?;
    // On a separate thread: a rebuild that hangs while it is dropped must not block this test.
    let (sender, receiver) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let (mut conn, mut swap_conn) = (setup.session().await?, setup.session().await?);
    let options = setup.rebuild_options();
    std::thread::spawn(move || {
        let rebuilding = rebuild(&mut conn, &mut swap_conn, &Counts, &options);
        drop(sender.send(runtime.block_on(rebuilding)));
    });
    let rebuilt = tokio::time::timeout(WAIT_TIMEOUT, receiver).await???;
    assert!(rebuilt.records < RECORDS as u64, "{rebuilt:?}");
    let running = setup.start();
    setup.sql.wait_for(TOTAL, RECORDS).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_projection_is_rejected() -> Result<()> {
    let setup = Setup::new("misnamed").await?;
    let running = setup.apply_all(1, 1).await?;
    running.stop().await;
    let options = RebuildOptions {
        name: "other".into(),
        ..setup.rebuild_options()
    };
    let (mut conn, mut swap_conn) = (setup.session().await?, setup.session().await?);
    let err = rebuild(&mut conn, &mut swap_conn, &Counts, &options).await;
    let err = err.unwrap_err().to_string();
    assert!(err.contains(&setup.name), "{err}");
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_offsets_is_rejected_before_anything_is_built() -> Result<()> {
    let setup = Setup::new("unfollowed").await?;
    let running = setup.apply_all(1, 1).await?;
    running.stop().await;
    let options = RebuildOptions {
        topic: "other.topic".into(),
        ..setup.rebuild_options()
    };
    let (mut conn, mut swap_conn) = (setup.session().await?, setup.session().await?);
    let err = rebuild(&mut conn, &mut swap_conn, &Counts, &options).await;
    let err = err.unwrap_err().to_string();
    assert!(
        err.contains("has no offsets for topic other.topic"),
        "{err}"
    );
    let built = "select count(*) from pg_namespace where nspname = 'projection_rebuild'";
    assert_eq!(setup.sql.count(built).await?, 0);
    Ok(())
}

/// Regardless of its current cleanup.policy.
#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_topic_is_rejected() -> Result<()> {
    let setup = Setup::with_partitions("incomplete", 1).await?;
    let servers = Addresses::shared();
    for _ in 0..3 {
        setup.count("a").await?;
    }
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 3).await?;
    running.stop().await;
    let policy = |policy| [("cleanup.policy", policy)];
    servers.alter_topic(&setup.name, &policy("delete")).await?;
    servers.delete_records_before(&setup.name, 0, 2).await?;
    for now in ["delete", "compact"] {
        servers.alter_topic(&setup.name, &policy(now)).await?;
        let err = setup.rebuild().await.unwrap_err().to_string();
        assert!(
            err.contains("is incomplete: old records were deleted"),
            "{err}"
        );
    }
    Ok(())
}

/// Its aborted records have offsets, but consumers do not receive them.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_ends_in_an_aborted_transaction_is_rebuilt() -> Result<()> {
    let setup = Setup::with_partitions("aborted", 1).await?;
    let running = setup.apply_all(1, 1).await?;
    let topic = setup.name.clone();
    let aborting = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", Addresses::shared().brokers())
            .set("transactional.id", &topic)
            .create()?;
        producer.init_transactions(WAIT_TIMEOUT)?;
        producer.begin_transaction()?;
        for _ in 0..3_000 {
            let record = BaseRecord::<[u8], [u8]>::to(&topic)
                .key(b"a")
                .payload(b"{}");
            producer.send(record).map_err(|(err, _)| err)?;
        }
        producer.flush(WAIT_TIMEOUT)?;
        producer.abort_transaction(WAIT_TIMEOUT)
    });
    aborting.await??;
    assert_eq!(
        tokio::time::timeout(WAIT_TIMEOUT, setup.rebuild()).await??,
        1
    );
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    running.stop().await;
    Ok(())
}

/// The tables that it had created are unusable then.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_interrupted_before_a_migration_restarts() -> Result<()> {
    let setup = Setup::new("migrated").await?;
    let running = setup.apply_all(30, 5).await?;
    running.stop().await;
    let reader = setup.open_transaction_on_counts().await?;
    let err = setup.rebuild().await.unwrap_err().to_string();
    assert!(err.contains("Run the rebuild again"), "{err}");
    reader.batch_execute("rollback").await?;
    setup
        .sql
        .batch_execute("alter table counts add column country text not null default 'DE'")
        .await?;
    assert_eq!(setup.rebuild().await?, 30);
    let with_country = "select count(*) from counts where country = 'DE'";
    assert_eq!(setup.sql.count(with_country).await?, 5);
    Ok(())
}

/// The recovery command of a recreated topic deletes these offsets.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_whose_offsets_were_deleted_restarts() -> Result<()> {
    let setup = Setup::new("deleted_offsets").await?;
    let running = setup.apply_all(1, 1).await?;
    let reader = setup.open_transaction_on_counts().await?;
    let err = setup.rebuild().await.unwrap_err().to_string();
    assert!(err.contains("Run the rebuild again"), "{err}");
    reader.batch_execute("rollback").await?;
    let delete = format!(
        "delete from projection_offsets where projection = '{} rebuild'",
        setup.name
    );
    setup.sql.batch_execute(&delete).await?;
    assert_eq!(setup.rebuild().await?, 1);
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    running.stop().await;
    Ok(())
}

/// A view still reads the replaced table. Only its owner may decide to drop it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_table_is_not_dropped_while_a_view_depends_on_it() -> Result<()> {
    let setup = Setup::new("viewed").await?;
    let running = setup.apply_all(1, 1).await?;
    let view = "create view shown as select key, count from counts";
    setup.sql.batch_execute(view).await?;
    setup.rebuild().await?;
    let mut conn = setup.session().await?;
    let err = drop_replaced(&mut conn).await.unwrap_err();
    let state = postgres_session::sqlstate(&err);
    assert_eq!(
        state,
        Some(SqlState::DEPENDENT_OBJECTS_STILL_EXIST),
        "{err}"
    );
    assert_eq!(setup.sql.count("select count(*) from shown").await?, 1);
    setup.sql.batch_execute("drop view shown").await?;
    drop_replaced(&mut conn).await?;
    running.stop().await;
    Ok(())
}
