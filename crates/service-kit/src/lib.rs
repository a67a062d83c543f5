//! The shared base of gRPC services over Postgres: command line, server limits, health, error details,
//! idempotent requests, paging.

mod application;
mod call_body;
mod connections;
mod cors;
pub mod database;
mod deadline;
mod error;
mod etag;
mod health;

pub mod idempotency;
mod metadata;
mod paging;
mod schema;
mod server;
mod token_key;

pub use application::{Application, run};
pub use deadline::{Deadline, requested_deadline};
pub use error::{CallError, Reason, Rejection, TABLE, Violations};
pub use etag::{check_etag, format_etag};
pub use health::{Checks, PROJECTION};
pub use metadata::{CONSISTENCY_TOKEN, consistency_token, with_token_metadata};
pub use paging::{PageSize, Paging};
pub use server::{HealthcheckOptions, Server, ServerOptions, Service};
pub use token_key::TokenKey;
