//! Where records go that can't be applied.

use diesel::{ExpressionMethods as _, QueryResult};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};

use crate::{offsets::Offsets, poison::Poison, record::Record};

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

/// Sets a record aside, untouched. It may have been before, when a projection is rebuilt.
pub(crate) async fn set_aside(
    conn: &mut AsyncPgConnection,
    offsets: &Offsets<'_>,
    record: &Record<'_>,
    poison: &Poison,
) -> QueryResult<()> {
    let headers = record.headers().iter();
    let (names, values): (Vec<&str>, Vec<&[u8]>) = headers
        .map(|header| (header.key, header.value.unwrap_or_default()))
        .unzip();
    diesel::insert_into(dead_letters::table)
        .values((
            dead_letters::projection.eq(offsets.projection),
            dead_letters::topic.eq(offsets.topic),
            dead_letters::partition.eq(record.partition()),
            dead_letters::record_offset.eq(record.offset()),
            dead_letters::key.eq(record.key()),
            dead_letters::payload.eq(record.payload()),
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
