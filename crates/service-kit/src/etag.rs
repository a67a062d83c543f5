use crate::CallError;

/// The etag of a version; callers compare it and nothing else.
pub fn etag(version: i64) -> String {
    format!("v{version}")
}

/// Whether the version is the one that a caller has seen, where it says which.
///
/// # Errors
/// [`CallError::EtagMismatch`] if it is another one.
pub fn check_etag(seen: &str, version: i64) -> Result<(), CallError> {
    if seen.is_empty() || seen == etag(version) {
        Ok(())
    } else {
        Err(CallError::EtagMismatch)
    }
}
