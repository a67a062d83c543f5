//! Everything that a call can be refused for, and what the caller then sees.

use std::time::Duration;

use service_kit::{CallError, Refusal, database::PoolError};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::NAME;

/// An event takes a few milliseconds from one service to the other, or as long as an outage.
const LAG_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Why a call is refused.
#[derive(Debug)]
pub enum Error {
    /// There is no order with this id.
    OrderNotFound(Uuid),
    /// No event has told of this user yet.
    UserUnknown(Uuid),
    /// The user was deleted.
    UserDeleted(Uuid),
    /// The version that the caller has seen did not arrive in time.
    ProjectionLagging,
    /// What any call can be refused for.
    Call(CallError),
}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        let refusal = match err {
            Error::OrderNotFound(id) => Refusal::new(
                Code::NotFound,
                "ORDER_NOT_FOUND",
                format!("there is no order {id}"),
            )
            .about("order.v1.Order", id),
            // Either there is no such user, or the event is still on its way.
            Error::UserUnknown(id) => Refusal::new(
                Code::FailedPrecondition,
                "USER_UNKNOWN",
                format!(
                    "order-service has not heard of user {id}; if it was created a moment ago, \
                         retry, or send the consistency_token of CreateUser"
                ),
            )
            .requires("USER_KNOWN", format!("users/{id}"))
            .retry_after(LAG_RETRY_DELAY),
            Error::UserDeleted(id) => Refusal::new(
                Code::FailedPrecondition,
                "USER_DELETED",
                format!("user {id} was deleted"),
            )
            .requires("USER_LIVE", format!("users/{id}")),
            Error::ProjectionLagging => Refusal::new(
                Code::Unavailable,
                "PROJECTION_LAGGING",
                "what consistency_token names has not arrived here in time; retry",
            )
            .retry_after(LAG_RETRY_DELAY),
            Error::Call(err) => err.into(),
        };
        refusal.into_status(NAME)
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
