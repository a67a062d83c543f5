//! The whole system, with clients for it: what the demo and the tests from the outside share.

mod load;
mod system;

pub use load::{Load, Placed};
pub use system::{System, money};
