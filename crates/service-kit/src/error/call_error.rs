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

/// A repeat is likely through by then.
const IN_FLIGHT_RETRY_DELAY: Duration = Duration::from_millis(500);
/// A queue that was full is mostly empty by then. Callers are spread over this and as much again, or
/// they would all be back at once.
const OVERLOADED_RETRY_DELAY: Duration = Duration::from_millis(200);
/// After so long a database that was restarted is mostly back.
const DATABASE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a call of any service can be rejected for. A service adds reasons of its own.
#[derive(Debug)]
pub enum CallError {
    /// Fields of the request, all that are wrong.
    Invalid(Violations),
    /// The page token is none of ours, or of another list.
    BadPageToken,
    /// The request id was used with another body.
    RequestIdReused,
    /// The same request is being worked on.
    RequestInFlight,
    /// The thing has changed since the caller saw it.
    EtagMismatch,
    /// As many calls as there is room for are under way.
    Overloaded,
    /// The caller's deadline has passed, or ours.
    DeadlineExceeded,
    /// The database.
    Database(DatabaseError),
    /// A fault of our own.
    Bug(Box<dyn std::error::Error + Send + Sync>),
}

impl CallError {
    /// A fault of our own; the caller sees a number to quote, the log has the rest.
    pub fn bug(err: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Bug(err.into())
    }
}

impl From<CallError> for Rejection {
    fn from(err: CallError) -> Self {
        match err {
            CallError::Invalid(violations) => Self::invalid(violations),
            CallError::BadPageToken => Self::new(
                PAGE_TOKEN_INVALID,
                "page_token is not of this list; begin again without one",
            ),
            CallError::RequestIdReused => Self::new(
                REQUEST_ID_REUSED,
                "this request_id was used with another body, and is answered for that one only; with a new \
                 one this would be another request",
            ),
            CallError::RequestInFlight => Self::new(
                REQUEST_IN_FLIGHT,
                "the same request is being worked on; repeat it for its answer",
            )
            .retry_after(IN_FLIGHT_RETRY_DELAY),
            CallError::EtagMismatch => Self::new(
                ETAG_MISMATCH,
                "it has changed since it was read with this etag; read it again",
            ),
            CallError::Overloaded => Self::new(
                OVERLOADED,
                "too many calls are under way; nothing was done, repeat this one after a while",
            )
            .retry_after(spread(OVERLOADED_RETRY_DELAY)),
            CallError::DeadlineExceeded => Self::new(
                DEADLINE_EXCEEDED,
                "the deadline passed; whether a write took effect is unknown, repeat one with its \
                 request_id",
            ),
            CallError::Database(DatabaseError::Unavailable(err)) => {
                tracing::warn!(error = %err, "database unavailable");
                Self::new(
                    DATABASE_UNAVAILABLE,
                    "the service can't reach its database; try again",
                )
                .retry_after(DATABASE_RETRY_DELAY)
            }
            CallError::Database(err @ DatabaseError::Failed(_)) => Self::bug(&err),
            CallError::Bug(err) => Self::bug(&*err),
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

/// From `delay` to twice that, at random.
fn spread(delay: Duration) -> Duration {
    // Most bits of such an id are random, which is random enough here.
    let (_, low) = Uuid::new_v4().as_u64_pair();
    let share = (low % 1_000) as u32;
    delay + delay * share / 1_000
}
