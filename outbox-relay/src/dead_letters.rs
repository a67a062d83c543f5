//! Events that Kafka rejects: parked keys and dead letters.
//!
//! `rejections` is the leader's state, `parked` the operator's commands, `storage` the SQL of both.

mod parked;
pub(crate) mod rejections;
pub(crate) mod storage;

pub use self::{
    parked::ParkedKeys,
    storage::{DropOutcome, ParkedKey},
};
