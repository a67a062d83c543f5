//! Records that can't be applied: how they are told apart, and where they go.

use diesel::{ExpressionMethods as _, QueryResult, result::DatabaseErrorKind};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use rdkafka::{
    Message as _,
    message::{BorrowedMessage, Headers as _},
};

diesel::table! {
    dead_letters (dead_letter_id) {
        dead_letter_id -> BigInt,
        projection -> Text,
        topic -> Text,
        partition -> Integer,
        record_offset -> BigInt,
        key -> Nullable<Binary>,
        payload -> Nullable<Binary>,
        header_names -> Array<Text>,
        header_values -> Array<Binary>,
        error_class -> Text,
        error -> Text,
    }
}

/// Why a record will never be applied, however often it is tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {reason}")]
pub struct Poison {
    class: &'static str,
    reason: String,
}

impl Poison {
    /// `class` groups such records in statistics; `reason` is for a person, and must not hold what
    /// the payload says of people.
    pub fn new(class: &'static str, reason: impl ToString) -> Self {
        Self {
            class,
            reason: reason.to_string(),
        }
    }
}

/// The poison in a change that the database refuses for what it is; none where the fault may lie
/// elsewhere and pass.
pub(crate) fn in_change(err: &diesel::result::Error) -> Option<Poison> {
    use DatabaseErrorKind as Kind;
    match err {
        diesel::result::Error::DatabaseError(
            Kind::CheckViolation
            | Kind::NotNullViolation
            | Kind::UniqueViolation
            | Kind::ForeignKeyViolation
            | Kind::ExclusionViolation
            | Kind::RestrictViolation,
            info,
        ) => {
            // The message names the constraint; the detail would name the values.
            Some(Poison::new(
                "constraint",
                info.constraint_name().unwrap_or("unnamed"),
            ))
        }
        _ => None,
    }
}

/// Sets a record aside, untouched. It may have been before, when a projection is rebuilt.
pub(crate) async fn set_aside(
    conn: &mut AsyncPgConnection,
    projection: &str,
    message: &BorrowedMessage<'_>,
    poison: &Poison,
) -> QueryResult<()> {
    let headers = message.headers();
    let headers = || headers.into_iter().flat_map(|headers| headers.iter());
    let names: Vec<&str> = headers().map(|header| header.key).collect();
    let values: Vec<&[u8]> = headers()
        .map(|header| header.value.unwrap_or_default())
        .collect();
    diesel::insert_into(dead_letters::table)
        .values((
            dead_letters::projection.eq(projection),
            dead_letters::topic.eq(message.topic()),
            dead_letters::partition.eq(message.partition()),
            dead_letters::record_offset.eq(message.offset()),
            dead_letters::key.eq(message.key()),
            dead_letters::payload.eq(message.payload()),
            dead_letters::header_names.eq(names),
            dead_letters::header_values.eq(values),
            dead_letters::error_class.eq(poison.class),
            dead_letters::error.eq(&poison.reason),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    Ok(())
}
