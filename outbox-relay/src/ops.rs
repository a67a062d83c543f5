//! What operators see: `status` of each source, over HTTP by `admin` and as a `table`, and `check`, which looks at all that a
//! configuration names before anything is published. `monitor` measures what waits in the databases.

pub(crate) mod admin;
pub(crate) mod check;
pub(crate) mod monitor;
pub(crate) mod status;
mod table;

pub use self::{
    check::{Finding, Level, check},
    table::status_table,
};
