//! Carries the SQLSTATE of an error through diesel, which drops it.
//!
//! Nothing but the SQLSTATE identifies an error: Postgres translates its messages. diesel-async keeps the message and five
//! other fields of an ErrorResponse, so the transport stores the SQLSTATE in one of them: DETAIL. It is the field that quotes
//! the values of a row, which must not reach a log.
//!
//! Formats: <https://www.postgresql.org/docs/current/protocol-error-fields.html>

use bytes::{BufMut as _, BytesMut};

const SQLSTATE: u8 = b'C';
const DETAIL: u8 = b'D';

/// Marks a DETAIL that was replaced.
#[cfg_attr(not(feature = "diesel"), allow(dead_code, reason = "read by diesel"))]
pub(crate) const PREFIX: &str = "SQLSTATE ";

/// Appends the ErrorResponse to `output`, with its SQLSTATE as DETAIL. `body` follows the length of the message.
pub(crate) fn rewrite(body: &[u8], output: &mut BytesMut) {
    let start = output.len();
    output.put_u8(b'E');
    output.put_i32(0);
    for (field, value) in fields(body) {
        if field == DETAIL {
            continue;
        }
        put_field(output, field, &[value]);
        if field == SQLSTATE {
            put_field(output, DETAIL, &[PREFIX.as_bytes(), value]);
        }
    }
    output.put_u8(0);
    let length = u32::try_from(output.len() - start - 1).unwrap_or(u32::MAX);
    output[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

fn put_field(output: &mut BytesMut, field: u8, parts: &[&[u8]]) {
    output.put_u8(field);
    for part in parts {
        output.put_slice(part);
    }
    output.put_u8(0);
}

/// Returns the types and values of the fields. Stops at the first malformed one.
fn fields(body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = body;
    std::iter::from_fn(move || {
        let (&field, after) = rest.split_first().filter(|(field, _)| **field != 0)?;
        let end = after.iter().position(|byte| *byte == 0)?;
        rest = &after[end + 1..];
        Some((field, &after[..end]))
    })
}

#[cfg(test)]
mod tests {
    use postgres_protocol::message::backend::Message;
    use proptest::prelude::*;

    use super::*;

    /// Rewrites a body and returns the fields, as a client parses them.
    fn rewritten(body: &[u8]) -> Vec<(u8, String)> {
        use fallible_iterator::FallibleIterator as _;
        let mut output = BytesMut::new();
        rewrite(body, &mut output);
        let message = Message::parse(&mut output).unwrap().unwrap();
        assert!(output.is_empty());
        let Message::ErrorResponse(body) = message else {
            panic!("another message")
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields = body
            .fields()
            .map(|field| Ok((field.type_(), text(field.value_bytes()))));
        fields.collect().unwrap()
    }

    #[test]
    fn the_sqlstate_replaces_the_detail() {
        let body =
            b"SFEHLER\0C23505\0Mdoppelt\0DKey (email)=(a@b) already exists.\0nusers_email_key\0\0";
        let expected = [
            (b'S', "FEHLER"),
            (b'C', "23505"),
            (b'D', "SQLSTATE 23505"),
            (b'M', "doppelt"),
            (b'n', "users_email_key"),
        ];
        assert_eq!(
            rewritten(body),
            expected.map(|(field, value)| (field, value.to_owned()))
        );
    }

    proptest! {
        #[test]
        fn any_body_becomes_a_valid_message(body in prop::collection::vec(any::<u8>(), 0..100)) {
            rewritten(&body);
        }
    }
}
