//! Poison records are dead-lettered, and the other records are applied.

use anyhow::Result;
use devstack::Addresses;

use crate::{
    harness::{DEAD, Setup, TOTAL},
    raw_record::write_raw_record,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_record_is_dead_lettered_and_the_others_are_applied() -> Result<()> {
    let setup = Setup::new("poison").await?;
    let servers = Addresses::shared();
    let running = setup.start();
    servers
        .write_record(
            &setup.name,
            Some(b"a"),
            Some(b"\xff\x00"),
            &[("other", "x")],
        )
        .await?;
    // A compacted topic requires a key, which may be any bytes.
    servers
        .write_record(
            &setup.name,
            Some(b"\xff"),
            Some(b"{}"),
            &[("ce_type", "count")],
        )
        .await?;
    servers
        .write_record(&setup.name, Some(b"a"), None, &[("ce_type", "unknown")])
        .await?;
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    setup.sql.wait_for(DEAD, 2).await?;
    running.stop().await;
    let untouched = "select count(*) from dead_letters
        where (key = 'a' and payload = '\\xff00' and header_names = '{other}'
               and header_values = array['x'::bytea] and error_class = 'header')
           or (key = '\\xff' and error_class = 'key')";
    setup.sql.wait_for(untouched, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_violates_a_constraint_is_dead_lettered_alone() -> Result<()> {
    let setup = Setup::new("constraint").await?;
    for key in ["a", "far too long", "b", "much too long", "c"] {
        setup.count(key).await?;
    }
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 3).await?;
    setup.sql.wait_for(DEAD, 2).await?;
    running.stop().await;
    setup
        .sql
        .wait_for(
            "select count(*) from dead_letters where error = 'counts_key_short'",
            2,
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_an_invalid_header_name_is_dead_lettered() -> Result<()> {
    let setup = Setup::new("header").await?;
    let running = setup.start();
    let header = (&b"ce_type\xff"[..], Some(&b"count"[..]));
    write_raw_record(&setup.name, b"a", Some(b"{}"), header).await?;
    setup.sql.wait_for(DEAD, 1).await?;
    for key in ["a", "b", "c"] {
        setup.count(key).await?;
    }
    setup.sql.wait_for(TOTAL, 3).await?;
    running.stop().await;
    let untouched = "select count(*) from dead_letters
        where key = 'a' and payload = '{}' and header_names = '{}' and error_class = 'header'
          and error like '%not valid UTF-8%'";
    setup.sql.wait_for(untouched, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_a_value_too_long_for_its_column_is_dead_lettered_alone() -> Result<()> {
    let setup = Setup::new("value").await?;
    for key in ["a", "longer than the column", "b"] {
        setup.count(key).await?;
    }
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 2).await?;
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    let without_value = "select count(*) from dead_letters
        where error_class = 'value' and error = 'text too long (SQLSTATE 22001)'";
    setup.sql.wait_for(without_value, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_header_with_a_null_value_counts_as_missing() -> Result<()> {
    let setup = Setup::new("null_header").await?;
    let running = setup.start();
    write_raw_record(&setup.name, b"a", Some(b"{}"), (b"ce_type", None)).await?;
    setup.sql.wait_for(DEAD, 1).await?;
    let unchanged = "select count(*) from dead_letters
        where key = 'a' and payload = '{}' and header_names = '{ce_type}'
          and header_values = '{null}' and error = 'missing header ce_type'";
    setup.sql.wait_for(unchanged, 1).await?;
    running.stop().await;
    Ok(())
}
