//! TLS and authentication, to Kafka and to Postgres.

pub(crate) mod broker;
pub(crate) mod certificates;
mod kafka;
mod kept_out;
mod lasting;
mod postgres;
mod role;
mod secrets;
