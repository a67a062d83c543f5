//! A real Postgres and a real Kafka on this machine, without containers: throw-away servers for
//! the tests, and the whole system for `make up` and `make demo`.
//!
//! Everything runs as a plain user, on free ports of the loopback, in a [`Home`] of its own, and is
//! gone afterwards, also when the process that started it was killed.

mod audit;
mod home;
mod kafka;
mod maven;
mod ports;
mod postgres;
mod processes;
mod progress;
mod records;
mod servers;
mod sql;
mod stack;
mod waiting;

pub use audit::{Audit, Auditor};
pub use home::Home;
pub use kafka::{Kafka, KafkaCluster};
pub use maven::fetch_jars;
pub use ports::free_port;
pub use postgres::{Postgres, postgres_program};
pub use processes::{Process, Program};
pub use progress::step;
pub use records::{NewRecord, Record, read_topic};
pub use servers::{Addresses, Servers};
pub use sql::{Sql, statements};
pub use stack::{Names, Stack, built_programs};
pub use waiting::{PATIENCE, eventually};
