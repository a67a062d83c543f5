//! One source's life: election, reading, routing, publishing, and the checkpoint behind the acknowledgements.
//!
//! `source` leads, recovers (by the table in `recovery`) and pauses; `shipping` reads and sends while it leads; `route` makes a record of a row.
//! `refusals` is what becomes of a record that Kafka rejects.
//!
//! SQL belongs to `postgres` and `dead_letters`, protocols to `kafka`.

mod error;
mod keeping;
mod outcome;
mod page_rows;
mod recovery;
mod refusals;
mod route;
mod shipping;
mod source;
mod truncation;

pub use self::route::{BadRow, Router};
pub(crate) use self::source::run;
