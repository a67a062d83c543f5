//! Everything that a call can be rejected for, and what the caller then sees.

use std::time::Duration;

use service_kit::{CallError, Rejection, database::PoolError};
use tonic::Status;
use uuid::Uuid;

use crate::NAME;

service_kit::reasons! {
    ORDER_NOT_FOUND: NotFound, "there is no order with this id",
        "ResourceInfo", "look where the id comes from";
    USER_UNKNOWN: FailedPrecondition, "CreateOrder: no event has told of this user; it may be on its way",
        "PreconditionFailure, RetryInfo", "send the consistency token of CreateUser, or repeat it after that time";
    USER_DELETED: FailedPrecondition, "CreateOrder: the user was deleted",
        "PreconditionFailure", "give up; a deleted user does not come back";
    ORDER_CANCELLED: FailedPrecondition, "CancelOrder: the order is cancelled already",
        "PreconditionFailure", "nothing: it is done";
    PROJECTION_LAGGING: Unavailable, "CreateOrder: what the consistency token names did not arrive in time",
        "RetryInfo, `grpc-retry-pushback-ms`", "repeat it after that time, with its `request_id`";
    USER_SERVICE_UNAVAILABLE: Unavailable, "CreateOrder: user-service does not answer, and has to be asked (validation mode `remote`)",
        "RetryInfo, `grpc-retry-pushback-ms`", "repeat it after that time, with its `request_id`";
    RESUME_TOKEN_INVALID: InvalidArgument, "WatchOrders: `resume_token` was changed, is of another user, or from before a restored dump",
        "", "watch without a token, from the beginning";
    WATCH_ENDED: Unavailable, "WatchOrders: the server stops, or the stream has lasted an hour",
        "RetryInfo, `grpc-retry-pushback-ms`", "watch again with the last `resume_token`";
    WATCH_TOO_SLOW: ResourceExhausted, "WatchOrders: the caller reads more slowly than orders change",
        "`grpc-retry-pushback-ms` is -1: no retry of the same call", "watch again with the last `resume_token`, and read faster";
}

/// An event takes a few milliseconds from one service to the other, or as long as an outage.
const LAG_RETRY_DELAY: Duration = Duration::from_millis(250);
/// A service that was restarted is mostly back by then.
const RESTART_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why a call is rejected.
#[derive(Debug)]
pub enum Error {
    /// There is no order with this id.
    OrderNotFound(Uuid),
    /// The order is cancelled already.
    OrderCancelled(Uuid),
    /// No event has told of this user yet.
    UserUnknown(Uuid),
    /// The user was deleted.
    UserDeleted(Uuid),
    /// The version that the caller has seen did not arrive in time.
    ProjectionLagging,
    /// user-service has to be asked, and does not answer.
    UserServiceUnavailable(String),
    /// The resume token is none of ours, or of another user.
    BadResumeToken,
    /// The server ends a stream, which the caller can take up again.
    WatchEnded,
    /// The caller does not read what is sent.
    WatchTooSlow,
    /// What any call can be rejected for.
    Call(CallError),
}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        let rejection = match err {
            Error::OrderNotFound(id) => {
                Rejection::new(ORDER_NOT_FOUND, format!("there is no order {id}"))
                    .about("order.v1.Order", id)
            }
            Error::OrderCancelled(id) => {
                Rejection::new(ORDER_CANCELLED, format!("order {id} is cancelled already"))
                    .requires("ORDER_OPEN", format!("orders/{id}"))
            }
            // Either there is no such user, or the event is still on its way.
            Error::UserUnknown(id) => Rejection::new(
                USER_UNKNOWN,
                format!(
                    "order-service has not heard of user {id}; if it was created a moment ago, \
                     retry, or send the consistency_token of CreateUser"
                ),
            )
            .requires("USER_KNOWN", format!("users/{id}"))
            .retry_after(LAG_RETRY_DELAY),
            Error::UserDeleted(id) => {
                Rejection::new(USER_DELETED, format!("user {id} was deleted"))
                    .requires("USER_LIVE", format!("users/{id}"))
            }
            Error::ProjectionLagging => Rejection::new(
                PROJECTION_LAGGING,
                "what consistency_token names has not arrived here in time; retry",
            )
            .retry_after(LAG_RETRY_DELAY),
            Error::UserServiceUnavailable(error) => {
                tracing::warn!(%error, "user-service unavailable");
                Rejection::new(
                    USER_SERVICE_UNAVAILABLE,
                    "user-service has to be asked for the user, and does not answer; retry",
                )
                .retry_after(RESTART_RETRY_DELAY)
            }
            Error::BadResumeToken => Rejection::new(
                RESUME_TOKEN_INVALID,
                "resume_token is not of this user's orders; begin again without one",
            ),
            Error::WatchEnded => Rejection::new(
                WATCH_ENDED,
                "the server ends this stream; go on with the last resume_token",
            )
            .retry_after(RESTART_RETRY_DELAY),
            Error::WatchTooSlow => Rejection::new(
                WATCH_TOO_SLOW,
                "the stream was not read for too long; go on with the last resume_token",
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
