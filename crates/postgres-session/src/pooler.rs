//! Detects a connection pooler that gives each transaction to another server process.
//!
//! Settings, advisory locks and prepared statements belong to a server process. With a pooler in transaction mode they are
//! lost, or reach another client.

use crate::{
    connect::{Opened, open},
    error::ConnectError,
    options::SessionOptions,
    url::DatabaseUrl,
};

/// Other clients of the pooler may use a process in between.
const ROUNDS: usize = 10;
const PROCESS: &str = "select pg_backend_pid()";

/// Returns whether this session and another one use the same server process in turn, or one of them several ones.
pub(crate) async fn shares_processes(
    first: &mut Opened,
    url: &DatabaseUrl,
    options: &SessionOptions,
) -> Result<bool, ConnectError> {
    let mut second = open(url, options).await?;
    let mut last = None;
    for _ in 0..ROUNDS {
        let pair = (
            first.query_i32(PROCESS).await?,
            second.query_i32(PROCESS).await?,
        );
        if pair.0 == pair.1 || last.is_some_and(|last| last != pair) {
            return Ok(true);
        }
        last = Some(pair);
    }
    Ok(false)
}
