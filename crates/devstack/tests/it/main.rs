//! Tests of the tools with which other tests inject faults.

mod database_settings;
mod pgbouncer;
mod proxy;
mod replication;
