use std::time::Duration;

use uuid::Uuid;

use super::{
    Rejection, Violations,
    reasons::{
        DATABASE_UNAVAILABLE, DEADLINE_EXCEEDED, ETAG_MISMATCH, OVERLOADED, PAGE_TOKEN_INVALID,
        REQUEST_ID_REUSED, REQUEST_IN_FLIGHT,
    },
};
use crate::database::{DatabaseError, PoolError};

/// Longer than most writes take.
const IN_FLIGHT_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Long enough for a full queue to drain. Jitter of up to the same delay keeps callers from
/// returning all at once.
const OVERLOADED_RETRY_DELAY: Duration = Duration::from_millis(200);
/// About the time of a database restart.
const DATABASE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The errors that calls of every service share. A service adds its own.
#[derive(Debug)]
pub enum CallError {
    /// Invalid request fields, all of them.
    Invalid(Violations),
    /// The page token is not ours, or belongs to another list.
    InvalidPageToken,
    /// The request id was used with a different body.
    RequestIdReused,
    /// A request with the same id is in progress.
    RequestInFlight,
    /// The resource has changed since the caller read it.
    EtagMismatch,
    /// The limit on concurrent calls is reached.
    Overloaded,
    /// The deadline of the caller or the server has passed.
    DeadlineExceeded,
    /// A database failure.
    Database(DatabaseError),
    /// A bug in the service.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

impl CallError {
    /// Wraps a bug. The caller receives an id, under which the error is logged.
    pub fn internal(err: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(err.into())
    }
}

impl From<CallError> for Rejection {
    fn from(err: CallError) -> Self {
        match err {
            CallError::Invalid(violations) => Self::from_violations(violations),
            CallError::InvalidPageToken => Self::new(
                PAGE_TOKEN_INVALID,
                "invalid page_token: must come from a response for the same list; start over without a token",
            ),
            CallError::RequestIdReused => Self::new(
                REQUEST_ID_REUSED,
                "request_id was already used with a different body; send a new request_id for a different request",
            ),
            CallError::RequestInFlight => Self::new(
                REQUEST_IN_FLIGHT,
                "a request with this request_id is in progress; retry to get its response",
            )
            .with_retry_after(IN_FLIGHT_RETRY_DELAY),
            CallError::EtagMismatch => Self::new(
                ETAG_MISMATCH,
                "etag does not match the current version; read the resource again",
            ),
            CallError::Overloaded => Self::new(
                OVERLOADED,
                "too many concurrent calls; nothing was changed, retry after the given delay",
            )
            .with_retry_after(with_jitter(OVERLOADED_RETRY_DELAY)),
            CallError::DeadlineExceeded => Self::new(
                DEADLINE_EXCEEDED,
                "deadline exceeded; a write may have taken effect, retry it with the same request_id",
            ),
            CallError::Database(DatabaseError::Unavailable(err)) => {
                tracing::warn!(error = %err, "database unavailable");
                Self::new(
                    DATABASE_UNAVAILABLE,
                    "the service can't reach its database; retry",
                )
                .with_retry_after(DATABASE_RETRY_DELAY)
            }
            CallError::Database(err @ DatabaseError::Failed(_)) => Self::internal(&err),
            CallError::Internal(err) => Self::internal(&*err),
        }
    }
}

impl From<diesel::result::Error> for CallError {
    fn from(err: diesel::result::Error) -> Self {
        Self::Database(err.into())
    }
}

impl From<PoolError> for CallError {
    fn from(err: PoolError) -> Self {
        Self::Database(err.into())
    }
}

/// Returns a random duration from `delay` to twice `delay`.
fn with_jitter(delay: Duration) -> Duration {
    // The low bits of a v4 UUID are random.
    let (_, low) = Uuid::new_v4().as_u64_pair();
    let share = (low % 1_000) as u32;
    delay + delay * share / 1_000
}
