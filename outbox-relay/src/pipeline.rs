//! One source's life: election, reading, routing, publishing, and the checkpoint behind the acknowledgements.
//!
//! `source` leads, recovers (by the table in `recovery`) and pauses; `publishing` reads and sends while it leads; `route` makes a record of a row.
//! `rejections` is what becomes of a record that Kafka rejects.
//!
//! SQL belongs to `postgres` and `dead_letters`, protocols to `kafka`.

mod checkpointer;
mod error;
mod outcome;
mod page_rows;
mod publisher;
mod recovery;
mod rejections;
mod route;
mod source;
mod truncation;

pub use self::route::{BadRow, Router};
pub(crate) use self::source::run;
