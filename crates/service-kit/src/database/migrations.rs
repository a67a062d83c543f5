//! The schema that a service needs, and whether a database has it.

use std::collections::HashSet;

use diesel::{
    migration::{Migration, MigrationSource},
    pg::Pg,
};
use diesel_async::{
    AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl as _,
    SimpleAsyncConnection as _,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _};
use secrecy::{ExposeSecret as _, SecretString};

use super::Pool;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serialises migrations of several replicas that start at once.
const MIGRATION_LOCK: &str = "select pg_advisory_lock(hashtextextended('schema migrations', 0))";

/// What a database says of itself: the migrations that were run in it, each with whether it is
/// read-only, as a standby is.
const STATE: &str = "select version, current_setting('transaction_read_only')::boolean as read_only
    from __diesel_schema_migrations";

/// Brings the schema up to date: runs, in order, what of `migrations` was not run yet. The last of
/// them are the service's own, with versions that no other service has. Returns the names of those
/// that were run.
///
/// # Errors
/// If the database can't be reached, belongs to another service, or a migration fails, which is then
/// rolled back.
pub async fn migrate(
    url: &SecretString,
    migrations: &[EmbeddedMigrations],
) -> Result<Vec<String>, BoxError> {
    let mut conn = AsyncPgConnection::establish(url.expose_secret()).await?;
    conn.batch_execute(MIGRATION_LOCK).await?;
    // The connection, and the lock with it, ends with this function.
    let mut harness = AsyncMigrationHarness::new(conn);
    let applied = harness.applied_migrations()?;
    let applied: Vec<String> = applied.iter().map(ToString::to_string).collect();
    check_owner(&applied, &versions(migrations)?)?;
    let mut names = Vec::new();
    for source in migrations {
        let versions = harness.run_pending_migrations(Borrowed(source))?;
        names.extend(versions.iter().map(ToString::to_string));
    }
    Ok(names)
}

/// Whether the database answers, can be written to, and has every migration.
///
/// # Errors
/// What is wrong, for a person to read.
pub async fn probe(pool: &Pool, migrations: &[EmbeddedMigrations]) -> Result<(), String> {
    let mut conn = pool
        .get()
        .await
        .map_err(|err| format!("no connection: {err}"))?;
    let rows: Vec<Row> = diesel::sql_query(STATE)
        .load(&mut conn)
        .await
        .map_err(|err| format!("no schema ({err}): run the subcommand migrate"))?;
    if rows.iter().any(|row| row.read_only) {
        return Err("the database is read-only; is it a standby?".to_owned());
    }
    let applied: Vec<String> = rows.into_iter().map(|row| row.version).collect();
    let needed = versions(migrations).map_err(|err| err.to_string())?;
    check_owner(&applied, &needed)?;
    match needed.concat().iter().find(|v| !applied.contains(v)) {
        Some(version) => Err(format!(
            "migration {version} is missing: run the subcommand migrate"
        )),
        None => Ok(()),
    }
}

/// A database with migrations that are not ours is another service's, unless it has ours too: then
/// they are those of a newer version of us, which may be starting at this moment.
fn check_owner(applied: &[String], needed: &[Vec<String>]) -> Result<(), String> {
    let is_ours = needed
        .last()
        .is_some_and(|own| own.iter().any(|version| applied.contains(version)));
    let foreign = applied.iter().find(|v| !needed.concat().contains(v));
    match foreign {
        Some(version) if !is_ours => Err(format!(
            "this database belongs to another service: it has migration {version}, which this \
             service does not know"
        )),
        _ => Ok(()),
    }
}

/// The versions of the migrations of each source.
fn versions(migrations: &[EmbeddedMigrations]) -> Result<Vec<Vec<String>>, BoxError> {
    let versions = |source| {
        let migrations = Borrowed(source).migrations()?;
        let versions = migrations.iter().map(|m| m.name().version().to_string());
        Ok(versions.collect())
    };
    let versions: Vec<Vec<String>> = migrations
        .iter()
        .map(versions)
        .collect::<Result<_, BoxError>>()?;
    // diesel would take the second for one that was run already.
    let mut known = HashSet::new();
    match versions
        .iter()
        .flatten()
        .find(|version| !known.insert(*version))
    {
        None => Ok(versions),
        Some(version) => Err(format!("two migrations have the version {version}").into()),
    }
}

/// diesel takes migrations by value and can't clone them.
struct Borrowed<'a>(&'a EmbeddedMigrations);

impl MigrationSource<Pg> for Borrowed<'_> {
    fn migrations(&self) -> diesel::migration::Result<Vec<Box<dyn Migration<Pg>>>> {
        self.0.migrations()
    }
}

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = diesel::sql_types::Text)]
    version: String,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    read_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sources_with_one_version_are_rejected() {
        assert!(versions(&[crate::idempotency::MIGRATIONS]).is_ok());
        let twice = [
            crate::idempotency::MIGRATIONS,
            crate::idempotency::MIGRATIONS,
        ];
        let rejected = versions(&twice).map_err(|err| err.to_string());
        assert!(rejected.is_err_and(|err| err.starts_with("two migrations have the version")));
    }
}
