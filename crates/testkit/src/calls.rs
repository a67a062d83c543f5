use devstack::eventually;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Calls as a client should: repeats what is rejected with a RetryInfo, as when another call with
/// its request id is in flight, or when too many want a connection at once.
///
/// # Errors
/// The first that does not ask for a repeat.
pub async fn at_last<T>(call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let answer = async || match call().await {
        Err(status) if status.get_details_retry_info().is_some() => Ok(None),
        result => Ok(Some(result)),
    };
    let answer = eventually("an answer", answer).await;
    answer.unwrap_or_else(|err| Err(Status::unknown(err.to_string())))
}

/// Checks that the service `domain` has rejected a call with this code and this reason; returns the
/// other details.
///
/// # Panics
/// If it has not.
#[track_caller]
pub fn assert_rejection(status: &Status, domain: &str, code: Code, reason: &str) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    assert_eq!((status.code(), info.reason.as_str()), (code, reason));
    assert_eq!(info.domain, domain);
    details
}
