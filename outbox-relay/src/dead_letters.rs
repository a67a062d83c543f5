//! Events that Kafka rejects: parked keys and dead letters.
//!
//! - `rejections` is the leader's state, and `storage` its SQL.
//! - `parked` and `dead_lettered` are the operator's commands, and `event` what they show.

mod dead_lettered;
mod event;
mod parked;
pub(crate) mod rejections;
pub(crate) mod storage;

pub use self::{
    dead_lettered::{DeadLetter, DeadLetters, Retried, Selection},
    event::StoredEvent,
    parked::{DropOutcome, ParkedKey, ParkedKeys},
};
