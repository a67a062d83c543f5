//! The relay's promises, on a real Postgres and a real Kafka.

mod harness;
mod reading;
mod schedule;
mod shipping;
