use crate::CallError;

/// Returns the etag of a version. Callers treat it as opaque.
pub fn format_etag(version: i64) -> String {
    format!("v{version}")
}

/// Checks that `version` is the one the caller expects; an empty etag matches any version.
///
/// # Errors
/// [`CallError::EtagMismatch`] if it is not.
pub fn check_etag(expected: &str, version: i64) -> Result<(), CallError> {
    if expected.is_empty() || expected == format_etag(version) {
        Ok(())
    } else {
        Err(CallError::EtagMismatch)
    }
}
