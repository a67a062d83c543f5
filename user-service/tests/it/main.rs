//! Tests of user-service through its API, with a real Postgres and a real Kafka.

mod batch;
mod browsers;
mod configuration;
mod connections;
mod create;
mod delete;
mod environment;
mod errors;
mod harness;
mod health;
mod overload;
mod poison;
mod reads;
mod repeats;
mod replay;
mod schema;
mod shutdown;
mod silent_clients;
mod summaries;
mod tokens;
mod unhappy_calls;
mod update;
mod wire;
