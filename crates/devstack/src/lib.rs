//! Real Postgres and Kafka servers on this machine, without containers: temporary servers for tests, and the whole system
//! for `make up` and `make demo`.
//!
//! Servers run as an unprivileged user, on free loopback ports, in a [`WorkDir`]. They are removed when the process that
//! started them ends, even if it is killed.
#![allow(missing_docs, reason = "used only in this workspace")]

mod audit;
mod certificates;
mod kafka;
mod maven;
mod pgbouncer;
mod ports;
mod postgres;
mod processes;
mod progress;
mod proxy;
mod records;
mod servers;
mod sql;
mod stack;
mod url;
mod waiting;
mod work_dir;

pub use audit::{Audit, Auditor};
pub use certificates::{Authority, Issued};
pub use kafka::{Kafka, KafkaCluster};
pub use maven::fetch_jars;
pub use pgbouncer::{PgBouncer, PoolMode};
pub use ports::free_port;
pub use postgres::{BaseBackup, Confirmation, Postgres, SuspendedReplication, postgres_program};
pub use processes::{Process, Program};
pub use progress::step;
pub use proxy::{Fault, Proxy};
pub use records::{NewRecord, Record, read_topic};
pub use servers::{Addresses, Servers};
pub use sql::{Sql, split_statements};
pub use stack::{Names, Stack, built_programs};
pub use waiting::{WAIT_TIMEOUT, eventually};
pub use work_dir::WorkDir;
