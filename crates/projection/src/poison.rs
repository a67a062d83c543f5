//! Records that can't be applied: how they are told apart. (`dead_letters` is where they go.)

use std::fmt::Write as _;

use diesel::result::DatabaseErrorKind;
use serde_json::error::Category;

/// Reasons are for a glance at a table; none of ours comes near to it.
const MAX_REASON_CHARS: usize = 300;

/// How Postgres begins or goes on when a value is one that it can't hold: SQLSTATE class 22, and an
/// index entry that is too large. diesel keeps no SQLSTATE for these, so that only the text can tell.
const REJECTED_VALUES: [&str; 10] = [
    "out of range",
    "numeric field overflow",
    "value overflows numeric format",
    "value too long for type",
    "invalid input syntax for type",
    "invalid input value for enum",
    "invalid byte sequence for encoding",
    "has no equivalent in encoding",
    "unsupported Unicode escape sequence",
    "exceeds btree version",
];

/// Why a record will never be applied, however often it is tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {reason}")]
pub struct Poison {
    pub(crate) class: &'static str,
    pub(crate) reason: String,
}

impl Poison {
    /// `class` groups such records in statistics; `reason` is for a person, and must not hold what
    /// the payload says of people. It is cut off after some hundred characters.
    pub fn new(class: &'static str, reason: impl ToString) -> Self {
        // Postgres takes no character with the number 0, and a person sees no other of these.
        let mut shown = String::new();
        for char in reason.to_string().chars().take(MAX_REASON_CHARS) {
            if char.is_control() {
                let _ = write!(shown, "{}", char.escape_default());
            } else {
                shown.push(char);
            }
        }
        Self {
            class,
            reason: shown,
        }
    }

    /// A payload that is not the JSON that it should be. Of serde's message only the place is kept,
    /// because the rest quotes the payload.
    pub(crate) fn json(err: &serde_json::Error) -> Self {
        let what = match err.classify() {
            Category::Io | Category::Syntax => "it is no JSON",
            Category::Eof => "it is JSON that ends too soon",
            Category::Data => "it is JSON with a field that is missing or holds something else",
        };
        let (line, column) = (err.line(), err.column());
        Self::new("payload", format!("{what}: line {line}, column {column}"))
    }
}

/// The poison in a change that the database rejects for what it is; none where the fault may lie
/// elsewhere and pass.
pub(crate) fn in_change(err: &diesel::result::Error) -> Option<Poison> {
    use DatabaseErrorKind as Kind;
    let (kind, info) = match err {
        diesel::result::Error::DatabaseError(kind, info) => (kind, info),
        // diesel itself can't write a value as the type of its column.
        diesel::result::Error::SerializationError(_) => {
            return Some(Poison::new("value", "it can't be sent to the database"));
        }
        _ => return None,
    };
    match kind {
        // The message names the constraint; the detail would name the values.
        Kind::CheckViolation
        | Kind::NotNullViolation
        | Kind::UniqueViolation
        | Kind::ForeignKeyViolation
        | Kind::ExclusionViolation
        | Kind::RestrictViolation => {
            let name = info.constraint_name().or(info.column_name());
            Some(Poison::new("constraint", name.unwrap_or("unnamed")))
        }
        // The message may quote the value, so that no more is kept than what was looked for.
        Kind::Unknown => REJECTED_VALUES
            .into_iter()
            .find(|text| info.message().contains(text))
            .map(|text| Poison::new("value", text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_short_and_can_be_stored() {
        let poison = Poison::new("payload", "a\0b\u{1b}[31m\n");
        assert_eq!(poison.to_string(), r"payload: a\u{0}b\u{1b}[31m\n");
        let poison = Poison::new("payload", "é".repeat(10_000));
        assert_eq!(poison.reason.chars().count(), MAX_REASON_CHARS);
    }

    #[test]
    fn a_reason_says_where_json_is_wrong_and_nothing_of_what_it_holds() {
        for (payload, reason) in [
            ("[\n1", "it is JSON that ends too soon: line 2, column 1"),
            ("[secret", "it is no JSON: line 1, column 2"),
            (
                "[\"secret\"]",
                "it is JSON with a field that is missing or holds something else: line 1, column 9",
            ),
        ] {
            let err = serde_json::from_str::<Vec<u8>>(payload).unwrap_err();
            assert_eq!(Poison::json(&err).reason, reason, "{payload}");
        }
    }
}
