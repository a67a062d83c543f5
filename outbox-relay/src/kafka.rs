//! Kafka producers, and the acknowledgements they receive.
//!
//! - [`Sink`] is the producer interface. [`KafkaSink`] in `native` speaks Kafka's protocol itself, [`RdKafkaSink`] uses
//!   librdkafka.
//! - `record` is the input of a sink.
//! - [`Acknowledgements`] tracks which records are acknowledged, and `latency` measures how long that takes.
//!
//! From `postgres` it uses only the lease, without which nothing is sent, and the cursor.

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
    sink::{RejectionCause, Sink, SinkError, SinkOptions},
};
pub(crate) use self::{
    acknowledgements::Throttling,
    histogram::{BOUNDS_US, Counts, Histogram, quantile_s},
    latency::{Latency, Sampling},
    native::{Inspector, Permission, TopicFacts},
    rdkafka::MAX_BATCH_BYTES,
    sink::MAINTENANCE_INTERVAL,
};
