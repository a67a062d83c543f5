//! `src/schema.rs` tells diesel what the tables look like; nothing else notices when it is wrong.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

use crate::harness::TestService;

const SCHEMA: &str = include_str!("../../src/schema.rs");

/// Table, column, type.
type Columns = BTreeSet<(String, String, String)>;

/// The tables and the columns of `table!` macros, as rustfmt lays them out.
fn declared() -> Result<(Vec<String>, Columns)> {
    let (mut tables, mut columns) = (Vec::<String>::new(), Columns::new());
    for line in SCHEMA.lines().map(str::trim) {
        if let Some((column, kind)) = line.split_once(" -> ") {
            let table = tables.last().context("a column before any table")?.clone();
            columns.insert((table, column.into(), kind.trim_end_matches(',').into()));
        } else if let Some((table, _)) = line.split_once(" (") {
            tables.push(table.into());
        }
    }
    if tables.is_empty() || tables.len() != SCHEMA.matches("table!").count() {
        bail!("not every table was read: {tables:?}");
    }
    Ok((tables, columns))
}

/// The diesel type for a type of Postgres.
fn diesel_type(data_type: &str, nullable: bool) -> Result<String> {
    let kind = match data_type {
        "bigint" => "BigInt",
        "boolean" => "Bool",
        "text" => "Text",
        "timestamp with time zone" => "Timestamptz",
        "uuid" => "Uuid",
        other => bail!("schema.rs has no column of type {other} yet; add it here"),
    };
    Ok(if nullable {
        format!("Nullable<{kind}>")
    } else {
        kind.to_owned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_declared_schema_is_that_of_the_migrated_database() -> Result<()> {
    let service = TestService::start("schema").await?;
    let (tables, declared) = declared()?;
    let query = "select table_name::text, column_name::text, data_type::text, is_nullable = 'YES'
                 from information_schema.columns
                 where table_schema = 'public' and table_name = any ($1)";
    let mut found = Columns::new();
    for row in service.sql.query(query, &[&tables]).await? {
        let kind = diesel_type(row.get(2), row.get(3))?;
        found.insert((row.get(0), row.get(1), kind));
    }
    assert_eq!(declared, found);
    service.stop().await
}
