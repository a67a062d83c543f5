//! Events that Kafka rejects: those that are parked with their keys, and dead letters.
//!
//! `aside` keeps them for the leader, `parked` is what operators see of them and do about them, `storage` has the SQL.

mod parked;
pub(crate) mod rejections;
pub(crate) mod storage;

pub use self::{
    parked::Parked,
    storage::{Dropped, ParkedKey},
};
