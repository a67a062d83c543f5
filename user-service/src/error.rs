//! Everything that a call can be rejected for, and what the caller then sees.

use service_kit::{CallError, Rejection, database::PoolError};
use tonic::Status;
use uuid::Uuid;

use crate::NAME;

service_kit::reasons! {
    USER_NOT_FOUND: NotFound, "there is no user with this id; for DeleteUser also: it is deleted already",
        "ResourceInfo", "look where the id comes from";
    USER_DELETED: FailedPrecondition, "UpdateUser: the user was deleted",
        "PreconditionFailure", "give up; a deleted user does not come back";
    EMAIL_TAKEN: AlreadyExists, "another user has the e-mail",
        "ResourceInfo, which does not say whose it is", "take another one";
    TOTAL_OUT_OF_RANGE: OutOfRange, "GetUserOrderSummary: a total has more than 2^63 units",
        "", "sum up the orders of ListOrders";
}

/// Why a call is rejected.
#[derive(Debug)]
pub enum Error {
    /// There is no user with this id.
    UserNotFound(Uuid),
    /// The user was deleted, and does not change any more.
    UserDeleted(Uuid),
    /// The orders of a user sum up to more than a response can hold, in this currency.
    TotalOutOfRange(String),
    /// Another user has the e-mail address.
    EmailTaken,
    /// What any call can be rejected for.
    Call(CallError),
}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        let rejection = match err {
            Error::UserNotFound(id) => {
                Rejection::new(USER_NOT_FOUND, format!("there is no user {id}"))
                    .about("user.v1.User", id)
            }
            Error::UserDeleted(id) => {
                Rejection::new(USER_DELETED, format!("user {id} was deleted"))
                    .requires("USER_LIVE", format!("users/{id}"))
            }
            Error::TotalOutOfRange(currency) => Rejection::new(
                TOTAL_OUT_OF_RANGE,
                format!(
                    "the total in {currency} is more than 2^63 units, which no answer can hold"
                ),
            ),
            // Says nothing of whose it is.
            Error::EmailTaken => Rejection::new(EMAIL_TAKEN, "another user has this e-mail")
                .about("user.v1.User", ""),
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
