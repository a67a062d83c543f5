//! Records that can't be applied go aside, and the others go on.

use anyhow::Result;
use devstack::Addresses;

use crate::{
    harness::{DEAD, Setup, TOTAL},
    raw_record::write_raw_record,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_can_not_be_read_goes_aside_and_the_others_go_on() -> Result<()> {
    let setup = Setup::new("poison").await?;
    let servers = Addresses::shared();
    let running = setup.follow();
    servers
        .write_record(
            &setup.name,
            Some(b"a"),
            Some(b"\xff\x00"),
            &[("other", "x")],
        )
        .await?;
    // A compacted topic takes no record without a key, but any bytes for one.
    servers
        .write_record(
            &setup.name,
            Some(b"\xff"),
            Some(b"{}"),
            &[("ce_type", "count")],
        )
        .await?;
    servers
        .write_record(&setup.name, Some(b"a"), None, &[("ce_type", "unheard of")])
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
async fn a_record_that_a_constraint_rejects_goes_aside_alone() -> Result<()> {
    let setup = Setup::new("constraint").await?;
    for key in ["a", "far too long", "b", "much too long", "c"] {
        setup.count(key).await?;
    }
    let running = setup.follow();
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
async fn a_record_with_a_header_that_can_not_be_read_goes_aside() -> Result<()> {
    let setup = Setup::new("header").await?;
    let running = setup.follow();
    write_raw_record(&setup.name, b"a", b"{}", (b"ce_type\xff", b"count")).await?;
    setup.sql.wait_for(DEAD, 1).await?;
    for key in ["a", "b", "c"] {
        setup.count(key).await?;
    }
    setup.sql.wait_for(TOTAL, 3).await?;
    running.stop().await;
    let untouched = "select count(*) from dead_letters
        where key = 'a' and payload = '{}' and header_names = '{}' and error_class = 'header'
          and error like '%not in UTF-8%'";
    setup.sql.wait_for(untouched, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_a_value_that_the_database_can_not_hold_goes_aside_alone() -> Result<()> {
    let setup = Setup::new("value").await?;
    for key in ["a", "longer than the column", "b"] {
        setup.count(key).await?;
    }
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 2).await?;
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    let untold = "select count(*) from dead_letters
        where error_class = 'value' and error = 'value too long for type'";
    setup.sql.wait_for(untold, 1).await
}
