//! What becomes of records that were set aside.

use anyhow::{Context as _, Result};
use devstack::{Addresses, eventually};
use projection::{Redriven, dead_letters, redrive};

use crate::harness::{Counts, DEAD, Setup, TOTAL};

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_its_origin_goes_to_the_topic_even_if_that_comes_late() -> Result<()> {
    let setup = Setup::new("copies").await?;
    let servers = Addresses::shared();
    let topic = format!("{}.dlq", setup.name);
    let headers = [("ce_id", "7"), ("other", "x")];
    servers
        .write_record(&setup.name, Some(b"a"), Some(b"\xff\x00"), &headers)
        .await?;
    let running = setup.follow_with_dead_letter_topic(&topic);
    setup.sql.wait_for(DEAD, 1).await?;
    servers.create_topic(&topic, 1).await?;
    let in_topic = "select count(*) from dead_letters where in_topic";
    setup.sql.wait_for(in_topic, 1).await?;
    let copies = servers.read_topic(&topic).await?;
    let [copy] = &copies[..] else {
        anyhow::bail!("{} copies", copies.len());
    };
    assert_eq!(copy.key, "a");
    assert_eq!(copy.payload.as_deref(), Some(&b"\xff\x00"[..]));
    let header = |name: &str| copy.header(name);
    assert_eq!(header("ce_id"), Some("7"));
    assert_eq!(header("other"), Some("x"));
    assert_eq!(header("dlq_topic"), Some(setup.name.as_str()));
    assert_eq!(header("dlq_offset"), Some("0"));
    assert_eq!(header("dlq_class"), Some("header"));
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_applied_once_its_fault_is_mended() -> Result<()> {
    let setup = Setup::new("redrive").await?;
    setup.count("far too long").await?;
    let running = setup.follow();
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    let mut conn = setup.connection().await?;
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 10).await?;
    let id = dead_letters
        .first()
        .context("a dead letter")?
        .dead_letter_id;

    let rejected = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert!(matches!(rejected, Redriven::Rejected(_)), "{rejected:?}");
    assert_eq!(setup.sql.count(DEAD).await?, 1);

    let mend = "alter table counts drop constraint counts_key_short";
    setup.sql.batch_execute(mend).await?;
    let applied = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert_eq!(applied, Redriven::Applied);
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    assert_eq!(setup.sql.count(DEAD).await?, 0);
    let again = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert_eq!(again, Redriven::Missing);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_another_projection_is_not_touched() -> Result<()> {
    let setup = Setup::new("foreign").await?;
    setup.count("far too long").await?;
    let running = setup.follow();
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    let mut conn = setup.connection().await?;
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 10).await?;
    let id = dead_letters
        .first()
        .context("a dead letter")?
        .dead_letter_id;
    assert!(
        dead_letters::list(&mut conn, "other", 0, 10)
            .await?
            .is_empty()
    );
    assert!(!dead_letters::discard(&mut conn, "other", id).await?);
    let missing = redrive(&mut conn, &Counts, "other", id).await?;
    assert_eq!(missing, Redriven::Missing);
    assert!(dead_letters::discard(&mut conn, &setup.name, id).await?);
    assert_eq!(setup.sql.count(DEAD).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_each_record_is_counted_with_its_offset() -> Result<()> {
    let setup = Setup::new("counted").await?;
    let servers = Addresses::shared();
    for key in ["a", "far too long", "b", "c"] {
        setup.count(key).await?;
    }
    for _ in 0..2 {
        servers
            .write_record(&setup.name, Some(b"a"), None, &[("ce_type", "unheard of")])
            .await?;
    }
    let running = setup.follow();
    let counted = "select count(*) from (
            select sum(applied) as applied, sum(skipped) as skipped, sum(dead_lettered) as dead_lettered,
                sum(next_offset) as records
            from projection_offsets) as counts
        where (applied, skipped, dead_lettered, records) = (3, 2, 1, 6)";
    let all = async || Ok((setup.sql.count(counted).await? == 1).then_some(()));
    eventually("3 applied, 2 skipped, 1 set aside", all).await?;
    running.stop().await;
    Ok(())
}

/// It would not see what the follower is applying, and applies what may be older.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_waits_for_what_is_being_applied() -> Result<()> {
    let setup = Setup::new("redrive_waits").await?;
    setup.count("far too long").await?;
    let running = setup.follow();
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    let mend = "alter table counts drop constraint counts_key_short";
    setup.sql.batch_execute(mend).await?;
    let mut conn = setup.session().await?;
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 10).await?;
    let id = dead_letters
        .first()
        .context("a dead letter")?
        .dead_letter_id;
    let applying = setup.look().await?;
    applying
        .batch_execute("begin; update projection_offsets set next_offset = next_offset")
        .await?;
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'
            and query like '%projection_offsets%'";
    let end = async {
        setup.sql.wait_for(waiting, 1).await?;
        assert_eq!(setup.sql.count(DEAD).await?, 1);
        anyhow::Ok(applying.batch_execute("commit").await?)
    };
    let (redriven, ended) = tokio::join!(redrive(&mut conn, &Counts, &setup.name, id), end);
    ended?;
    assert_eq!(redriven?, Redriven::Applied);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_its_topic_is_too_small_for_holds_up_no_other() -> Result<()> {
    let setup = Setup::new("large_letters").await?;
    let servers = Addresses::shared();
    let topic = format!("{}.dlq", setup.name);
    servers.create_topic(&topic, 1).await?;
    let limit = [("max.message.bytes", "10000")];
    servers.alter_topic(&topic, &limit).await?;
    for payload in [&[b'x'; 50_000][..], b"small"] {
        servers
            .write_record(&setup.name, Some(b"a"), Some(payload), &[("other", "x")])
            .await?;
    }
    let running = setup.follow_with_dead_letter_topic(&topic);
    let in_topic = "select count(*) from dead_letters where in_topic";
    setup.sql.wait_for(in_topic, 2).await?;
    running.stop().await;
    let copies = servers.read_topic(&topic).await?;
    let [large, small] = &copies[..] else {
        anyhow::bail!("{} copies", copies.len());
    };
    assert_eq!((&large.payload, large.header("other")), (&None, None));
    assert!(large.header("dlq_left_out").is_some());
    assert_eq!(large.header("dlq_offset"), Some("0"));
    assert_eq!(small.payload.as_deref(), Some(&b"small"[..]));
    assert_eq!(small.header("dlq_left_out"), None);
    Ok(())
}
