//! Searches tables, topics, Kafka's files and logs for personal data.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use demo::System;
use devstack::{Sql, WorkDir};
use uuid::Uuid;

use crate::{compacting::addresses, notations::Notations};

/// All tables with rows, including system tables, because statistics contain values.
const TABLES: &str = "select c.oid::regclass::text
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm') and has_table_privilege(c.oid, 'select')
      and n.nspname <> 'information_schema'
    order by 1";

/// A unique mark in the e-mail and name of a user.
pub(crate) struct Person {
    pub(crate) mark: String,
}

impl Person {
    pub(crate) fn new() -> Self {
        let mark = Uuid::new_v4().simple().to_string();
        Self { mark }
    }

    pub(crate) fn email(&self, of: &str) -> String {
        format!("{of}-{}@example.com", self.mark)
    }

    pub(crate) fn name(&self, of: &str) -> String {
        format!("{of} {}", self.mark)
    }

    /// Returns the places that contain the mark: tables, topics, Kafka's files, logs.
    pub(crate) async fn find_traces(&self, system: &System) -> Result<Vec<String>> {
        let mut traces = self.search_databases(system).await?;
        let servers = addresses(system)?;
        for topic in servers.topic_names().await? {
            for record in servers.read_topic(&topic).await? {
                let payload = record.payload.clone().unwrap_or_default();
                let payload = String::from_utf8_lossy(&payload).into_owned();
                if format!("{record:?}{payload}").contains(&self.mark) {
                    traces.push(format!("topic {topic}"));
                }
            }
        }
        let work_dir = &system.servers.as_ref().context("servers")?.work_dir;
        traces.extend(self.search_files(work_dir)?);
        traces.sort();
        traces.dedup();
        Ok(traces)
    }

    async fn search_databases(&self, system: &System) -> Result<Vec<String>> {
        let mut traces = Vec::new();
        let names = system.stack.names();
        for (database, url) in [
            ("users", &names.users_database_url),
            ("orders", &names.orders_database_url),
        ] {
            let sql = Sql::connect(url).await?;
            // Shows bytes as text where possible.
            sql.batch_execute("set bytea_output = 'escape'").await?;
            for row in sql.query(TABLES, &[]).await? {
                let table: String = row.get(0);
                let mark = &self.mark;
                let query = format!("select count(*) from {table} t where t::text like '%{mark}%'");
                if sql.count(&query).await.with_context(|| table.clone())? > 0 {
                    // Strip the numbers of outbox partitions.
                    let name = table.trim_end_matches(|char: char| char.is_ascii_digit());
                    traces.push(format!("{database}: {name}"));
                }
            }
        }
        Ok(traces)
    }

    /// Searches the files of every partition, and the logs of every process in all notations.
    fn search_files(&self, work_dir: &WorkDir) -> Result<Vec<String>> {
        let mut traces = Vec::new();
        for partition in entries(&work_dir.path().join("kafka"))? {
            let name = partition.file_name().unwrap_or_default().to_string_lossy();
            let topic = name.rsplit_once('-').map_or(&*name, |(topic, _)| topic);
            if partition.is_dir() && entries(&partition)?.iter().any(|file| self.is_in(file)) {
                traces.push(format!("segment {topic}"));
            }
        }
        let notations = Notations::of(&self.mark);
        for log in entries(&work_dir.logs())? {
            if notations.are_in(&String::from_utf8_lossy(&fs::read(&log)?)) {
                traces.push(format!("log {}", log.display()));
            }
        }
        Ok(traces)
    }

    fn is_in(&self, file: &Path) -> bool {
        let is_log = file.extension().is_some_and(|extension| extension == "log");
        let mark = self.mark.as_bytes();
        // A segment may have been deleted by now. Kafka's other files contain only numbers.
        is_log && fs::read(file).is_ok_and(|bytes| bytes.windows(mark.len()).any(|w| w == mark))
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
