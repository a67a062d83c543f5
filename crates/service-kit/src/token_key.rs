use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use diesel::QueryDsl as _;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::{database::DatabaseError, schema::token_keys};

/// Half of an HMAC-SHA-256: the minimum by RFC 2104, section 5.
const MAC_BYTES: usize = 16;

/// Signs page tokens and resume tokens, to detect tokens that were altered or issued for another
/// purpose.
///
/// A signed token is opaque and URL-safe. Its content is encoded, not encrypted.
#[derive(Clone)]
pub struct TokenKey(Hmac<Sha256>);

impl TokenKey {
    /// Loads the key that all replicas of the service share.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn load(conn: &mut AsyncPgConnection) -> Result<Self, DatabaseError> {
        let key: Vec<u8> = token_keys::table
            .select(token_keys::key)
            .first(conn)
            .await?;
        Ok(Self::new(&key))
    }

    fn new(key: &[u8]) -> Self {
        // An HMAC takes keys of any length.
        Self(Hmac::new_from_slice(key).unwrap_or_else(|err| unreachable!("{err}")))
    }

    /// Creates a token with `content`, valid only for `purpose`.
    pub fn sign(&self, purpose: &str, content: &[u8]) -> String {
        let mut bytes = content.to_vec();
        bytes.extend(&self.mac(purpose, content).finalize().into_bytes()[..MAC_BYTES]);
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Returns the content of a token that was signed for `purpose`, or `None` if it is invalid.
    pub fn verify(&self, purpose: &str, token: &str) -> Option<Vec<u8>> {
        let mut content = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let mac = content.split_off(content.len().checked_sub(MAC_BYTES)?);
        // A constant-time comparison.
        let verified = self
            .mac(purpose, &content)
            .verify_truncated_left(&mac)
            .is_ok();
        verified.then_some(content)
    }

    fn mac(&self, purpose: &str, content: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        // The length separates the purpose from the content.
        mac.update(&(purpose.len() as u64).to_be_bytes());
        mac.update(purpose.as_bytes());
        mac.update(content);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_valid_only_unaltered_and_for_its_purpose() {
        let key = TokenKey::new(&[7; 32]);
        let token = key.sign("users", b"content");
        assert_eq!(
            key.verify("users", &token).as_deref(),
            Some(&b"content"[..])
        );
        assert_eq!(key.verify("user", &token), None);
        assert_eq!(TokenKey::new(&[8; 32]).verify("users", &token), None);
        for index in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key.verify("users", &changed), None, "{changed}");
        }
        for bad in [
            "",
            "x",
            "%%%",
            &token[1..],
            &token[..8],
            &format!("{token}AAAA"),
        ] {
            assert_eq!(key.verify("users", bad), None, "{bad}");
        }
    }
}
