//! Operations: the `status` of each source, served by `admin` over HTTP and rendered by `table`; `check`, which validates a
//! configuration before anything is published; `monitor`, which measures the backlog.

pub(crate) mod admin;
pub(crate) mod check;
pub(crate) mod monitor;
pub(crate) mod status;
mod table;

pub use self::{
    check::{Finding, Level, check},
    table::status_table,
};
