//! The SQL of `dead_letters`: poison records that were stored instead of applied.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, QueryResult, Queryable,
    Selectable, SelectableHelper as _,
    dsl::auto_type,
    sql_types::{Array, BigInt, Binary, Double},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};

use crate::{offsets::Offsets, poison::Poison, record::Record, schema::dead_letters};

/// A dead letter without its payload and headers.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = dead_letters)]
pub struct Summary {
    /// The id of the dead letter.
    pub dead_letter_id: i64,
    /// The topic of the record.
    pub topic: String,
    /// The partition of the record.
    pub partition: i32,
    /// The offset of the record.
    pub record_offset: i64,
    /// The key of the record.
    pub key: Option<Vec<u8>>,
    /// The class of the error.
    pub error_class: String,
    /// The error. It contains nothing of the payload.
    pub error: String,
    /// The time when the record was dead-lettered.
    pub dead_lettered_at: DateTime<Utc>,
    /// The time when the payload and headers were erased; at the end of the retention also the key.
    pub erased_at: Option<DateTime<Utc>>,
}

/// A dead letter: a poison record, unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = dead_letters)]
pub struct DeadLetter {
    /// Everything but the payload and headers.
    #[diesel(embed)]
    pub summary: Summary,
    /// The value of the record.
    pub payload: Option<Vec<u8>>,
    header_names: Vec<String>,
    header_values: Vec<Option<Vec<u8>>>,
}

const ERASE: &str = "
    update dead_letters set payload = null, header_names = '{}', header_values = '{}',
        erased_at = now()
    where key = any ($1) and erased_at is null";

/// Also erases the key, which may contain personal data. Skips rows that another replica or a redrive has locked.
const ERASE_OLDER_THAN: &str = "
    update dead_letters set key = null, payload = null, header_names = '{}', header_values = '{}',
        erased_at = now()
    where dead_letter_id in (
        select dead_letter_id from dead_letters
        where erased_at is null and dead_lettered_at < now() - make_interval(secs => $1)
        order by dead_lettered_at limit $2 for update skip locked)";

impl DeadLetter {
    /// Returns the headers of the record, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let names = self.header_names.iter().map(String::as_str);
        names.zip(self.header_values.iter().map(Option::as_deref))
    }

    pub(crate) fn record(&self) -> Record<'_> {
        Record::new(
            (self.summary.partition, self.summary.record_offset),
            self.summary.key.as_deref(),
            self.payload.as_deref(),
            Some(self.headers().collect()),
        )
    }
}

/// Inserts a poison record unchanged, in place of an earlier dead letter with its offset.
pub(crate) async fn insert(
    conn: &mut AsyncPgConnection,
    offsets: &Offsets<'_>,
    record: &Record<'_>,
    poison: &Poison,
) -> QueryResult<()> {
    let (names, values): (Vec<&str>, Vec<Option<&[u8]>>) = record.headers().iter().copied().unzip();
    let content = (
        dead_letters::key.eq(record.key()),
        dead_letters::payload.eq(record.payload()),
        dead_letters::header_names.eq(names),
        dead_letters::header_values.eq(values),
        dead_letters::error_class.eq(poison.class),
        dead_letters::error.eq(&poison.reason),
    );
    let origin = (
        dead_letters::projection,
        dead_letters::topic,
        dead_letters::partition,
        dead_letters::record_offset,
    );
    // After `projection reset`, a record of a recreated topic can have the offset of an earlier dead letter.
    diesel::insert_into(dead_letters::table)
        .values((
            dead_letters::projection.eq(offsets.projection),
            dead_letters::topic.eq(offsets.topic),
            dead_letters::partition.eq(record.partition()),
            dead_letters::record_offset.eq(record.offset()),
            content.clone(),
        ))
        .on_conflict(origin)
        .do_update()
        .set((
            content,
            dead_letters::dead_lettered_at.eq(diesel::dsl::now),
            dead_letters::erased_at.eq(None::<DateTime<Utc>>),
            dead_letters::in_topic.eq(false),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Selects the dead letters of a projection.
#[auto_type(no_type_alias)]
fn of_projection<'a>(projection: &'a str) -> _ {
    dead_letters::table.filter(dead_letters::projection.eq(projection))
}

/// Lists at most `limit` dead letters of a projection with an id greater than `after`, oldest first.
/// Does not read their contents.
///
/// # Errors
/// Database errors.
pub async fn list(
    conn: &mut AsyncPgConnection,
    projection: &str,
    after: i64,
    limit: i64,
) -> QueryResult<Vec<Summary>> {
    of_projection(projection)
        .filter(dead_letters::dead_letter_id.gt(after))
        .order(dead_letters::dead_letter_id)
        .limit(limit)
        .select(Summary::as_select())
        .load(conn)
        .await
}

/// Returns the dead letter with this id, or `None` if the projection has none.
///
/// # Errors
/// Database errors.
pub async fn find(
    conn: &mut AsyncPgConnection,
    projection: &str,
    id: i64,
) -> QueryResult<Option<DeadLetter>> {
    of_projection(projection)
        .filter(dead_letters::dead_letter_id.eq(id))
        .select(DeadLetter::as_select())
        .first(conn)
        .await
        .optional()
}

/// Like [`find`], and locks the row until the transaction ends.
pub(crate) async fn lock(
    conn: &mut AsyncPgConnection,
    projection: &str,
    id: i64,
) -> QueryResult<Option<DeadLetter>> {
    of_projection(projection)
        .filter(dead_letters::dead_letter_id.eq(id))
        .select(DeadLetter::as_select())
        .for_update()
        .first(conn)
        .await
        .optional()
}

/// Deletes a dead letter, and returns whether it existed. Its copy in the topic stays.
///
/// # Errors
/// Database errors.
pub async fn drop_dead_letter(
    conn: &mut AsyncPgConnection,
    projection: &str,
    id: i64,
) -> QueryResult<bool> {
    let dead_letter = of_projection(projection).filter(dead_letters::dead_letter_id.eq(id));
    Ok(diesel::delete(dead_letter).execute(conn).await? > 0)
}

/// Erases the contents of all dead letters with these keys, in every projection; the rows stay.
///
/// Call it in the transaction that deletes the entities with these keys, before a statement that locks
/// their rows. [`redrive`](crate::redrive) locks in the same order, which prevents a deadlock.
///
/// # Errors
/// Database errors.
pub async fn erase(conn: &mut AsyncPgConnection, keys: &[String]) -> QueryResult<()> {
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    diesel::sql_query(ERASE)
        .bind::<Array<Binary>, _>(keys)
        .execute(conn)
        .await?;
    Ok(())
}

/// Erases the contents of at most `limit` dead letters older than `retention`, and returns their number.
pub(crate) async fn erase_older_than(
    conn: &mut AsyncPgConnection,
    retention: Duration,
    limit: usize,
) -> QueryResult<usize> {
    diesel::sql_query(ERASE_OLDER_THAN)
        .bind::<Double, _>(retention.as_secs_f64())
        .bind::<BigInt, _>(limit as i64)
        .execute(conn)
        .await
}

/// Replaces the error of a dead letter.
pub(crate) async fn update_error(
    conn: &mut AsyncPgConnection,
    id: i64,
    poison: &Poison,
) -> QueryResult<()> {
    diesel::update(dead_letters::table.find(id))
        .set((
            dead_letters::error_class.eq(poison.class),
            dead_letters::error.eq(&poison.reason),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Lists at most `limit` dead letters that were not copied to their topic yet.
pub(crate) async fn list_uncopied(
    conn: &mut AsyncPgConnection,
    projection: &str,
    limit: i64,
) -> QueryResult<Vec<DeadLetter>> {
    of_projection(projection)
        .filter(dead_letters::in_topic.eq(false))
        .order(dead_letters::dead_letter_id)
        .limit(limit)
        .select(DeadLetter::as_select())
        .load(conn)
        .await
}

/// Marks dead letters as copied to their topic.
pub(crate) async fn mark_in_topic(conn: &mut AsyncPgConnection, ids: &[i64]) -> QueryResult<()> {
    diesel::update(dead_letters::table.filter(dead_letters::dead_letter_id.eq_any(ids)))
        .set(dead_letters::in_topic.eq(true))
        .execute(conn)
        .await?;
    Ok(())
}
