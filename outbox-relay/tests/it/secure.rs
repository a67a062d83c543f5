//! TLS and authentication, to Kafka and to Postgres.

pub(crate) mod broker;
mod denied;
mod kafka;
mod postgres;
pub(crate) mod role;
mod rotation;
mod secrets;
