//! The way to Kafka: what takes records, and what tells which of them are acknowledged.
//!
//! - [`Sink`] is what takes records: [`KafkaSink`] in `native` makes record batches of its own, [`RdKafkaSink`] leaves that
//!   to librdkafka.
//! - `record` is what a sink is given.
//! - [`Acknowledgements`] counts what is sent and acknowledged, and `latency` how long that takes.
//!
//! Nothing here knows Postgres but for the lease, without which nothing may be sent.

mod acknowledgements;
mod histogram;
mod latency;
pub(crate) mod native;
mod rdkafka;
pub(crate) mod record;
mod sink;
mod varint;

pub use self::{
    acknowledgements::Acknowledgements,
    native::KafkaSink,
    rdkafka::RdKafkaSink,
    record::{Headers, Record},
    sink::{Sink, SinkError, SinkOptions},
};
pub(crate) use self::{
    histogram::{BOUNDS_US, Counts, Histogram, quantile_s},
    latency::{Latency, Sampling},
    native::{Inspector, Permission, TopicFacts},
    rdkafka::MAX_BATCH_BYTES,
    sink::MAINTENANCE_INTERVAL,
};
