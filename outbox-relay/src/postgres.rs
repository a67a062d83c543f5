//! Postgres sessions, and all SQL for the outbox and the checkpoint.
//!
//! - `session` opens sessions. Each call has a timeout. `statements` prepares each statement once.
//! - `leader` elects one relay per source with an advisory lock. [`Lease`] keeps a former leader from sending.
//!   `checkpoint` stores how far the source is published.
//! - `reader` selects the pending rows, page by page. `window` is its cursor: arithmetic on each `snapshot`.
//! - `backlog` measures the pending rows. `truncation` truncates published partitions.
//! - `verification` verifies that these sessions are connected to the leader's database.
//!
//! The SQL for parked keys and dead letters is in `dead_letters`.

pub(crate) mod backlog;
pub(crate) mod checkpoint;
pub(crate) mod leader;
pub(crate) mod lease;
pub(crate) mod reader;
pub(crate) mod session;
pub(crate) mod snapshot;
mod statements;
pub(crate) mod truncation;
pub(crate) mod verification;
pub(crate) mod window;

pub use self::{
    checkpoint::ResetTo,
    lease::Lease,
    reader::{Page, ReadError, Reader, Row},
    snapshot::{MalformedSnapshot, Snapshot},
    window::{Cursor, Position, Window},
};
