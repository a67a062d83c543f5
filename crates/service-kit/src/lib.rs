//! What a gRPC service over Postgres needs and no service wants to write: limits on the server,
//! health that tells the truth, errors with details, requests that can be repeated, pages.

mod application;
mod browsers;
mod call_error;
pub mod database;
mod deadline;
mod etag;
mod health;
pub mod idempotency;
mod incoming;
mod metadata;
mod paging;
mod reason;
mod reasons;
mod refusal;
mod schema;
mod server;
mod token_key;
mod violations;

pub use application::{Application, run};
pub use call_error::CallError;
pub use deadline::{Deadline, asked_deadline};
pub use etag::{check_etag, etag};
pub use health::{Checks, PROJECTION};
pub use metadata::{CONSISTENCY_TOKEN, token_in_metadata, traceparent, with_token};
pub use paging::Paging;
pub use reason::Reason;
pub use reasons::TABLE;
pub use refusal::Refusal;
pub use server::{HealthcheckOptions, Server, ServerOptions, Service};
pub use token_key::TokenKey;
pub use violations::Violations;

/// Runs `write` to its end even when the caller goes away in the middle of it.
///
/// tonic drops a handler when its client cancels, and a transaction that is dropped between two of
/// its statements costs a connection. With this the client's leaving changes nothing: the write
/// commits or fails as if it had stayed.
///
/// # Panics
/// If `write` does.
pub async fn to_completion<T: Send + 'static>(
    write: impl Future<Output = T> + Send + 'static,
) -> T {
    match tokio::spawn(write).await {
        Ok(result) => result,
        Err(err) => match err.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
