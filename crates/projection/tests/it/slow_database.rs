//! A database that is too slow for a whole batch.

use std::time::Duration;

use anyhow::Result;

use crate::harness::{Setup, TOTAL};

/// Each row takes 0.1 s, and a statement at most 0.45 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_exceeds_the_statement_timeout_is_applied_in_parts() -> Result<()> {
    let setup = Setup::with_partitions("slow", 1).await?;
    let slow = "
        create function sleep() returns trigger language plpgsql as $$ begin
            perform pg_sleep(0.1);
            return null;
        end $$;
        create trigger sleep after insert or update on counts for each row execute function sleep()";
    setup.sql.batch_execute(slow).await?;
    for number in 0..10 {
        setup.count(&format!("k{number}")).await?;
    }
    let running = setup.start_on(setup.pool_with_statement_timeout(Duration::from_millis(450)));
    setup.sql.wait_for(TOTAL, 10).await?;
    running.stop().await;
    Ok(())
}
