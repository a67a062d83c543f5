//! The schemas of the new tables and of the replaced ones.

use anyhow::{Result, ensure};
use diesel::{
    QueryableByName,
    sql_types::{Bool, Text},
};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
};

use crate::offsets::Offsets;

/// The schema of the new tables.
pub(super) const NEW: &str = "projection_rebuild";
/// The schema of the replaced tables.
pub(super) const OLD: &str = "projection_replaced";

/// The key of the advisory lock that a rebuild holds.
pub(crate) const LOCK_KEY: &str = "hashtextextended('projection rebuild', 0)";

/// Drops the tables that a rebuild has replaced.
///
/// # Errors
/// Database errors; also if an object such as a view depends on one of the tables.
pub async fn drop_replaced(conn: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
    conn.batch_execute(&format!(
        "do $$
         declare replaced regclass;
         begin
             for replaced in
                 select oid from pg_class
                 where relnamespace = to_regnamespace('{OLD}') and relkind in ('r', 'p')
             loop
                 execute 'drop table ' || replaced;
             end loop;
             drop schema if exists {OLD};
         end $$"
    ))
    .await
}

#[derive(QueryableByName)]
struct Condition {
    #[diesel(sql_type = Bool)]
    is_true: bool,
}

async fn query_bool(conn: &mut AsyncPgConnection, condition: &str) -> Result<bool> {
    let Condition { is_true } = diesel::sql_query(format!("select {condition} as is_true"))
        .get_result(conn)
        .await?;
    Ok(is_true)
}

/// Returns the condition that the new table has the columns of the live one. A migration may have changed it.
fn same_columns(table: &str) -> String {
    let columns = |schema: &str| {
        format!(
            "array(select row(attname, atttypid, atttypmod, attnotnull)::text from pg_attribute
             where attrelid = to_regclass('{schema}.{table}') and attnum > 0 and not attisdropped
             order by attname)"
        )
    };
    format!("{} = {}", columns("public"), columns(NEW))
}

/// Creates the new tables, or keeps those of an interrupted rebuild of the same topic.
pub(super) async fn prepare_tables(
    conn: &mut AsyncPgConnection,
    tables: &[&str],
    offsets: &Offsets<'_>,
) -> Result<()> {
    let try_lock = format!("pg_try_advisory_lock({LOCK_KEY})");
    ensure!(
        query_bool(conn, &try_lock).await?,
        "another rebuild is running in this database"
    );
    ensure!(
        !query_bool(conn, &format!("to_regnamespace('{OLD}') is not null")).await?,
        "the tables that the last rebuild replaced still exist in the schema {OLD}. Inspect them, then drop \
         them with `projection rebuild --drop-old`."
    );
    let mut can_resume = offsets.exist(conn).await?;
    for table in tables {
        can_resume &= query_bool(conn, &same_columns(table)).await?;
    }
    if !can_resume {
        conn.transaction(async |conn| {
            let mut sql = format!("drop schema if exists {NEW} cascade; create schema {NEW};");
            for table in tables {
                sql += &format!("create table {NEW}.{table} (like public.{table} including all);");
            }
            conn.batch_execute(&sql).await?;
            // Left by the dropped tables.
            for table in ["projection_offsets", "dead_letters"] {
                diesel::sql_query(format!("delete from {table} where projection = $1"))
                    .bind::<Text, _>(offsets.projection)
                    .execute(conn)
                    .await?;
            }
            Ok::<_, diesel::result::Error>(())
        })
        .await?;
    }
    // A crash may lose the last commits. The offsets are lost with them, so the rebuild repeats them.
    conn.batch_execute(&format!(
        "set search_path = {NEW}, public; set synchronous_commit = off; set statement_timeout = '60s'"
    ))
    .await?;
    Ok(())
}
