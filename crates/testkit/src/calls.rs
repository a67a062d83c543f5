use devstack::eventually;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Retries a call while the error has a RetryInfo, as a client should. Such errors occur if another call with the same
/// request id is in flight, or if the service is overloaded.
///
/// # Errors
/// The first error without a RetryInfo.
pub async fn retry_call<T>(call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let attempt = async || match call().await {
        Err(status) if status.get_details_retry_info().is_some() => Ok(None),
        result => Ok(Some(result)),
    };
    let result = eventually("a result of the call", attempt).await;
    result.unwrap_or_else(|err| Err(Status::unknown(err.to_string())))
}

/// Asserts that the service `domain` rejected a call with this code and reason, and returns the error details.
///
/// # Panics
/// If the status differs.
#[track_caller]
pub fn assert_rejection(status: &Status, domain: &str, code: Code, reason: &str) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    assert_eq!((status.code(), info.reason.as_str()), (code, reason));
    assert_eq!(info.domain, domain);
    details
}
