//! The mapping of a source: its table, its columns, its topic.
//!
//! A mapping becomes a subquery with the columns of the table `outbox`, and takes its place in every statement.
//! Postgres flattens the subquery, so it still uses the indexes on the mapped columns.

use std::collections::BTreeMap;

use cli::Problems;
use serde::Deserialize;

use super::names::{
    add_header_columns, add_placement, parse_table_name, parse_topic_template, quote_identifier,
};

/// The outbox table and its columns. The default is the table `outbox` of this project's migrations.
#[derive(Clone, Debug)]
pub struct Mapping {
    outbox: String,
    table: String,
    xid: String,
    seq: String,
    event_id: String,
    /// The settings of the other columns, each with its column.
    named: Vec<(String, String)>,
    is_own: bool,
    has_created_at: bool,
}

impl Default for Mapping {
    fn default() -> Self {
        Self {
            outbox: "outbox".to_owned(),
            table: "outbox".to_owned(),
            xid: "xid".to_owned(),
            seq: "seq".to_owned(),
            event_id: "event_id".to_owned(),
            named: Vec::new(),
            is_own: true,
            has_created_at: true,
        }
    }
}

impl Mapping {
    /// Returns the SQL to put after `from`. It has the alias `outbox`.
    pub fn outbox(&self) -> &str {
        &self.outbox
    }

    /// The quoted name.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// The unquoted name of the column with the transaction id.
    pub(crate) fn xid(&self) -> &str {
        &self.xid
    }

    /// Returns the quoted names of the columns `xid`, `seq` and `event_id`, without the casts of [`outbox`](Self::outbox).
    pub(crate) fn quoted_columns(&self) -> [String; 3] {
        [&self.xid, &self.seq, &self.event_id]
            .map(|name| format!("\"{}\"", name.replace('"', "\"\"")))
    }

    /// Replaces `:table`, `:xid` and `:seq` in a statement by string literals, and `:named` by rows of a setting
    /// and its column.
    pub(crate) fn fill_in(&self, sql: &str) -> String {
        let string = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let named = self.named.iter();
        let named =
            named.map(|(setting, column)| format!("({}, {})", string(setting), string(column)));
        let values = [
            (":table", string(&self.table)),
            (":xid", string(&self.xid)),
            (":seq", string(&self.seq)),
            (":named", named.collect::<Vec<_>>().join(", ")),
        ];
        // In one pass: a value can contain the placeholder of another.
        let (mut filled, mut rest) = (String::with_capacity(sql.len()), sql);
        while let Some(colon) = rest.find(':') {
            filled += &rest[..colon];
            rest = &rest[colon..];
            let value = values.iter().find(|(name, _)| rest.starts_with(name));
            let (name, text) = value.map_or((":", ":"), |(name, text)| (*name, text));
            filled += text;
            rest = &rest[name.len()..];
        }
        filled + rest
    }

    /// Returns true for the partitioned table of this project's migrations.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    pub(crate) fn has_created_at(&self) -> bool {
        self.has_created_at
    }
}

/// The settings of a source that describe its table.
pub(super) struct MappingTable {
    pub(super) table: Option<String>,
    pub(super) topic: Option<String>,
    pub(super) columns: Option<ColumnsTable>,
    pub(super) header_columns: BTreeMap<String, String>,
}

/// The table `[source.columns]`. Required columns default to the names in the table `outbox`. The mapped table has
/// only those optional columns that are set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ColumnsTable {
    #[serde(default = "xid")]
    xid: String,
    #[serde(default = "seq")]
    seq: String,
    #[serde(default = "event_id")]
    event_id: String,
    #[serde(default = "key")]
    key: String,
    #[serde(default = "event_type")]
    event_type: String,
    #[serde(default = "payload")]
    payload: String,
    aggregate_version: Option<String>,
    headers: Option<String>,
    traceparent: Option<String>,
    created_at: Option<String>,
    partition: Option<String>,
    timestamp: Option<String>,
}

macro_rules! default_column_names {
    ($($column:ident)*) => {
        $(fn $column() -> String {
            stringify!($column).to_owned()
        })*
    };
}

default_column_names!(xid seq event_id key event_type payload);

impl Default for ColumnsTable {
    /// Returns all columns of the table `outbox`.
    fn default() -> Self {
        Self {
            xid: xid(),
            seq: seq(),
            event_id: event_id(),
            key: key(),
            event_type: event_type(),
            payload: payload(),
            aggregate_version: Some("aggregate_version".to_owned()),
            headers: Some("headers".to_owned()),
            traceparent: Some("traceparent".to_owned()),
            created_at: Some("created_at".to_owned()),
            partition: None,
            timestamp: None,
        }
    }
}

const DEFAULT_TOPIC: &str = "${topic}";

impl MappingTable {
    pub(super) fn parse(self, source: &str, problems: &mut Problems) -> Option<Mapping> {
        if self.table.is_none()
            && self.topic.is_none()
            && self.columns.is_none()
            && self.header_columns.is_empty()
        {
            return Some(Mapping::default());
        }
        let table = self.table.unwrap_or_else(|| "outbox".to_owned());
        let table = problems.check(&format!("{source}.table"), parse_table_name(&table));
        let template = self.topic.as_deref().unwrap_or(DEFAULT_TOPIC);
        let topic = problems.check(&format!("{source}.topic"), parse_topic_template(template));
        let columns = self.columns.unwrap_or_default();
        let has_created_at = columns.created_at.is_some();
        let listed = columns.select_list(&self.header_columns);
        let listed = problems.check(&format!("{source}.columns"), listed);
        let (table, topic, listed) = (table?, topic?, listed?);
        let named = columns.list_settings(template, self.header_columns);
        Some(Mapping {
            outbox: format!("(select {listed}, {topic} as topic from {table}) as outbox"),
            table,
            xid: columns.xid,
            seq: columns.seq,
            event_id: columns.event_id,
            named,
            is_own: false,
            has_created_at,
        })
    }
}

impl ColumnsTable {
    /// Returns each setting with its column, except `xid` and `seq`.
    fn list_settings(
        &self,
        topic: &str,
        header_columns: BTreeMap<String, String>,
    ) -> Vec<(String, String)> {
        let columns = [
            ("event_id", Some(&self.event_id)),
            ("key", Some(&self.key)),
            ("event_type", Some(&self.event_type)),
            ("payload", Some(&self.payload)),
            ("aggregate_version", self.aggregate_version.as_ref()),
            ("headers", self.headers.as_ref()),
            ("traceparent", self.traceparent.as_ref()),
            ("created_at", self.created_at.as_ref()),
            ("partition", self.partition.as_ref()),
            ("timestamp", self.timestamp.as_ref()),
        ];
        let columns = columns.into_iter().filter_map(|(setting, column)| {
            Some((format!("source.columns.{setting}"), column?.clone()))
        });
        let of_topic = topic.split("${").skip(1);
        let of_topic = of_topic.filter_map(|rest| rest.split_once('}'));
        let of_topic = of_topic.map(|(column, _)| ("source.topic".to_owned(), column.to_owned()));
        let of_headers = header_columns.into_iter();
        let of_headers =
            of_headers.map(|(header, column)| (format!("source.header_columns.{header}"), column));
        columns.chain(of_topic).chain(of_headers).collect()
    }

    /// Returns the select list without the topic.
    fn select_list(&self, header_columns: &BTreeMap<String, String>) -> Result<String, String> {
        let optional = |column: &Option<String>, kind: &str| match column {
            Some(column) => Ok(format!("{}::{kind}", quote_identifier(column)?)),
            None => Ok::<_, String>(format!("null::{kind}")),
        };
        Ok(format!(
            "{} as xid, {} as seq, {}::uuid as event_id, {}::text as key, {}::text as event_type, \
             relay_payload({}) as payload, {} as aggregate_version, {} as headers, \
             {} as traceparent, {} as created_at",
            quote_identifier(&self.xid)?,
            quote_identifier(&self.seq)?,
            quote_identifier(&self.event_id)?,
            quote_identifier(&self.key)?,
            quote_identifier(&self.event_type)?,
            quote_identifier(&self.payload)?,
            optional(&self.aggregate_version, "bigint")?,
            add_placement(
                add_header_columns(optional(&self.headers, "jsonb")?, header_columns)?,
                self.partition.as_deref(),
                self.timestamp.as_deref(),
            )?,
            optional(&self.traceparent, "text")?,
            optional(&self.created_at, "timestamptz")?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(toml: &str) -> Result<Mapping, String> {
        #[derive(Deserialize)]
        struct Settings {
            table: Option<String>,
            topic: Option<String>,
            columns: Option<ColumnsTable>,
            #[serde(default)]
            header_columns: BTreeMap<String, String>,
        }
        let given: Settings = toml::from_str(toml).map_err(|err| err.to_string())?;
        let mut problems = Problems::default();
        let mapping = MappingTable {
            table: given.table,
            topic: given.topic,
            columns: given.columns,
            header_columns: given.header_columns,
        }
        .parse("shop", &mut problems);
        mapping.ok_or_else(|| problems.into_error().to_string())
    }

    #[test]
    fn the_default_mapping_is_the_table_outbox() {
        let mapping = mapping("").unwrap();
        assert_eq!(mapping.outbox(), "outbox");
        assert!(mapping.is_own());
    }

    #[test]
    fn a_table_named_like_a_placeholder_is_not_replaced() {
        let toml = "table = 'T:xid'\ncolumns = { key = ':table' }";
        let sql = mapping(toml)
            .unwrap()
            .fill_in(":table::regclass, :xid, (values :named)");
        assert!(
            sql.starts_with(r#"'"T:xid"'::regclass, 'xid', (values "#),
            "{sql}"
        );
        assert!(sql.contains("':table'"), "{sql}");
    }

    #[test]
    fn an_invalid_name_is_reported_with_its_setting() {
        for (toml, part) in [
            ("table = ''", "shop.table"),
            ("table = 'a.b.c'", "must be table or schema.table"),
            ("table = '\"a\".b'", "must be table or schema.table"),
            ("table = 'a.\"b.c\"'", "must be table or schema.table"),
            ("topic = ''", "shop.topic: must not be empty"),
            ("topic = 'a${b'", "missing } after ${"),
            ("topic = 'a${}'", "shop.topic"),
            (r#"topic = "a' || b""#, "in a topic name; use"),
            (r#"columns.key = "a\u0000b""#, "shop.columns"),
            ("columns.keys = 'a'", "unknown field `keys`"),
            ("header_columns.\"a'b\" = 'c'", "invalid header name"),
            ("header_columns.ce_id = 'c'", "header ce_id is reserved"),
        ] {
            let error = mapping(toml).unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
