//! A look into a database, as a test or a demo takes it.

use std::{collections::BTreeSet, ops::Deref, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tokio_postgres::{Client, NoTls};

use crate::eventually;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A session with a database.
pub struct Sql(Client);

/// The statements of a file, in which comments have lines of their own and no text has a semicolon, but
/// for blocks in dollar quotes.
pub fn statements(file: &str) -> Vec<String> {
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

/// Table, column, type in diesel's words.
type Columns = BTreeSet<(String, String, String)>;

impl Sql {
    /// Connects, and lets the connection run in the background.
    ///
    /// # Errors
    /// There is no server, or it rejects.
    pub async fn connect(url: &str) -> Result<Self> {
        let connecting = tokio_postgres::connect(url, NoTls);
        let (client, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .context("timed out")??;
        tokio::spawn(connection);
        Ok(Self(client))
    }

    /// The bare session, for those who want one of their own.
    pub fn into_client(self) -> Client {
        self.0
    }

    /// What a query counts; none as 0.
    ///
    /// # Errors
    /// The query's.
    pub async fn count(&self, query: &str) -> Result<i64> {
        let query = format!("select coalesce(({query}), 0)::bigint");
        Ok(self.0.query_one(&query, &[]).await?.get(0))
    }

    /// Waits until a query counts `wanted`.
    ///
    /// # Errors
    /// The query's, or that it never did.
    pub async fn wait_for(&self, query: &str, wanted: i64) -> Result<()> {
        let found = async || Ok((self.count(query).await? == wanted).then_some(()));
        eventually(&format!("{wanted} of {query}"), found).await
    }

    /// Checks that the tables of diesel's `table!` macros, as rustfmt lays them out, are those of
    /// this database, but for columns of the type xid8, which diesel does not know. Nothing else
    /// notices when they are not.
    ///
    /// # Errors
    /// They differ, and in what.
    pub async fn check_schema(&self, source: &str) -> Result<()> {
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
        ensure!(differences.is_empty(), "only on one side: {differences:?}");
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
            let table = tables.last().context("a column before any table")?.clone();
            columns.insert((table, column.into(), kind.trim_end_matches(',').into()));
        } else if let Some((table, _)) = line.split_once(" (") {
            tables.push(table.into());
        }
    }
    if tables.is_empty() || tables.len() != source.matches("table!").count() {
        bail!("not every table was read: {tables:?}");
    }
    Ok((tables, columns))
}

/// The diesel type for a type of Postgres.
fn diesel_type(data_type: &str) -> Result<&'static str> {
    Ok(match data_type {
        "bigint" => "BigInt",
        "boolean" => "Bool",
        "text" => "Text",
        "timestamp with time zone" => "Timestamptz",
        "uuid" => "Uuid",
        other => bail!("no table had a column of type {other} yet; add it here"),
    })
}
