//! The client, on real Kafka brokers.

mod denied;
mod elections;
mod harness;
mod restarts;
mod token_endpoint;
mod topics;
