//! Errors of calls, and their gRPC statuses.

mod call_error;
mod reason;
mod reasons;
mod rejection;
mod violations;

pub(crate) use self::reasons::{MALFORMED_MESSAGE, MESSAGE_TOO_LARGE, TRANSPORT, UNIMPLEMENTED};
pub use self::{
    call_error::CallError, reason::Reason, reasons::TABLE, rejection::Rejection,
    violations::Violations,
};
