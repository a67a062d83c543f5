//! The contents of dead letters are erased; their rows stay.

use anyhow::{Context as _, Result};
use devstack::{Addresses, eventually};
use projection::{RedriveOutcome, dead_letters, redrive};

use crate::harness::{Counts, DEAD, Setup};

const ERASED: &str = "payload is null and header_names = '{}' and header_values = '{}'
    and error_class = 'header' and error = 'missing header ce_type' and topic = 'TOPIC'";

/// Returns a query that counts dead letters without contents that still have their origin and error.
fn count_erased(setup: &Setup, key: &str) -> String {
    let is_erased = ERASED.replace("TOPIC", &setup.name);
    format!("select count(*) from dead_letters where {key} and {is_erased}")
}

/// Writes a poison record.
async fn write_poison(setup: &Setup, key: &str) -> Result<()> {
    let headers = [("from", "a person")];
    Addresses::shared()
        .write_record(
            &setup.name,
            Some(key.as_bytes()),
            Some(b"personal"),
            &headers,
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_a_key_erases_its_dead_letters_and_keeps_their_rows() -> Result<()> {
    let setup = Setup::new("erased").await?;
    for key in ["gone", "here", "gone"] {
        write_poison(&setup, key).await?;
    }
    let running = setup.start();
    setup.sql.wait_for(DEAD, 3).await?;
    running.stop().await;
    let mut conn = setup.connection().await?;
    dead_letters::erase(&mut conn, &["gone".to_owned(), "other".to_owned()]).await?;
    let gone = count_erased(&setup, "key = 'gone' and erased_at is not null");
    assert_eq!(setup.sql.count(&gone).await?, 2);
    let here = "select count(*) from dead_letters
        where key = 'here' and payload = 'personal' and header_names = '{from}'
          and erased_at is null";
    assert_eq!(setup.sql.count(here).await?, 1);

    // A redrive has nothing to apply, and keeps the original error.
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 10).await?;
    let dead_letter = dead_letters.into_iter().find(|l| l.erased_at.is_some());
    let id = dead_letter.context("an erased dead letter")?.dead_letter_id;
    let redriven = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert_eq!(redriven, RedriveOutcome::Erased);
    assert_eq!(setup.sql.count(&gone).await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_retention_the_contents_and_the_key_are_erased() -> Result<()> {
    let setup = Setup::new("expired").await?;
    let running = setup.start();
    for key in ["old", "older"] {
        write_poison(&setup, key).await?;
    }
    setup.sql.wait_for(DEAD, 2).await?;
    // One of them belongs to a projection without a consumer.
    let age = "update dead_letters set dead_lettered_at = dead_lettered_at - interval '61 minutes';
        update dead_letters set projection = 'abandoned' where key = 'older'";
    setup.sql.batch_execute(age).await?;
    let expired = count_erased(&setup, "key is null and erased_at is not null");
    let both_erased = async || {
        // A new dead letter triggers the erasure.
        write_poison(&setup, "new").await?;
        Ok((setup.sql.count(&expired).await? == 2).then_some(()))
    };
    eventually("two erased dead letters", both_erased).await?;
    running.stop().await;
    let lost = "select count(*) from dead_letters where key = 'new' and payload is null";
    assert_eq!(setup.sql.count(lost).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_erased_while_the_databases_clock_is_ahead() -> Result<()> {
    let setup = Setup::new("clock").await?;
    let running = setup.start();
    write_poison(&setup, "young").await?;
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    setup.sql.move_clock_ahead("2 hours").await?;
    let sessions = setup.new_pool();
    // A consumer erases expired contents at startup.
    let running = setup.start_on(sessions);
    setup.sql.wait_for_clock_reading().await?;
    // Waits for an erasure that has read the clock.
    let wait = "begin; lock table dead_letters; commit";
    setup.sql.batch_execute(wait).await?;
    let kept = "select count(*) from dead_letters where key = 'young' and payload = 'personal'";
    assert_eq!(setup.sql.count(kept).await?, 1);
    running.stop().await;
    Ok(())
}
