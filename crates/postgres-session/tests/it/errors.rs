//! The SQLSTATE of an error is known in every language.

use anyhow::{Context as _, Result};
use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use postgres_session::{connect_diesel, is_data_error, is_unavailable, sqlstate};

use crate::{OPTIONS, create_database};

async fn fail(session: &mut AsyncPgConnection, sql: &str) -> Result<Error> {
    let result = diesel::sql_query(sql).execute(session).await;
    result.err().with_context(|| format!("accepted: {sql}"))
}

fn information(err: &Error) -> Option<&(dyn DatabaseErrorInformation + Send + Sync)> {
    match err {
        Error::DatabaseError(_, information) => Some(&**information),
        _ => None,
    }
}

#[tokio::test]
async fn errors_are_classified_by_sqlstate_in_every_language() -> Result<()> {
    for (language, word) in [("C", "division"), ("de_DE.utf8", "Division durch Null")] {
        let (url, sql) = create_database("language").await?;
        sql.set_database_default("lc_messages", language).await?;
        sql.batch_execute(
            "create table things (name varchar(3) primary key, amount integer check (amount > 0))",
        )
        .await?;
        sql.batch_execute("insert into things values ('abc', 1)")
            .await?;
        let mut session = connect_diesel(&url.as_str().into(), &OPTIONS).await?;
        let division = fail(&mut session, "select 1 / 0").await?;
        let message = information(&division)
            .context("an error of Postgres")?
            .message();
        assert!(message.contains(word), "{message}");
        for (statement, code, is_data, is_temporary) in [
            ("select 1 / 0", "22012", true, false),
            (
                "insert into things values ('abcd', 1)",
                "22001",
                true,
                false,
            ),
            (
                "insert into things values ('b', 3000000000)",
                "22003",
                true,
                false,
            ),
            ("insert into things values ('abc', 1)", "23505", true, false),
            ("insert into things values ('c', 0)", "23514", true, false),
            ("select nothing", "42703", false, false),
            (
                "do $$ begin raise exception sqlstate '57014'; end $$",
                "57014",
                false,
                true,
            ),
            (
                "do $$ begin raise exception sqlstate '40P01'; end $$",
                "40P01",
                false,
                true,
            ),
            (
                "do $$ begin raise exception sqlstate '55P03'; end $$",
                "55P03",
                false,
                true,
            ),
            (
                "do $$ begin raise exception sqlstate '53300'; end $$",
                "53300",
                false,
                true,
            ),
            (
                "do $$ begin raise exception sqlstate '25006'; end $$",
                "25006",
                false,
                true,
            ),
            // A bug of the caller.
            (
                "do $$ begin raise exception sqlstate '25001'; end $$",
                "25001",
                false,
                false,
            ),
        ] {
            let err = fail(&mut session, statement).await?;
            let state = sqlstate(&err).with_context(|| format!("no SQLSTATE: {err}"))?;
            assert_eq!(state.code(), code, "{statement}");
            assert_eq!(is_data_error(&state), is_data, "{statement}");
            assert_eq!(is_unavailable(&err), is_temporary, "{statement}");
        }
        // The other fields are kept.
        let taken = fail(&mut session, "insert into things values ('abc', 1)").await?;
        let Error::DatabaseError(DatabaseErrorKind::UniqueViolation, taken) = taken else {
            anyhow::bail!("another error: {taken}");
        };
        assert_eq!(taken.constraint_name(), Some("things_pkey"));
        assert_eq!(
            taken.details(),
            Some("SQLSTATE 23505"),
            "the detail quotes the row"
        );
    }
    Ok(())
}

/// diesel's own session shows why the SQLSTATE has to be kept.
#[tokio::test]
async fn without_this_crate_the_sqlstate_is_lost() -> Result<()> {
    let (url, _) = create_database("lost").await?;
    let mut session = AsyncPgConnection::establish(&url).await?;
    assert_eq!(sqlstate(&fail(&mut session, "select 1 / 0").await?), None);
    Ok(())
}

#[tokio::test]
async fn a_connection_error_names_address_and_cause_once() -> Result<()> {
    let url = "postgres://owner@127.0.0.1:1/db".into();
    let err = connect_diesel(&url, &OPTIONS)
        .await
        .err()
        .context("connected")?;
    let text = format!("{:#}", anyhow::Error::from(err));
    assert!(text.contains("127.0.0.1:1"), "{text}");
    assert_eq!(text.matches("Connection refused").count(), 1, "{text}");
    Ok(())
}

/// Their errors would have no SQLSTATE.
#[tokio::test]
async fn a_unix_socket_is_rejected_for_diesel() -> Result<()> {
    let url = "postgres://owner@%2Frun%2Fpostgresql/db".into();
    let err = connect_diesel(&url, &OPTIONS)
        .await
        .err()
        .context("connected")?;
    assert!(err.to_string().contains("must name a TCP host"), "{err}");
    Ok(())
}

#[tokio::test]
async fn a_terminated_session_is_unavailable() -> Result<()> {
    let (url, sql) = create_database("terminated").await?;
    let mut session = connect_diesel(&url.as_str().into(), &OPTIONS).await?;
    sql.batch_execute(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name = 'test'",
    )
    .await?;
    let err = fail(&mut session, "select 1").await?;
    assert!(is_unavailable(&err), "{err}");
    // The connection is closed now, which is not an error of Postgres.
    let err = fail(&mut session, "select 1").await?;
    assert_eq!(sqlstate(&err), None);
    assert!(is_unavailable(&err), "{err}");
    Ok(())
}
