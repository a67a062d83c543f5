//! The promises of order-service, through the wire, on a real Postgres and a real Kafka.

mod configuration;
mod create;
mod harness;
mod health;
mod reads;
mod repeats;
mod schema;
mod tokens;
mod users;
