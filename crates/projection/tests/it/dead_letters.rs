//! Dead letters: their copies, redrive and counts.

use anyhow::{Context as _, Result};
use devstack::{Addresses, eventually};
use projection::{RedriveOutcome, dead_letters, redrive};

use crate::harness::{Counts, DEAD, Setup, TOTAL};

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_copied_with_their_origin_even_if_the_topic_is_created_later() -> Result<()>
{
    let setup = Setup::new("copies").await?;
    let servers = Addresses::shared();
    let topic = format!("{}.dlq", setup.name);
    let headers = [("ce_id", "7"), ("other", "x")];
    servers
        .write_record(&setup.name, Some(b"a"), Some(b"\xff\x00"), &headers)
        .await?;
    let running = setup.start_with_dead_letter_topic(&topic);
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
async fn a_redrive_applies_a_dead_letter_after_its_cause_is_fixed() -> Result<()> {
    let setup = Setup::new("redrive").await?;
    setup.count("far too long").await?;
    let running = setup.start();
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    let mut conn = setup.connection().await?;
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 10).await?;
    let id = dead_letters
        .first()
        .context("a dead letter")?
        .dead_letter_id;

    let outcome = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert!(matches!(outcome, RedriveOutcome::Poison(_)), "{outcome:?}");
    assert_eq!(setup.sql.count(DEAD).await?, 1);

    let fix = "alter table counts drop constraint counts_key_short";
    setup.sql.batch_execute(fix).await?;
    let applied = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert_eq!(applied, RedriveOutcome::Applied);
    assert_eq!(setup.sql.count(TOTAL).await?, 1);
    assert_eq!(setup.sql.count(DEAD).await?, 0);
    let again = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert_eq!(again, RedriveOutcome::NotFound);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_other_projections_are_inaccessible() -> Result<()> {
    let setup = Setup::new("foreign").await?;
    setup.count("far too long").await?;
    let running = setup.start();
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
    assert!(!dead_letters::drop_dead_letter(&mut conn, "other", id).await?);
    let missing = redrive(&mut conn, &Counts, "other", id).await?;
    assert_eq!(missing, RedriveOutcome::NotFound);
    assert!(dead_letters::drop_dead_letter(&mut conn, &setup.name, id).await?);
    assert_eq!(setup.sql.count(DEAD).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_counted_with_the_offsets() -> Result<()> {
    let setup = Setup::new("counted").await?;
    let servers = Addresses::shared();
    for key in ["a", "far too long", "b", "c"] {
        setup.count(key).await?;
    }
    for _ in 0..2 {
        servers
            .write_record(&setup.name, Some(b"a"), None, &[("ce_type", "unknown")])
            .await?;
    }
    let running = setup.start();
    let counted = "select count(*) from (
            select sum(applied) as applied, sum(skipped) as skipped, sum(dead_lettered) as dead_lettered,
                sum(next_offset) as records
            from projection_offsets) as counts
        where (applied, skipped, dead_lettered, records) = (3, 2, 1, 6)";
    let all = async || Ok((setup.sql.count(counted).await? == 1).then_some(()));
    eventually("3 applied, 2 skipped, 1 dead-lettered", all).await?;
    running.stop().await;
    Ok(())
}

/// Otherwise it would not see newer versions in an open transaction of the consumer.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_waits_for_open_transactions_of_the_consumer() -> Result<()> {
    let setup = Setup::new("redrive_waits").await?;
    setup.count("far too long").await?;
    let running = setup.start();
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    let fix = "alter table counts drop constraint counts_key_short";
    setup.sql.batch_execute(fix).await?;
    let mut conn = setup.session().await?;
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 10).await?;
    let id = dead_letters
        .first()
        .context("a dead letter")?
        .dead_letter_id;
    let applying = setup.connect_sql().await?;
    applying
        .batch_execute("begin; update projection_offsets set next_offset = next_offset")
        .await?;
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'
            and query like '%projection_offsets%'";
    let commit = async {
        setup.sql.wait_for(waiting, 1).await?;
        assert_eq!(setup.sql.count(DEAD).await?, 1);
        anyhow::Ok(applying.batch_execute("commit").await?)
    };
    let (redriven, committed) = tokio::join!(redrive(&mut conn, &Counts, &setup.name, id), commit);
    committed?;
    assert_eq!(redriven?, RedriveOutcome::Applied);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_too_large_for_its_topic_does_not_block_others() -> Result<()> {
    let setup = Setup::new("large_dead_letters").await?;
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
    let running = setup.start_with_dead_letter_topic(&topic);
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
