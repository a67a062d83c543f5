//! Tests of order-service through its API, with a real Postgres and a real Kafka.

mod backlog;
mod cancel;
mod configuration;
mod create;
mod deleted_users;
mod errors;
mod harness;
mod health;
mod poison;
mod reads;
mod rebuilding;
mod repeats;
mod replay;
mod replicas;
mod schema;
mod tokens;
mod tombstones;
mod users;
mod watch;
