//! What Postgres does for a publisher: CPU by session, and statements.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use lab::{Lab, RELAY_ROLE, cpu_s};
use serde::Serialize;

/// Selects the processes of Postgres, each with the session or task that its CPU is counted for.
const PROCESSES: &str = "
    select pid, case
        when application_name like 'outbox-relay%' then application_name
        when application_name like 'Debezium%' or backend_type = 'walsender' then 'Debezium'
        when backend_type = 'client backend' then 'commits'
        else 'background processes'
    end
    from pg_stat_activity where pid <> pg_backend_pid()";

/// The CPU of Postgres' processes at one time.
pub(crate) struct CpuSample(HashMap<i32, (String, f64)>);

impl CpuSample {
    pub(crate) async fn take(lab: &Lab) -> Result<Self> {
        let mut processes = HashMap::new();
        for row in lab.sql().await?.query(PROCESSES, &[]).await? {
            let (pid, session): (i32, String) = (row.get(0), row.get(1));
            // A process that has ended meanwhile is left out.
            if let Ok(used) = cpu_s(pid.unsigned_abs()) {
                processes.insert(pid, (session, used));
            }
        }
        Ok(Self(processes))
    }

    /// Returns the CPU seconds since `earlier` by session. Processes that have ended are left out.
    pub(crate) fn since(&self, earlier: &Self) -> BTreeMap<String, f64> {
        let mut by_session = BTreeMap::new();
        for (pid, (session, used)) in &self.0 {
            let before = earlier.0.get(pid).map_or(0.0, |(_, used)| *used);
            *by_session.entry(session.clone()).or_default() += used - before;
        }
        by_session
    }
}

/// The number of statements that are listed.
const LISTED_STATEMENTS: usize = 12;

/// The relay's entries in `pg_stat_statements`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Statements {
    pub(crate) entries: usize,
    pub(crate) most_expensive: Vec<Statement>,
}

/// A statement of the relay in `pg_stat_statements`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Statement {
    /// The start of the text.
    pub(crate) text: String,
    pub(crate) calls: i64,
    pub(crate) total_ms: f64,
}

/// Clears `pg_stat_statements`.
pub(crate) async fn reset_statements(lab: &Lab) -> Result<()> {
    let reset = "select pg_stat_statements_reset()";
    lab.sql().await?.query(reset, &[]).await?;
    Ok(())
}

/// Returns the relay's statements since the last reset, the most expensive first, and how many entries there are.
pub(crate) async fn relay_statements(lab: &Lab) -> Result<Statements> {
    let sql = "select left(regexp_replace(query, '\\s+', ' ', 'g'), 60), calls, total_exec_time
               from pg_stat_statements where userid = $1::text::regrole order by 3 desc";
    let rows = lab.sql().await?.query(sql, &[&RELAY_ROLE]).await?;
    let statements = rows.iter().map(|row| Statement {
        text: row.get(0),
        calls: row.get(1),
        total_ms: row.get(2),
    });
    Ok(Statements {
        entries: rows.len(),
        most_expensive: statements.take(LISTED_STATEMENTS).collect(),
    })
}
