//! Events that Kafka rejects: those that are parked with their keys, and dead letters.
//!
//! `aside` keeps them for the leader, `parked` is what operators see of them and do about them.

pub(crate) mod aside;
mod parked;

pub use self::parked::{Dropped, Parked, ParkedKey};
