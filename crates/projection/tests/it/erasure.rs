//! What dead letters hold does not stay for ever; that there were some does.

use anyhow::{Context as _, Result};
use devstack::{Addresses, eventually};
use projection::{Redriven, dead_letters, redrive};

use crate::harness::{Counts, DEAD, Setup};

const NOTHING_HELD: &str = "payload is null and header_names = '{}' and header_values = '{}'
    and error_class = 'header' and error = 'there is no ce_type' and topic = 'TOPIC'";

/// Counts dead letters that hold nothing and still say where they are from and what was wrong.
fn erased(setup: &Setup, key: &str) -> String {
    let nothing_held = NOTHING_HELD.replace("TOPIC", &setup.name);
    format!("select count(*) from dead_letters where {key} and {nothing_held}")
}

/// A record that is set aside.
async fn break_one(setup: &Setup, key: &str) -> Result<()> {
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
async fn what_a_key_names_is_erased_and_the_rows_stay() -> Result<()> {
    let setup = Setup::new("erased").await?;
    for key in ["gone", "here", "gone"] {
        break_one(&setup, key).await?;
    }
    let running = setup.follow();
    setup.sql.wait_for(DEAD, 3).await?;
    running.stop().await;
    let mut conn = setup.connection().await?;
    dead_letters::erase(&mut conn, &["gone".to_owned(), "other".to_owned()]).await?;
    let gone = erased(&setup, "key = 'gone' and erased_at is not null");
    assert_eq!(setup.sql.count(&gone).await?, 2);
    let here = "select count(*) from dead_letters
        where key = 'here' and payload = 'personal' and header_names = '{from}'
          and erased_at is null";
    assert_eq!(setup.sql.count(here).await?, 1);

    // There is nothing left to apply, and that is no fault of the record.
    let dead_letters = dead_letters::list(&mut conn, &setup.name, 0, 10).await?;
    let dead_letter = dead_letters.into_iter().find(|l| l.erased_at.is_some());
    let id = dead_letter.context("an erased one")?.dead_letter_id;
    let redriven = redrive(&mut conn, &Counts, &setup.name, id).await?;
    assert_eq!(redriven, Redriven::Erased);
    assert_eq!(setup.sql.count(&gone).await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_for_long_enough_is_erased_with_its_key() -> Result<()> {
    let setup = Setup::new("expired").await?;
    let running = setup.follow();
    for key in ["old", "older"] {
        break_one(&setup, key).await?;
    }
    setup.sql.wait_for(DEAD, 2).await?;
    // Of a projection that nobody follows any more, too.
    let age = "update dead_letters set dead_lettered_at = dead_lettered_at - interval '61 minutes';
        update dead_letters set projection = 'given up' where key = 'older'";
    setup.sql.batch_execute(age).await?;
    let expired = erased(&setup, "key is null and erased_at is not null");
    let look = async || {
        // It looks whenever there is a new one.
        break_one(&setup, "new").await?;
        Ok((setup.sql.count(&expired).await? == 2).then_some(()))
    };
    eventually("two that are erased", look).await?;
    running.stop().await;
    let lost = "select count(*) from dead_letters where key = 'new' and payload is null";
    assert_eq!(setup.sql.count(lost).await?, 0);
    Ok(())
}
