//! Database sessions for tests and the demo.

use std::{collections::BTreeSet, ops::Deref, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tokio_postgres::{Client, NoTls};

use crate::eventually;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A database session.
pub struct Sql(Client);

/// Splits a file into statements. Comments must have their own lines, and semicolons in literals are allowed only inside
/// `$$` quotes.
pub fn split_statements(file: &str) -> Vec<String> {
    let is_code = |line: &&str| !line.starts_with("--");
    let code: Vec<&str> = file.lines().filter(is_code).collect();
    let mut statements = Vec::new();
    let mut statement = String::new();
    for part in code.join("\n").split_inclusive(';') {
        statement += part;
        if !statement.trim().is_empty() && statement.matches("$$").count().is_multiple_of(2) {
            statements.push(std::mem::take(&mut statement));
        }
    }
    statements
}

/// Table, column and diesel type.
type Columns = BTreeSet<(String, String, String)>;

impl Sql {
    /// Connects; the connection runs in a background task.
    ///
    /// # Errors
    /// If the server is unreachable or rejects the connection.
    pub async fn connect(url: &str) -> Result<Self> {
        let connecting = tokio_postgres::connect(url, NoTls);
        let (client, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .context("failed to connect to Postgres within 5 s")??;
        tokio::spawn(connection);
        Ok(Self(client))
    }

    pub fn into_client(self) -> Client {
        self.0
    }

    /// Returns the number that a query selects; 0 if it is null or there is no row.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn count(&self, query: &str) -> Result<i64> {
        let query = format!("select coalesce(({query}), 0)::bigint");
        Ok(self.0.query_one(&query, &[]).await?.get(0))
    }

    /// Waits until a query selects the number `expected`.
    ///
    /// # Errors
    /// If the query fails, or after [`WAIT_TIMEOUT`](crate::WAIT_TIMEOUT).
    pub async fn wait_for(&self, query: &str, expected: i64) -> Result<()> {
        let found = async || Ok((self.count(query).await? == expected).then_some(()));
        eventually(&format!("result {expected} of {query}"), found).await
    }

    /// Sets a configuration parameter for all sessions that connect to this database from now on.
    ///
    /// # Errors
    /// If the parameter or the value is invalid, or the role may not set it; a superuser may set all.
    pub async fn set_database_default(&self, name: &str, value: &str) -> Result<()> {
        let format = "select format('alter database %I set %I = %L', current_database(), $1::text, $2::text)";
        let statement: String = self.0.query_one(format, &[&name, &value]).await?.get(0);
        let altered = self.0.batch_execute(&statement).await;
        altered.with_context(|| format!("failed to set {name} of the database"))
    }

    /// Moves the clock of new sessions on this database ahead by an interval such as `25 hours`. Column defaults still
    /// date rows by the real time, as if the clock jumped after they were written.
    ///
    /// Shadows `now()` and `clock_timestamp()`, which must not be qualified, and counts their calls.
    ///
    /// # Errors
    /// If Postgres returns an error.
    pub async fn move_clock_ahead(&self, interval: &str) -> Result<()> {
        let mut statements = "create schema clock; create sequence clock.readings;".to_owned();
        for function in ["now", "clock_timestamp"] {
            statements += &format!(
                "create function clock.{function}() returns timestamptz language sql as $$
                     select pg_catalog.{function}() + interval '{interval}' from nextval('clock.readings') $$;"
            );
        }
        statements += "do $$ begin
            execute format('alter database %I set search_path = clock, pg_catalog, public', current_database());
        end $$";
        Ok(self.0.batch_execute(&statements).await?)
    }

    /// Waits until a session has read the clock of [`move_clock_ahead`](Self::move_clock_ahead).
    ///
    /// # Errors
    /// If the query fails, or after [`WAIT_TIMEOUT`](crate::WAIT_TIMEOUT).
    pub async fn wait_for_clock_reading(&self) -> Result<()> {
        let is_read = "select count(*) from clock.readings where is_called";
        self.wait_for(is_read, 1).await
    }

    /// Checks that diesel's `table!` macros, formatted by rustfmt, match the tables of this database. Columns of type xid8,
    /// which diesel does not support, are ignored. Nothing else detects a difference.
    ///
    /// # Errors
    /// If they differ; the error lists the differences.
    pub async fn validate_schema(&self, source: &str) -> Result<()> {
        let (tables, declared) = declared_columns(source)?;
        let query =
            "select table_name::text, column_name::text, data_type::text, is_nullable = 'YES'
                     from information_schema.columns
                     where table_schema = 'public' and table_name = any ($1)
                       and data_type <> 'xid8'";
        let mut found = Columns::new();
        for row in self.0.query(query, &[&tables]).await? {
            let kind = diesel_type(row.get(2))?;
            let kind = match row.get(3) {
                true => format!("Nullable<{kind}>"),
                false => kind.to_owned(),
            };
            found.insert((row.get(0), row.get(1), kind));
        }
        let differences: Vec<_> = declared.symmetric_difference(&found).collect();
        ensure!(
            differences.is_empty(),
            "columns that only one side has: {differences:?}"
        );
        Ok(())
    }
}

impl Deref for Sql {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

fn declared_columns(source: &str) -> Result<(Vec<String>, Columns)> {
    let (mut tables, mut columns) = (Vec::<String>::new(), Columns::new());
    for line in source.lines().map(str::trim) {
        if let Some((column, kind)) = line.split_once(" -> ") {
            let table = tables
                .last()
                .context("a column precedes the first table")?
                .clone();
            columns.insert((table, column.into(), kind.trim_end_matches(',').into()));
        } else if let Some((table, _)) = line.split_once(" (") {
            tables.push(table.into());
        }
    }
    if tables.is_empty() || tables.len() != source.matches("table!").count() {
        bail!("failed to parse all tables, found {tables:?}");
    }
    Ok((tables, columns))
}

/// Returns the diesel type of a Postgres type.
fn diesel_type(data_type: &str) -> Result<&'static str> {
    Ok(match data_type {
        "bigint" => "BigInt",
        "boolean" => "Bool",
        "text" => "Text",
        "timestamp with time zone" => "Timestamptz",
        "uuid" => "Uuid",
        other => bail!("unknown column type {other}; add it to diesel_type()"),
    })
}
