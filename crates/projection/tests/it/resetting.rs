//! Deleting the stored offsets.

use anyhow::{Result, ensure};
use projection::ResetMode;

use crate::harness::{Setup, TOTAL};

const STORED: &str = "select count(*) from projection_offsets";

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_applies_the_topic_again_and_is_refused_while_a_consumer_runs() -> Result<()> {
    let setup = Setup::new("reset").await?;
    let running = setup.apply_all(3, 1).await?;
    let (mut conn, options) = (setup.session().await?, setup.options());
    let refused = projection::reset(&mut conn, &options, ResetMode::Delete).await;
    let reason = format!("{:#}", refused.expect_err("a running consumer"));
    ensure!(reason.contains("running members: 1"), "{reason}");
    running.stop().await;
    let shown = projection::reset(&mut conn, &options, ResetMode::DryRun).await?;
    ensure!(shown.len() == 3, "{shown:?}");
    for partition in &shown {
        ensure!(partition.topic_id.is_some(), "{shown:?}");
        ensure!(partition.stored_topic_id == partition.topic_id, "{shown:?}");
        ensure!(
            partition.offsets == Some((0, partition.next_offset)),
            "{shown:?}"
        );
    }
    setup.sql.wait_for(STORED, 3).await?;
    setup.reset().await?;
    setup.sql.wait_for(STORED, 0).await?;
    let running = setup.start();
    // This projection counts repetitions.
    setup.sql.wait_for(TOTAL, 6).await?;
    running.stop().await;
    Ok(())
}

/// A record of a recreated topic can have the offset of an earlier dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_record_after_a_reset_replaces_the_dead_letter_with_its_offset() -> Result<()> {
    let setup = Setup::new("reset_poison").await?;
    let headers = [("ce_type", "count")];
    let poison = async |payload: &[u8]| {
        let key = Some(&b"a key that is too long"[..]);
        let writing = setup
            .servers
            .write_record(&setup.name, key, Some(payload), &headers);
        writing.await
    };
    let stored =
        |payload: &str| format!("select count(*) from dead_letters where payload = '{payload}'");
    poison(b"old").await?;
    let running = setup.start();
    setup.sql.wait_for(&stored("old"), 1).await?;
    running.stop().await;
    setup.recreate_topic().await?;
    poison(b"new").await?;
    setup.reset().await?;
    let running = setup.start();
    setup.sql.wait_for(&stored("new"), 1).await?;
    setup.sql.wait_for(&stored("old"), 0).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_from_a_recreated_topic_names_the_reset() -> Result<()> {
    let setup = Setup::new("rebuilt_recreated").await?;
    let running = setup.apply_all(3, 1).await?;
    running.stop().await;
    setup.recreate_topic().await?;
    for _ in 0..5 {
        setup.count("k0").await?;
    }
    let (mut conn, mut swap_conn) = (setup.session().await?, setup.session().await?);
    let projection = crate::harness::Counts;
    let options = setup.options();
    let rebuilt = projection::rebuild(&mut conn, &mut swap_conn, &projection, &options).await;
    let reason = format!("{:#}", rebuilt.expect_err("another topic"));
    ensure!(reason.contains("was recreated: its id is"), "{reason}");
    ensure!(reason.contains("`projection reset`"), "{reason}");
    setup.sql.wait_for(TOTAL, 3).await
}
