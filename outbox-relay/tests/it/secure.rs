//! TLS and authentication, to Kafka and to Postgres.

mod authorization_server;
pub(crate) mod broker;
mod denied;
mod kafka;
mod postgres;
pub(crate) mod role;
mod rotation;
mod secrets;
mod tokens;
