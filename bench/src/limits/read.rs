use std::{pin::pin, time::Instant};

use anyhow::Result;
use clap::Args;
use devstack::Sql;
use futures_util::TryStreamExt as _;

use super::Limit;

#[derive(Args, Debug)]
pub(crate) struct ReadOptions {
    #[arg(long, env)]
    database_url: String,
    /// Rows per page; the default is the relay's
    #[arg(long, default_value_t = 20_000)]
    page_rows: i64,
}

/// The columns that the relay reads.
const COLUMNS: &str = "seq, event_id, topic, key, event_type, aggregate_version, payload, headers,
     traceparent, created_at";
/// A binary COPY ends with a message of two bytes.
const TRAILER_BYTES: usize = 2;

/// Reads the outbox by seq in pages with binary COPY. (The relay reads with a prepared statement.)
pub(crate) async fn read(options: &ReadOptions) -> Result<()> {
    let sql = Sql::connect(&options.database_url).await?;
    // Forces the index, whatever the planner estimates.
    sql.batch_execute("set enable_seqscan = off; set enable_bitmapscan = off; set jit = off")
        .await?;
    let last = sql.count("select max(seq) from outbox").await?;
    let mut done = sql.count("select min(seq) - 1 from outbox").await?;
    let (started_at, mut rows) = (Instant::now(), 0);
    while done < last {
        let page_end = done + options.page_rows;
        let copy = format!(
            "copy (select {COLUMNS} from outbox where seq > {done} and seq <= {page_end}
                   order by seq) to stdout (format binary)"
        );
        let mut messages = pin!(sql.copy_out(&copy).await?);
        while let Some(message) = messages.try_next().await? {
            rows += u64::from(message.len() > TRAILER_BYTES);
        }
        done = page_end;
    }
    Limit::print(rows, started_at.elapsed().as_secs_f64())
}
