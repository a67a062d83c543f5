//! The table `[[source]]`: one outbox.

use std::{collections::BTreeMap, time::Duration};

use cli::{Problems, is_topic_char, is_topic_name};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::{
    DatabaseUrl, OnRejection, SourceConfig,
    mapping::{ColumnsTable, MappingTable},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceTable {
    pub(super) name: String,
    database_url: Option<SecretString>,
    database_url_file: Option<std::path::PathBuf>,
    table: Option<String>,
    topic: Option<String>,
    columns: Option<ColumnsTable>,
    #[serde(default)]
    header_columns: BTreeMap<String, String>,
    ce_source: Option<String>,
    #[serde(default = "default_content_type")]
    content_type: String,
    #[serde(default = "default_max_poll_interval_ms")]
    max_poll_interval_ms: u64,
    #[serde(default)]
    on_rejection: OnRejection,
    dead_letter_topic: Option<String>,
    #[serde(default = "default_max_consecutive_rejections")]
    max_consecutive_rejections: u32,
    #[serde(default = "default_retention_s")]
    retention_s: u64,
    #[serde(default = "default_max_page_rows")]
    max_page_rows: usize,
}

fn default_content_type() -> String {
    "application/json".to_owned()
}

fn default_max_poll_interval_ms() -> u64 {
    25
}

const MAX_NAME_CHARS: usize = 100;
/// One hour: a partition is written to again 70 minutes after its last row.
const MAX_RETENTION_S: u64 = 3_600;

fn default_retention_s() -> u64 {
    600
}

fn default_max_consecutive_rejections() -> u32 {
    100
}

fn default_max_page_rows() -> usize {
    20_000
}

/// Short compared with the ten minutes for which rows go to one partition.
const TRUNCATION_INTERVAL: Duration = Duration::from_secs(15);

impl SourceTable {
    pub(super) fn parse(
        self,
        variable: &dyn Fn(&str) -> Option<String>,
        problems: &mut Problems,
    ) -> Option<SourceConfig> {
        let name = self.name;
        // The name is part of a URI, of the transactional id and of environment variables.
        if !(1..=MAX_NAME_CHARS).contains(&name.len()) || !name.chars().all(is_topic_char) {
            problems.add(
                "source.name",
                format!(
                    "invalid name {name:?}; use 1 to {MAX_NAME_CHARS} of the characters a-z, A-Z, 0-9, ., _, -"
                ),
            );
        }
        let variable_name = format!("OUTBOX_RELAY_{}_DATABASE_URL", variable_part(&name));
        // Either variable overrides both settings in the file.
        let (url, file) = (
            variable(&variable_name),
            variable(&format!("{variable_name}_FILE")),
        );
        let is_overridden = url.is_some() || file.is_some();
        let (url, file) = if is_overridden {
            (url, file.map(Into::into))
        } else {
            (
                self.database_url.map(|url| url.expose_secret().to_owned()),
                self.database_url_file,
            )
        };
        let setting = match (is_overridden, &url) {
            (false, None) if file.is_none() => variable_name,
            (false, _) => format!("{name}.database_url"),
            (true, _) => variable_name,
        };
        let database_url = DatabaseUrl::parse(problems, &setting, url, file);
        if !(1..=60_000).contains(&self.max_poll_interval_ms) {
            problems.add(
                format!("{name}.max_poll_interval_ms"),
                "must be between 1 and 60000",
            );
        }
        if let Some(topic) = &self.dead_letter_topic
            && !is_topic_name(topic)
        {
            problems.add(
                format!("{name}.dead_letter_topic"),
                format!(
                    "invalid topic name {topic:?}; use 1 to 249 of the characters a-z, A-Z, 0-9, ., _, -"
                ),
            );
        }
        if self.retention_s > MAX_RETENTION_S {
            problems.add(
                format!("{name}.retention_s"),
                format!(
                    "must be at most {MAX_RETENTION_S}: each of the eight partitions takes the rows of ten minutes, so it \
                     receives new rows 70 minutes after its last one"
                ),
            );
        }
        if !(1..=1_000_000).contains(&self.max_page_rows) {
            problems.add(
                format!("{name}.max_page_rows"),
                "must be between 1 and 1000000",
            );
        }
        if !(1..=1_000_000).contains(&self.max_consecutive_rejections) {
            problems.add(
                format!("{name}.max_consecutive_rejections"),
                "must be between 1 and 1000000",
            );
        }
        let mapping = MappingTable {
            table: self.table,
            topic: self.topic,
            columns: self.columns,
            header_columns: self.header_columns,
        };
        let mapping = mapping.parse(&name, problems);
        Some(SourceConfig {
            mapping: mapping?,
            ce_source: self.ce_source.unwrap_or_else(|| format!("/{name}")),
            name,
            database_url: database_url?,
            content_type: self.content_type,
            max_poll_interval: Duration::from_millis(self.max_poll_interval_ms),
            on_rejection: self.on_rejection,
            dead_letter_topic: self.dead_letter_topic,
            max_consecutive_rejections: self.max_consecutive_rejections,
            retention: Duration::from_secs(self.retention_s),
            truncation_interval: TRUNCATION_INTERVAL,
            max_page_rows: self.max_page_rows,
        })
    }
}

/// Returns a source's name as a part of the name of an environment variable.
pub(super) fn variable_part(name: &str) -> String {
    let part = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    name.chars().map(part).collect()
}
