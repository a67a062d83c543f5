//! The schemas that the tables are in before and behind the swap.

use anyhow::{Result, ensure};
use diesel::{
    QueryableByName,
    sql_types::{Bool, Text},
};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
};

use crate::offsets::Offsets;

/// Where the tables are built ...
pub(super) const NEW: &str = "projection_rebuild";
/// ... and where those go that they replace.
pub(super) const OLD: &str = "projection_replaced";

/// Drops the tables that a rebuild has replaced.
///
/// # Errors
/// The database's; also if something depends on one of them, such as a view, which still shows what
/// was replaced.
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
struct Found {
    #[diesel(sql_type = Bool)]
    found: bool,
}

async fn is(conn: &mut AsyncPgConnection, condition: &str) -> Result<bool> {
    let Found { found } = diesel::sql_query(format!("select {condition} as found"))
        .get_result(conn)
        .await?;
    Ok(found)
}

/// Whether the new table has the columns that the one in use has: a migration may have come between.
fn is_alike(table: &str) -> String {
    let columns = |schema: &str| {
        format!(
            "array(select row(attname, atttypid, atttypmod, attnotnull)::text from pg_attribute
             where attrelid = to_regclass('{schema}.{table}') and attnum > 0 and not attisdropped
             order by attname)"
        )
    };
    format!("{} = {}", columns("public"), columns(NEW))
}

/// Makes the new tables, unless an earlier run has made the same ones from the same topic.
pub(super) async fn prepare(
    conn: &mut AsyncPgConnection,
    tables: &[&str],
    offsets: &Offsets<'_>,
) -> Result<()> {
    let alone = "pg_try_advisory_lock(hashtextextended('projection rebuild', 0))";
    ensure!(is(conn, alone).await?, "somebody else is rebuilding it");
    ensure!(
        !is(conn, &format!("to_regnamespace('{OLD}') is not null")).await?,
        "the tables that the last rebuild has replaced are still there; look at them, then run the \
         same with --drop-old"
    );
    let mut can_go_on = offsets.are_known(conn).await?;
    for table in tables {
        can_go_on &= is(conn, &is_alike(table)).await?;
    }
    if !can_go_on {
        conn.transaction(async |conn| {
            let mut sql = format!("drop schema if exists {NEW} cascade; create schema {NEW};");
            for table in tables {
                sql += &format!("create table {NEW}.{table} (like public.{table} including all);");
            }
            conn.batch_execute(&sql).await?;
            // Of tables that were dropped just now, or by hand.
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
    // A rebuild is killed and begun again, so that it may lose its last commits: the offsets go with
    // them.
    conn.batch_execute(&format!(
        "set search_path = {NEW}, public; set synchronous_commit = off; set statement_timeout = '60s'"
    ))
    .await?;
    Ok(())
}
