//! What a gRPC service over Postgres needs and no service wants to write: limits on the server,
//! health that tells the truth, errors with details, requests that can be repeated, pages.

mod application;
mod browsers;
pub mod database;
mod deadline;
mod error;
mod etag;
mod health;
pub mod idempotency;
mod incoming;
mod metadata;
mod paging;
mod schema;
mod server;
mod token_key;

pub use application::{Application, run};
pub use deadline::{Deadline, asked_deadline};
pub use error::{CallError, Reason, Rejection, TABLE, Violations};
pub use etag::{check_etag, etag};
pub use health::{Checks, PROJECTION};
pub use metadata::{CONSISTENCY_TOKEN, token_in_metadata, with_token};
pub use paging::Paging;
pub use server::{HealthcheckOptions, Server, ServerOptions, Service};
pub use token_key::TokenKey;
