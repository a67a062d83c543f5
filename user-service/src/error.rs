//! Errors of calls, and their mapping to gRPC statuses.

use service_kit::{CallError, Rejection, database::PoolError};
use tonic::Status;
use uuid::Uuid;

use crate::NAME;

service_kit::reasons! {
    USER_NOT_FOUND: NotFound, "no user has this id; DeleteUser: or the user is already deleted",
        "ResourceInfo", "check the id";
    USER_DELETED: FailedPrecondition, "UpdateUser: the user was deleted",
        "PreconditionFailure", "do not retry; deletion is final";
    EMAIL_TAKEN: AlreadyExists, "another user has this e-mail address",
        "ResourceInfo, without the other user's id", "use another address";
    TOTAL_OUT_OF_RANGE: OutOfRange, "GetUserOrderSummary: a total exceeds 2^63 units",
        "", "add up the orders of ListOrders";
}

#[derive(Debug)]
pub enum Error {
    UserNotFound(Uuid),
    /// The user was deleted and can't be changed.
    UserDeleted(Uuid),
    /// The total of a user's orders in this currency exceeds the range of the response.
    TotalOutOfRange(String),
    EmailTaken,
    /// An error that any call can have.
    Call(CallError),
}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        let rejection = match err {
            Error::UserNotFound(id) => {
                Rejection::new(USER_NOT_FOUND, format!("user {id} not found"))
                    .with_resource("user.v1.User", id)
            }
            Error::UserDeleted(id) => {
                Rejection::new(USER_DELETED, format!("user {id} was deleted"))
                    .with_precondition("USER_LIVE", format!("users/{id}"))
            }
            Error::TotalOutOfRange(currency) => Rejection::new(
                TOTAL_OUT_OF_RANGE,
                format!("total in {currency} exceeds 2^63 units, the range of the response"),
            ),
            // Must not reveal the other user.
            Error::EmailTaken => {
                Rejection::new(EMAIL_TAKEN, "email is already used by another user")
                    .with_resource("user.v1.User", "")
            }
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
