use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use uuid::Uuid;

/// The first byte of every token, which identifies its layout.
const LAYOUT: u8 = 1;
/// Layout, aggregate, id, version.
const ENCODED_BYTES: usize = 1 + 1 + 16 + 8;

/// A version of an aggregate that a caller has seen. A call with it returns a state at least as new.
///
/// It contains a version and not a position in a log, because a version stays valid after a failover, a rebuild and
/// compaction. It is opaque to callers and URL-safe. It is not signed, because it grants no access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsistencyToken {
    /// The kind of the aggregate.
    pub aggregate: Aggregate,
    /// The id of the aggregate.
    pub id: Uuid,
    /// The version of the aggregate after the write.
    pub version: i64,
}

/// The kinds of aggregates in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// A user of user-service.
    User,
    /// An order of order-service.
    Order,
}

/// The error for a text that is not a token of this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedToken;

impl ConsistencyToken {
    /// Encodes the token for callers.
    pub fn encode(&self) -> String {
        let mut bytes = [0; ENCODED_BYTES];
        bytes[0] = LAYOUT;
        bytes[1] = match self.aggregate {
            Aggregate::User => b'u',
            Aggregate::Order => b'o',
        };
        bytes[2..18].copy_from_slice(self.id.as_bytes());
        bytes[18..].copy_from_slice(&self.version.to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes a token of a caller.
    ///
    /// # Errors
    /// [`MalformedToken`] for a text that [`encode`](Self::encode) cannot return.
    pub fn decode(token: &str) -> Result<Self, MalformedToken> {
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| MalformedToken)?;
        let bytes: [u8; ENCODED_BYTES] = bytes.try_into().map_err(|_| MalformedToken)?;
        let [LAYOUT, kind, rest @ ..] = bytes else {
            return Err(MalformedToken);
        };
        let aggregate = match kind {
            b'u' => Aggregate::User,
            b'o' => Aggregate::Order,
            _ => return Err(MalformedToken),
        };
        let (id, version) = rest.split_at(16);
        let id = Uuid::from_slice(id).map_err(|_| MalformedToken)?;
        let version = i64::from_be_bytes(version.try_into().map_err(|_| MalformedToken)?);
        if version < 1 {
            return Err(MalformedToken);
        }
        Ok(Self {
            aggregate,
            id,
            version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_round_trip_and_is_url_safe() {
        let token = ConsistencyToken {
            aggregate: Aggregate::User,
            id: Uuid::max(),
            version: i64::MAX,
        };
        let text = token.encode();
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
            "{text}"
        );
        assert_eq!(ConsistencyToken::decode(&text), Ok(token));
    }

    #[test]
    fn a_malformed_token_is_rejected() {
        let good = ConsistencyToken {
            aggregate: Aggregate::Order,
            id: Uuid::nil(),
            version: 7,
        }
        .encode();
        let no_version = ConsistencyToken {
            aggregate: Aggregate::Order,
            id: Uuid::nil(),
            version: 0,
        }
        .encode();
        for bad in [
            "",
            "x",
            "%%%",
            &good[1..],
            &format!("{good}AA"),
            &good.to_lowercase(),
            &no_version,
        ] {
            assert_eq!(ConsistencyToken::decode(bad), Err(MalformedToken), "{bad}");
        }
    }
}
