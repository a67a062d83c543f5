//! Errors of calls, and their mapping to gRPC statuses.

use std::time::Duration;

use service_kit::{CallError, Rejection, database::PoolError};
use tonic::Status;
use uuid::Uuid;

use crate::NAME;

service_kit::reasons! {
    ORDER_NOT_FOUND: NotFound, "no order has this id",
        "ResourceInfo", "check the id";
    USER_UNKNOWN: FailedPrecondition, "CreateOrder: no event of this user has arrived yet, or the user does not exist",
        "PreconditionFailure, RetryInfo", "pass the consistency token from CreateUser, or retry after the given delay";
    USER_DELETED: FailedPrecondition, "CreateOrder: the user was deleted",
        "PreconditionFailure", "do not retry; deletion is final";
    ORDER_CANCELLED: FailedPrecondition, "CancelOrder: the order is already cancelled",
        "PreconditionFailure", "none; the order is cancelled";
    PROJECTION_LAGGING: Unavailable, "CreateOrder: the user version of the consistency token did not arrive in time",
        "RetryInfo, `grpc-retry-pushback-ms`", "retry after the given delay with the same `request_id`";
    USER_SERVICE_UNAVAILABLE: Unavailable, "CreateOrder: validation mode `remote` requires user-service, which does not respond",
        "RetryInfo, `grpc-retry-pushback-ms`", "retry after the given delay with the same `request_id`";
    RESUME_TOKEN_INVALID: InvalidArgument, "WatchOrders: `resume_token` was altered, belongs to another user, or predates a database restore",
        "", "start over without a token";
    WATCH_ENDED: Unavailable, "WatchOrders: the server shuts down, or the stream is one hour old",
        "RetryInfo, `grpc-retry-pushback-ms`", "resume with the last `resume_token`";
    WATCH_TOO_SLOW: ResourceExhausted, "WatchOrders: the caller reads too slowly",
        "`grpc-retry-pushback-ms` is -1: no retry of the same call", "resume with the last `resume_token`, and read faster";
}

/// An event normally takes a few milliseconds from one service to the other.
const LAG_RETRY_DELAY: Duration = Duration::from_millis(250);
/// About the time of a service restart.
const RESTART_RETRY_DELAY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub enum Error {
    OrderNotFound(Uuid),
    OrderCancelled(Uuid),
    /// No event of this user has arrived yet.
    UserUnknown(Uuid),
    UserDeleted(Uuid),
    /// The version of the consistency token did not arrive in time.
    ProjectionLagging,
    /// Validation requires user-service, which does not respond.
    UserServiceUnavailable(String),
    /// The resume token is not ours, or belongs to another user.
    InvalidResumeToken,
    /// The server ends a stream, which the caller can resume.
    WatchEnded,
    /// The caller reads too slowly.
    WatchTooSlow,
    /// An error that any call can have.
    Call(CallError),
}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        let rejection = match err {
            Error::OrderNotFound(id) => {
                Rejection::new(ORDER_NOT_FOUND, format!("order {id} not found"))
                    .with_resource("order.v1.Order", id)
            }
            Error::OrderCancelled(id) => {
                Rejection::new(ORDER_CANCELLED, format!("order {id} is already cancelled"))
                    .with_precondition("ORDER_OPEN", format!("orders/{id}"))
            }
            // Either the user does not exist, or its event has not arrived yet.
            Error::UserUnknown(id) => Rejection::new(
                USER_UNKNOWN,
                format!(
                    "user {id} is not known to order-service yet; if it was just created, retry \
                    or pass the consistency_token from CreateUser"
                ),
            )
            .with_precondition("USER_KNOWN", format!("users/{id}"))
            .with_retry_after(LAG_RETRY_DELAY),
            Error::UserDeleted(id) => {
                Rejection::new(USER_DELETED, format!("user {id} was deleted"))
                    .with_precondition("USER_LIVE", format!("users/{id}"))
            }
            Error::ProjectionLagging => Rejection::new(
                PROJECTION_LAGGING,
                "the user version of consistency_token did not arrive in time; retry",
            )
            .with_retry_after(LAG_RETRY_DELAY),
            Error::UserServiceUnavailable(error) => {
                tracing::warn!(%error, "user-service unavailable");
                Rejection::new(
                    USER_SERVICE_UNAVAILABLE,
                    "failed to validate the user: user-service does not respond; retry",
                )
                .with_retry_after(RESTART_RETRY_DELAY)
            }
            Error::InvalidResumeToken => Rejection::new(
                RESUME_TOKEN_INVALID,
                "invalid resume_token: must come from a stream of the same user; start over without a token",
            ),
            Error::WatchEnded => Rejection::new(
                WATCH_ENDED,
                "the server ended the stream; resume with the last resume_token",
            )
            .with_retry_after(RESTART_RETRY_DELAY),
            Error::WatchTooSlow => Rejection::new(
                WATCH_TOO_SLOW,
                "the stream was read too slowly; resume with the last resume_token",
            ),
            Error::Call(err) => err.into(),
        };
        rejection.into_status(NAME)
    }
}

impl From<CallError> for Error {
    fn from(err: CallError) -> Self {
        Self::Call(err)
    }
}

impl From<diesel::result::Error> for Error {
    fn from(err: diesel::result::Error) -> Self {
        Self::Call(err.into())
    }
}

impl From<PoolError> for Error {
    fn from(err: PoolError) -> Self {
        Self::Call(err.into())
    }
}
