//! Tables are built anew beside those that serve.

use anyhow::Result;
use devstack::{Addresses, NewRecord, PATIENCE, Sql};
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
        let (mut conn, mut follower) = (self.session().await?, self.session().await?);
        let options = self.rebuild_options();
        let rebuilt = rebuild(&mut conn, &mut follower, &Counts, &options).await?;
        Ok(rebuilt.records)
    }
}

/// What the follower and the tables agree on.
async fn offsets(sql: &Sql) -> Result<i64> {
    sql.count("select sum(next_offset) from projection_offsets")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_take_the_place_of_damaged_ones_while_the_follower_goes_on() -> Result<()> {
    let setup = Setup::new("rebuild").await?;
    let running = setup.follow_all(20, 5).await?;
    setup
        .sql
        .batch_execute("update counts set count = count + 100")
        .await?;
    assert_eq!(setup.rebuild().await?, 20);
    assert_eq!(setup.sql.count(TOTAL).await?, 20);
    // The follower goes on from the offset that came with the new tables.
    setup.count("k0").await?;
    setup.sql.wait_for(TOTAL, 21).await?;
    assert_eq!(offsets(&setup.sql).await?, 21);
    // The old ones are there to be looked at, and in the way of the next rebuild.
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
    let running = setup.follow_all(50, 7).await?;
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
    assert_eq!(offsets(&setup.sql).await?, 350);
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_was_ended_goes_on_where_it_was() -> Result<()> {
    let setup = Setup::new("resumed").await?;
    let running = setup.follow_all(30, 5).await?;
    running.stop().await;
    // A swap that can't be: somebody reads the table all the time.
    let reader = setup.open_transaction_on_counts().await?;
    let first = setup.rebuild();
    let built = "select coalesce(sum(next_offset), 0) from projection_offsets
                 where projection like '% rebuild'";
    tokio::select! {
        result = first => anyhow::bail!("swapped under a reader: {result:?}"),
        built = setup.sql.wait_for(built, 30) => built?,
    }
    reader.batch_execute("rollback").await?;
    assert_eq!(setup.rebuild().await?, 0);
    assert_eq!(setup.sql.count(TOTAL).await?, 30);
    Ok(())
}

/// A batch is ten thousand records, and it stops applying a thousand before the end: with some of
/// those already read.
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
    // As one that has applied nothing yet.
    let known = format!(
        "insert into projection_offsets (projection, topic, partition, next_offset)
         values ('{0}', '{0}', 0, 0)",
        setup.name
    );
    setup.sql.batch_execute(&known).await?;
    // On a thread of its own: one that hangs as it ends must not hold this test up.
    let (tell, told) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let (mut conn, mut follower) = (setup.session().await?, setup.session().await?);
    let options = setup.rebuild_options();
    std::thread::spawn(move || {
        let rebuilding = rebuild(&mut conn, &mut follower, &Counts, &options);
        drop(tell.send(runtime.block_on(rebuilding)));
    });
    let rebuilt = tokio::time::timeout(PATIENCE, told).await???;
    assert!(rebuilt.records < RECORDS as u64, "{rebuilt:?}");
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, RECORDS).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_under_which_nobody_follows_is_rejected() -> Result<()> {
    let setup = Setup::new("misnamed").await?;
    let running = setup.follow_all(1, 1).await?;
    running.stop().await;
    let options = RebuildOptions {
        name: "other".into(),
        ..setup.rebuild_options()
    };
    let (mut conn, mut follower) = (setup.session().await?, setup.session().await?);
    let err = rebuild(&mut conn, &mut follower, &Counts, &options).await;
    let err = err.unwrap_err().to_string();
    assert!(err.contains(&setup.name), "{err}");
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_nobody_follows_is_rejected_before_anything_is_built() -> Result<()> {
    let setup = Setup::new("unfollowed").await?;
    let running = setup.follow_all(1, 1).await?;
    running.stop().await;
    let options = RebuildOptions {
        topic: "other.topic".into(),
        ..setup.rebuild_options()
    };
    let (mut conn, mut follower) = (setup.session().await?, setup.session().await?);
    let err = rebuild(&mut conn, &mut follower, &Counts, &options).await;
    let err = err.unwrap_err().to_string();
    assert!(err.contains("nobody follows topic other.topic"), "{err}");
    let built = "select count(*) from pg_namespace where nspname = 'projection_rebuild'";
    assert_eq!(setup.sql.count(built).await?, 0);
    Ok(())
}

/// Whatever its policy is by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_has_lost_records_is_rejected() -> Result<()> {
    let setup = Setup::with_partitions("incomplete", 1).await?;
    let servers = Addresses::shared();
    for _ in 0..3 {
        setup.count("a").await?;
    }
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 3).await?;
    running.stop().await;
    let policy = |policy| [("cleanup.policy", policy)];
    servers.alter_topic(&setup.name, &policy("delete")).await?;
    servers.delete_records_before(&setup.name, 0, 2).await?;
    for now in ["delete", "compact"] {
        servers.alter_topic(&setup.name, &policy(now)).await?;
        let err = setup.rebuild().await.unwrap_err().to_string();
        assert!(err.contains("can't be complete"), "{err}");
    }
    Ok(())
}

/// It has nothing for who reads what is committed, and takes offsets all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_ends_in_an_aborted_transaction_is_rebuilt() -> Result<()> {
    let setup = Setup::with_partitions("aborted", 1).await?;
    let running = setup.follow_all(1, 1).await?;
    let topic = setup.name.clone();
    let aborting = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", Addresses::shared().brokers())
            .set("transactional.id", &topic)
            .create()?;
        producer.init_transactions(PATIENCE)?;
        producer.begin_transaction()?;
        for _ in 0..3_000 {
            let record = BaseRecord::<[u8], [u8]>::to(&topic)
                .key(b"a")
                .payload(b"{}");
            producer.send(record).map_err(|(err, _)| err)?;
        }
        producer.flush(PATIENCE)?;
        producer.abort_transaction(PATIENCE)
    });
    aborting.await??;
    assert_eq!(tokio::time::timeout(PATIENCE, setup.rebuild()).await??, 1);
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    running.stop().await;
    Ok(())
}

/// The tables that it had made are of no use then.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_was_ended_before_a_migration_begins_anew() -> Result<()> {
    let setup = Setup::new("migrated").await?;
    let running = setup.follow_all(30, 5).await?;
    running.stop().await;
    let reader = setup.open_transaction_on_counts().await?;
    let err = setup.rebuild().await.unwrap_err().to_string();
    assert!(err.contains("begin again"), "{err}");
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

/// What the service says is to be done when a topic was made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_of_which_the_offsets_were_forgotten_begins_anew() -> Result<()> {
    let setup = Setup::new("forgotten").await?;
    let running = setup.follow_all(1, 1).await?;
    let reader = setup.open_transaction_on_counts().await?;
    let err = setup.rebuild().await.unwrap_err().to_string();
    assert!(err.contains("begin again"), "{err}");
    reader.batch_execute("rollback").await?;
    let forget = format!(
        "delete from projection_offsets where projection = '{} rebuild'",
        setup.name
    );
    setup.sql.batch_execute(&forget).await?;
    assert_eq!(setup.rebuild().await?, 1);
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    running.stop().await;
    Ok(())
}

/// A view shows what was replaced, and goes with it only if its owner wants that.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_stays_while_something_depends_on_it() -> Result<()> {
    let setup = Setup::new("viewed").await?;
    let running = setup.follow_all(1, 1).await?;
    let view = "create view shown as select key, count from counts";
    setup.sql.batch_execute(view).await?;
    setup.rebuild().await?;
    let mut conn = setup.session().await?;
    let err = drop_replaced(&mut conn).await.unwrap_err().to_string();
    assert!(err.contains("other objects depend on it"), "{err}");
    assert_eq!(setup.sql.count("select count(*) from shown").await?, 1);
    setup.sql.batch_execute("drop view shown").await?;
    drop_replaced(&mut conn).await?;
    running.stop().await;
    Ok(())
}
