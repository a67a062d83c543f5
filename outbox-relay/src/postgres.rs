//! What the relay asks of Postgres: all SQL about the outbox and the checkpoint, and the sessions in which it is asked.
//!
//! - `session` opens sessions; every call of one has a limit.
//! - `leader` elects one relay a source, by a lock, and [`Lease`] keeps a leader of the past from sending; `checkpoint` is
//!   what a leader takes over and leaves behind.
//! - `window` says what is due, as arithmetic on snapshots; `reader` fetches it, a page at a time.
//! - `backlog` measures what is not published yet, `rotation` truncates partitions that are.
//!
//! What becomes of rows is decided elsewhere. The SQL of parked keys and dead letters is in `dead_letters`.

pub(crate) mod backlog;
pub(crate) mod checkpoint;
pub(crate) mod leader;
pub(crate) mod lease;
pub(crate) mod reader;
pub(crate) mod rotation;
pub(crate) mod session;
pub(crate) mod window;

pub use self::{
    checkpoint::ResetTo,
    lease::Lease,
    reader::{FutureRow, Page, ReadError, Reader, Row},
    window::{Cursor, MalformedSnapshot, Position, Snapshot, Window},
};
