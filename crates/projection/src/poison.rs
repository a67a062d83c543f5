//! Detects poison records: records that can never be applied. (`dead_letters` stores them.)

use std::fmt::Write as _;

use diesel::result::DatabaseErrorKind;
use postgres_session::SqlState;
use serde_json::error::Category;

/// The limit of a reason; those of this crate are much shorter.
const MAX_REASON_CHARS: usize = 300;

/// The reason why a record can never be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {reason}")]
pub struct Poison {
    pub(crate) class: &'static str,
    pub(crate) reason: String,
}

impl Poison {
    /// Creates a poison of this class, which groups such records in statistics. `reason` is for a person.
    /// It is truncated to 300 characters, and must not contain personal data of the payload.
    pub fn new(class: &'static str, reason: impl ToString) -> Self {
        // Postgres rejects NUL, and a terminal obeys other control characters.
        let mut escaped = String::new();
        for char in reason.to_string().chars().take(MAX_REASON_CHARS) {
            if char.is_control() {
                let _ = write!(escaped, "{}", char.escape_default());
            } else {
                escaped.push(char);
            }
        }
        Self {
            class,
            reason: escaped,
        }
    }

    /// A payload that is not the expected JSON. Keeps only the position of serde's message, because the
    /// rest quotes the payload.
    pub(crate) fn from_json_error(err: &serde_json::Error) -> Self {
        let problem = match err.classify() {
            Category::Io | Category::Syntax => "invalid JSON",
            Category::Eof => "truncated JSON",
            Category::Data => "JSON with a missing or mistyped field",
        };
        let (line, column) = (err.line(), err.column());
        Self::new(
            "payload",
            format!("{problem}: line {line}, column {column}"),
        )
    }
}

/// Returns the poison if the database rejects a change because of its values. Returns `None` for errors
/// that a retry may resolve.
pub(crate) fn from_database_error(err: &diesel::result::Error) -> Option<Poison> {
    use DatabaseErrorKind as Kind;
    let (kind, info) = match err {
        diesel::result::Error::DatabaseError(kind, info) => (kind, info),
        // Diesel cannot encode a value as the type of its column.
        diesel::result::Error::SerializationError(_) => {
            return Some(Poison::new("value", "cannot be encoded for the database"));
        }
        _ => return None,
    };
    match kind {
        // The name of the constraint only: the detail of the error contains values.
        Kind::CheckViolation
        | Kind::NotNullViolation
        | Kind::UniqueViolation
        | Kind::ForeignKeyViolation
        | Kind::ExclusionViolation
        | Kind::RestrictViolation => {
            let name = info.constraint_name().or(info.column_name());
            Some(Poison::new("constraint", name.unwrap_or("unnamed")))
        }
        // The message may quote the value.
        _ => postgres_session::sqlstate(err)
            .filter(postgres_session::is_data_error)
            .map(|state| Poison::new("value", describe(&state))),
    }
}

/// Describes the frequent errors of class 22 and 54.
fn describe(state: &SqlState) -> String {
    let name = match *state {
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE => "number out of range",
        SqlState::STRING_DATA_RIGHT_TRUNCATION => "text too long",
        SqlState::INVALID_TEXT_REPRESENTATION => "invalid text for its type",
        SqlState::CHARACTER_NOT_IN_REPERTOIRE | SqlState::UNTRANSLATABLE_CHARACTER => {
            "character not supported by the database"
        }
        SqlState::PROGRAM_LIMIT_EXCEEDED => "too large, for example for an index",
        _ => "rejected by the database",
    };
    format!("{name} (SQLSTATE {})", state.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_truncated_and_escaped() {
        let poison = Poison::new("payload", "a\0b\u{1b}[31m\n");
        assert_eq!(poison.to_string(), r"payload: a\u{0}b\u{1b}[31m\n");
        let poison = Poison::new("payload", "é".repeat(10_000));
        assert_eq!(poison.reason.chars().count(), MAX_REASON_CHARS);
    }

    #[test]
    fn the_reason_for_invalid_json_has_its_position_and_none_of_its_contents() {
        for (payload, reason) in [
            ("[\n1", "truncated JSON: line 2, column 1"),
            ("[secret", "invalid JSON: line 1, column 2"),
            (
                "[\"secret\"]",
                "JSON with a missing or mistyped field: line 1, column 9",
            ),
        ] {
            let err = serde_json::from_str::<Vec<u8>>(payload).unwrap_err();
            assert_eq!(Poison::from_json_error(&err).reason, reason, "{payload}");
        }
    }
}
