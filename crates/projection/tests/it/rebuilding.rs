//! Tables are built anew beside those that serve.

use anyhow::Result;
use devstack::{Addresses, NewRecord, PATIENCE, Sql};
use projection::{RebuildOptions, Rebuildable, drop_replaced, rebuild};

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
    for number in 0..20 {
        setup.count(&format!("k{}", number % 5)).await?;
    }
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 20).await?;
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
    for number in 0..50 {
        setup.count(&format!("k{}", number % 7)).await?;
    }
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 50).await?;
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
    for number in 0..30 {
        setup.count(&format!("k{}", number % 5)).await?;
    }
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 30).await?;
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
async fn a_name_under_which_nobody_follows_is_refused() -> Result<()> {
    let setup = Setup::new("misnamed").await?;
    setup.count("k").await?;
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 1).await?;
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
async fn a_topic_that_has_lost_records_is_refused() -> Result<()> {
    let setup = Setup::new("incomplete").await?;
    let servers = Addresses::shared();
    let topic = format!("{}.deleted", setup.name);
    servers.create_dead_letter_topic(&topic).await?;
    for _ in 0..3 {
        servers
            .write_record(&topic, Some(b"a"), Some(b"{}"), &[("ce_type", "count")])
            .await?;
    }
    let running = setup.follow();
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    running.stop().await;
    let options = RebuildOptions {
        topic: topic.clone(),
        ..setup.rebuild_options()
    };
    let (mut conn, mut follower) = (setup.session().await?, setup.session().await?);
    servers.delete_records_before(&topic, 0, 2).await?;
    let err = rebuild(&mut conn, &mut follower, &Counts, &options)
        .await
        .unwrap_err();
    assert!(err.to_string().contains("can't be complete"), "{err}");
    Ok(())
}
