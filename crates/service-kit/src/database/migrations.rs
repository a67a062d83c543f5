//! Runs migrations, and checks that a database has them.

use std::{collections::HashSet, time::Duration};

use diesel::{
    migration::{Migration, MigrationSource},
    pg::Pg,
};
use diesel_async::{
    AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _};
use postgres_session::{DatabaseUrl, SessionOptions, connect_diesel};

use super::Pool;

/// The limit on the response to a [`probe`].
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serializes the migrations of replicas that start at the same time.
const MIGRATION_LOCK: &str = "select pg_advisory_lock(hashtextextended('schema migrations', 0))";

/// The limit on a statement of a migration, which takes as long as its table is large.
const MIGRATION_TIMEOUT: Duration = Duration::from_hours(1);

/// The `lock_timeout`: a migration waits so long for that of another replica, and for a lock on a table.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);

/// The applied migrations, each with the database's read-only state, which is true on a standby.
const APPLIED_MIGRATIONS: &str =
    "select version, current_setting('transaction_read_only')::boolean as read_only
    from __diesel_schema_migrations";

const DATABASE_ENCODING: &str = "select current_setting('server_encoding') as name";

/// Runs the pending ones of `migrations`, in order, and returns their names. The last source is the
/// service's own; its versions must be unique across services.
///
/// # Errors
/// If the database is unreachable, has another encoding than UTF8, or belongs to another service, or a migration fails,
/// which is then rolled back.
pub async fn migrate(
    program: &'static str,
    url: &DatabaseUrl,
    migrations: &[EmbeddedMigrations],
) -> Result<Vec<String>, BoxError> {
    let options = SessionOptions {
        statement_timeout: MIGRATION_TIMEOUT,
        response_timeout: Some(MIGRATION_TIMEOUT + Duration::from_secs(2)),
        lock_timeout: LOCK_TIMEOUT,
        ..SessionOptions::for_service(program)
    };
    let mut conn = connect_diesel(url, &options).await?;
    validate_encoding(&mut conn).await?;
    conn.batch_execute(MIGRATION_LOCK).await?;
    // Dropping the connection at the end of this function releases the lock.
    let mut harness = AsyncMigrationHarness::new(conn);
    let applied = harness.applied_migrations()?;
    let applied: Vec<String> = applied.iter().map(ToString::to_string).collect();
    validate_owner(&applied, &list_versions(migrations)?)?;
    let mut names = Vec::new();
    for source in migrations {
        let versions = harness.run_pending_migrations(Borrowed(source))?;
        names.extend(versions.iter().map(ToString::to_string));
    }
    Ok(names)
}

/// Checks that the database responds, is encoded in UTF8, is writable, and has every migration.
///
/// # Errors
/// A description of the problem for an operator.
pub async fn probe(pool: &Pool, migrations: &[EmbeddedMigrations]) -> Result<(), String> {
    let mut session = pool.get().await.map_err(|err| err.to_string())?;
    let reading = read_applied_migrations(&mut session);
    let Ok(read) = tokio::time::timeout(PROBE_TIMEOUT, reading).await else {
        session.discard();
        return Err(format!(
            "no response from the database within {PROBE_TIMEOUT:?}"
        ));
    };
    let rows = read?;
    if rows.iter().any(|row| row.read_only) {
        return Err("database is read-only, probably a standby".to_owned());
    }
    let applied: Vec<String> = rows.into_iter().map(|row| row.version).collect();
    let needed = list_versions(migrations).map_err(|err| err.to_string())?;
    validate_owner(&applied, &needed)?;
    match needed.concat().iter().find(|v| !applied.contains(v)) {
        Some(version) => Err(format!(
            "migration {version} is missing; run the migrate command"
        )),
        None => Ok(()),
    }
}

async fn read_applied_migrations(
    conn: &mut AsyncPgConnection,
) -> Result<Vec<AppliedMigration>, String> {
    validate_encoding(conn).await?;
    let rows = diesel::sql_query(APPLIED_MIGRATIONS).load(conn).await;
    rows.map_err(|err| {
        format!("failed to read the applied migrations: {err}; run the migrate command")
    })
}

/// Rejects a database that cannot store every character.
async fn validate_encoding(conn: &mut AsyncPgConnection) -> Result<(), String> {
    let encoding = diesel::sql_query(DATABASE_ENCODING).get_result(conn).await;
    let Encoding { name } =
        encoding.map_err(|err| format!("failed to read the encoding of the database: {err}"))?;
    if name == "UTF8" {
        return Ok(());
    }
    Err(format!("database encoding is {name}, must be UTF8"))
}

/// Rejects the database of another service: one with unknown migrations and none of our own. Unknown
/// migrations beside our own come from a newer release that may be rolling out.
fn validate_owner(applied: &[String], needed: &[Vec<String>]) -> Result<(), String> {
    let has_own = needed
        .last()
        .is_some_and(|own| own.iter().any(|version| applied.contains(version)));
    let foreign = applied.iter().find(|v| !needed.concat().contains(v));
    match foreign {
        Some(version) if !has_own => Err(format!(
            "database belongs to another service: it has the unknown migration {version}"
        )),
        _ => Ok(()),
    }
}

/// Returns the migration versions of each source.
fn list_versions(migrations: &[EmbeddedMigrations]) -> Result<Vec<Vec<String>>, BoxError> {
    let versions = |source| {
        let migrations = Borrowed(source).migrations()?;
        let versions = migrations.iter().map(|m| m.name().version().to_string());
        Ok(versions.collect())
    };
    let versions: Vec<Vec<String>> = migrations
        .iter()
        .map(versions)
        .collect::<Result<_, BoxError>>()?;
    // diesel would treat the second migration as already applied.
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

/// A borrowed migration source: diesel takes sources by value and can't clone them.
struct Borrowed<'a>(&'a EmbeddedMigrations);

impl MigrationSource<Pg> for Borrowed<'_> {
    fn migrations(&self) -> diesel::migration::Result<Vec<Box<dyn Migration<Pg>>>> {
        self.0.migrations()
    }
}

#[derive(diesel::QueryableByName)]
struct AppliedMigration {
    #[diesel(sql_type = diesel::sql_types::Text)]
    version: String,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    read_only: bool,
}

#[derive(diesel::QueryableByName)]
struct Encoding {
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sources_with_one_version_are_rejected() {
        assert!(list_versions(&[crate::idempotency::MIGRATIONS]).is_ok());
        let twice = [
            crate::idempotency::MIGRATIONS,
            crate::idempotency::MIGRATIONS,
        ];
        let rejected = list_versions(&twice).map_err(|err| err.to_string());
        assert!(rejected.is_err_and(|err| err.starts_with("two migrations have the version")));
    }
}
