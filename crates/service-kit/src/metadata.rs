//! Call metadata: consistency tokens and trace context.

use tonic::{Response, metadata::MetadataMap};

/// The metadata key of the consistency token, in responses to mutations and in later calls.
pub const CONSISTENCY_TOKEN: &str = "x-consistency-token";

/// Creates a response that also carries its consistency token in the metadata, for interceptors.
pub fn with_token_metadata<T>(message: T, token: fn(&T) -> &str) -> Response<T> {
    // A token is URL-safe, or empty if nothing was changed.
    let token = Some(token(&message)).filter(|token| !token.is_empty());
    let token = token.and_then(|token| token.parse().ok());
    let mut response = Response::new(message);
    if let Some(token) = token {
        response.metadata_mut().insert(CONSISTENCY_TOKEN, token);
    }
    response
}

/// Returns the consistency token of a call, or `""`. A value that is not text becomes `"?"`, which
/// fails validation.
pub fn consistency_token(metadata: &MetadataMap) -> &str {
    let value = metadata.get(CONSISTENCY_TOKEN);
    value.map_or("", |value| value.to_str().unwrap_or("?"))
}

/// Returns the W3C trace context of a call, if it is valid.
/// See <https://www.w3.org/TR/trace-context/#traceparent-header>.
pub(crate) fn parse_traceparent(metadata: &MetadataMap) -> Option<String> {
    let text = metadata.get("traceparent")?.to_str().ok()?;
    is_valid_traceparent(text).then(|| text.to_owned())
}

/// Checks version 00: version, trace id, parent id and flags in lowercase hex; neither id is zero.
fn is_valid_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace_id, parent_id, flags] = parts[..] else {
        return false;
    };
    let is_hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length| is_hex(part, length) && part.bytes().any(|b| b != b'0');
    version == "00" && is_id(trace_id, 32) && is_id(parent_id, 16) && is_hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_trace_context_is_propagated() {
        assert!(is_valid_traceparent(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
        ] {
            assert!(!is_valid_traceparent(bad), "{bad}");
        }
    }
}
