//! What calls carry beside their messages.

use tonic::{Response, metadata::MetadataMap};

/// Carries the consistency token of a mutation, in its answer and in later calls.
pub const CONSISTENCY_TOKEN: &str = "x-consistency-token";

/// An answer with its consistency token in the metadata too, where interceptors find it.
pub fn with_token<T>(answer: T, token: fn(&T) -> &str) -> Response<T> {
    // Tokens are URL-safe; that of nothing is empty.
    let token = Some(token(&answer)).filter(|token| !token.is_empty());
    let token = token.and_then(|token| token.parse().ok());
    let mut response = Response::new(answer);
    if let Some(token) = token {
        response.metadata_mut().insert(CONSISTENCY_TOKEN, token);
    }
    response
}

/// The token that a call carries in its metadata, empty if there is none. What is no text is no token
/// either, and said to be none.
pub fn token_in_metadata(metadata: &MetadataMap) -> &str {
    let value = metadata.get(CONSISTENCY_TOKEN);
    value.map_or("", |value| value.to_str().unwrap_or("?"))
}

/// The W3C trace context of a call, where it has a valid one, to be passed on with what the call
/// causes. See <https://www.w3.org/TR/trace-context/#traceparent-header>.
pub(crate) fn traceparent(metadata: &MetadataMap) -> Option<String> {
    let text = metadata.get("traceparent")?.to_str().ok()?;
    is_valid(text).then(|| text.to_owned())
}

/// Version 00: its number, trace id, parent id and flags in lower-case hex; neither id is zero.
fn is_valid(text: &str) -> bool {
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
    fn only_a_valid_context_is_passed_on() {
        assert!(is_valid(
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
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
