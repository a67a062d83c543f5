//! The SQL of the records that can't be applied: where they go, and what becomes of them there.

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

/// A record that could not be applied, without its payload and its headers.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = dead_letters)]
pub struct Summary {
    /// Its number here.
    pub dead_letter_id: i64,
    /// The topic that it was found in ...
    pub topic: String,
    /// ... and where in it.
    pub partition: i32,
    /// The offset in the partition.
    pub record_offset: i64,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// What kind of fault it has.
    pub error_class: String,
    /// What is wrong with it. It holds nothing of the payload.
    pub error: String,
    /// When it was set aside.
    pub dead_lettered_at: DateTime<Utc>,
    /// When it was erased what the record held, if it was: payload and headers, and its key if that
    /// was for its age.
    pub erased_at: Option<DateTime<Utc>>,
}

/// A record that could not be applied, as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = dead_letters)]
pub struct DeadLetter {
    /// All but what the record holds.
    #[diesel(embed)]
    pub summary: Summary,
    /// The record's value.
    pub payload: Option<Vec<u8>>,
    header_names: Vec<String>,
    header_values: Vec<Option<Vec<u8>>>,
}

const ERASE: &str = "
    update dead_letters set payload = null, header_names = '{}', header_values = '{}',
        erased_at = now()
    where key = any ($1) and erased_at is null";

/// The key as well: it is whatever somebody has written. A replica that does the same at the moment
/// is left alone, and whoever applies one once more.
const ERASE_OLDER_THAN: &str = "
    update dead_letters set key = null, payload = null, header_names = '{}', header_values = '{}',
        erased_at = now()
    where dead_letter_id in (
        select dead_letter_id from dead_letters
        where erased_at is null and dead_lettered_at < now() - make_interval(secs => $1)
        order by dead_lettered_at limit $2 for update skip locked)";

impl DeadLetter {
    /// The record's headers, in their order.
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

/// Sets a record aside, untouched. It may have been before, when a projection is rebuilt.
pub(crate) async fn dead_lettered(
    conn: &mut AsyncPgConnection,
    offsets: &Offsets<'_>,
    record: &Record<'_>,
    poison: &Poison,
) -> QueryResult<()> {
    let (names, values): (Vec<&str>, Vec<Option<&[u8]>>) = record.headers().iter().copied().unzip();
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

/// Those of a projection.
#[auto_type(no_type_alias)]
fn of<'a>(projection: &'a str) -> _ {
    dead_letters::table.filter(dead_letters::projection.eq(projection))
}

/// At most `limit` dead letters of a projection behind the one with the number `after`, the oldest
/// first. Each may hold as much as a record does; that is not read.
///
/// # Errors
/// The database's.
pub async fn list(
    conn: &mut AsyncPgConnection,
    projection: &str,
    after: i64,
    limit: i64,
) -> QueryResult<Vec<Summary>> {
    of(projection)
        .filter(dead_letters::dead_letter_id.gt(after))
        .order(dead_letters::dead_letter_id)
        .limit(limit)
        .select(Summary::as_select())
        .load(conn)
        .await
}

/// A dead letter of a projection; none if there is none with this number.
///
/// # Errors
/// The database's.
pub async fn find(
    conn: &mut AsyncPgConnection,
    projection: &str,
    id: i64,
) -> QueryResult<Option<DeadLetter>> {
    of(projection)
        .filter(dead_letters::dead_letter_id.eq(id))
        .select(DeadLetter::as_select())
        .first(conn)
        .await
        .optional()
}

/// The same, which nobody else can change until the transaction ends.
pub(crate) async fn lock(
    conn: &mut AsyncPgConnection,
    projection: &str,
    id: i64,
) -> QueryResult<Option<DeadLetter>> {
    of(projection)
        .filter(dead_letters::dead_letter_id.eq(id))
        .select(DeadLetter::as_select())
        .for_update()
        .first(conn)
        .await
        .optional()
}

/// Forgets a dead letter for good; returns whether there was one. Its copy in the topic stays there.
///
/// # Errors
/// The database's.
pub async fn discard(conn: &mut AsyncPgConnection, projection: &str, id: i64) -> QueryResult<bool> {
    let dead_letter = of(projection).filter(dead_letters::dead_letter_id.eq(id));
    Ok(diesel::delete(dead_letter).execute(conn).await? > 0)
}

/// Erases what the dead letters with these keys hold, whatever projection has set them aside; the rows
/// stay. Call it in the transaction that applies the end of those whom the keys name, and before what
/// locks their rows: so does [`redrive`](crate::redrive), and neither then waits for the other.
///
/// # Errors
/// The database's.
pub async fn erase(conn: &mut AsyncPgConnection, keys: &[String]) -> QueryResult<()> {
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    diesel::sql_query(ERASE)
        .bind::<Array<Binary>, _>(keys)
        .execute(conn)
        .await?;
    Ok(())
}

/// Erases what at most `limit` dead letters hold that were set aside so long ago; returns how many.
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

/// Notes what is wrong with a dead letter now.
pub(crate) async fn judge(
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

/// At most `limit` dead letters that are not in their topic yet.
pub(crate) async fn pending(
    conn: &mut AsyncPgConnection,
    projection: &str,
    limit: i64,
) -> QueryResult<Vec<DeadLetter>> {
    of(projection)
        .filter(dead_letters::in_topic.eq(false))
        .order(dead_letters::dead_letter_id)
        .limit(limit)
        .select(DeadLetter::as_select())
        .load(conn)
        .await
}

/// Notes that dead letters are in their topic.
pub(crate) async fn mark_in_topic(conn: &mut AsyncPgConnection, ids: &[i64]) -> QueryResult<()> {
    diesel::update(dead_letters::table.filter(dead_letters::dead_letter_id.eq_any(ids)))
        .set(dead_letters::in_topic.eq(true))
        .execute(conn)
        .await?;
    Ok(())
}
