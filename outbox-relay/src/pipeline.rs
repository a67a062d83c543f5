//! The pipeline of one source: election, reading, publishing, and the checkpoint.
//!
//! - `source` runs the source: it waits for leadership, publishes, and restarts from the checkpoint after an error.
//! - `publisher` reads pages and sends records while the relay leads. `page_rows` sizes the pages,
//!   `poll_schedule` times the polls.
//! - `record_builder` builds a record from a row.
//! - `rejections` applies the policy for records that Kafka rejects.
//! - `checkpointer` stores the checkpoint, `truncation` truncates published partitions.
//! - `error` and `outcome` are how publishing ends, `recovery` is the table from error to recovery, `failures` reports errors, and
//!   `backoff` is the pause before the next attempt.
//!
//! SQL belongs to `postgres` and `dead_letters`, protocols to `kafka`.

mod address_monitor;
mod backoff;
mod checkpointer;
mod circuit_breaker;
mod error;
mod failures;
mod outcome;
mod page_rows;
mod poll_schedule;
mod publisher;
mod record_builder;
mod recovery;
mod rejections;
mod source;
mod truncation;

pub use self::record_builder::{BadRow, RecordBuilder};
pub(crate) use self::source::run;
