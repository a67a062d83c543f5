use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::call_error::CallError;

const DEFAULT_PAGE_SIZE: i32 = 50;
const MAX_PAGE_SIZE: i32 = 1000;
const LAYOUT: u8 = 1;
/// Layout, id, the head of the digest.
const ENCODED_BYTES: usize = 1 + 16 + 8;

/// Where the next page of a list begins: behind the row with this id.
///
/// It names a row and not a count of rows, so that rows which come or go meanwhile make no row
/// appear twice or not at all. It also holds a digest of what was asked for, so that a page of one
/// list is not continued in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken(pub Uuid);

impl PageToken {
    /// The token as callers see it; `query` is everything that they ask for, but the page.
    pub fn encode(self, query: &str) -> String {
        let mut bytes = [0; ENCODED_BYTES];
        bytes[0] = LAYOUT;
        bytes[1..17].copy_from_slice(self.0.as_bytes());
        bytes[17..].copy_from_slice(&self.digest(query));
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token that a caller gives back; an empty one asks for the first page.
    ///
    /// # Errors
    /// [`CallError::BadPageToken`] for anything but a token that was given for the same `query`.
    pub fn decode(token: &str, query: &str) -> Result<Option<Self>, CallError> {
        if token.is_empty() {
            return Ok(None);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| CallError::BadPageToken)?;
        let bytes: [u8; ENCODED_BYTES] = bytes.try_into().map_err(|_| CallError::BadPageToken)?;
        let token = Self(Uuid::from_slice(&bytes[1..17]).map_err(|_| CallError::BadPageToken)?);
        if bytes[0] != LAYOUT || bytes[17..] != token.digest(query) {
            return Err(CallError::BadPageToken);
        }
        Ok(Some(token))
    }

    fn digest(self, query: &str) -> [u8; 8] {
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update(query)
            .finalize();
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        head
    }
}

/// How many rows to read for a request's `page_size`, one of the most frequent mistakes to be
/// generous about: 0 and less mean the default, too much means the maximum.
pub fn page_size(asked: i32) -> i64 {
    if asked <= 0 {
        DEFAULT_PAGE_SIZE.into()
    } else {
        asked.min(MAX_PAGE_SIZE).into()
    }
}

/// Cuts `rows`, of which one more than the page takes was read, to the page; returns the token of
/// the next one, empty if there is none.
pub fn cut_page<T>(rows: &mut Vec<T>, size: i64, query: &str, id: impl Fn(&T) -> Uuid) -> String {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if rows.len() <= size {
        return String::new();
    }
    rows.truncate(size);
    rows.last()
        .map(|last| PageToken(id(last)).encode(query))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_serves_its_own_list_only() {
        let token = PageToken(Uuid::max());
        let text = token.encode("user=1");
        assert_eq!(PageToken::decode(&text, "user=1").unwrap(), Some(token));
        assert_eq!(PageToken::decode("", "user=1").unwrap(), None);
        assert!(PageToken::decode(&text, "user=2").is_err());
        for bad in [
            "x",
            "%%%",
            &text[1..],
            &text.to_lowercase(),
            &format!("{text}AAAA"),
        ] {
            assert!(PageToken::decode(bad, "user=1").is_err(), "{bad}");
        }
    }
}
