//! The promises of a projection, on a real Postgres and a real Kafka.

mod dead_letters;
mod following;
mod harness;
mod poison;
mod raw_record;
mod rebuilding;
mod stops;
