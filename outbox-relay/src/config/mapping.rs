//! What of a source says where its outbox is: the table, its columns, the topic.
//!
//! A mapping becomes a table expression with the outbox's own columns, which stands in every statement
//! where `outbox` would. Postgres sees through it: the indexes on the mapped columns are used as ever.

use std::collections::BTreeMap;

use cli::Problems;
use serde::Deserialize;

use super::names::{identifier, table_name, topic_expression, with_columns};

/// Where the outbox is. The default is the table `outbox`, as this project's migrations make it.
#[derive(Clone, Debug)]
pub struct Mapping {
    outbox: String,
    table: String,
    xid: String,
    seq: String,
    event_id: String,
    /// Which setting names which other column.
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
    /// What follows `from` in SQL, to be read under the name `outbox`.
    pub fn outbox(&self) -> &str {
        &self.outbox
    }

    /// The table itself, quoted.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// The column with the writing transaction.
    pub(crate) fn xid(&self) -> &str {
        &self.xid
    }

    /// The columns with the writing transaction, the number and the event's id, quoted, with whatever type they have.
    pub(crate) fn quoted_columns(&self) -> [String; 3] {
        [&self.xid, &self.seq, &self.event_id]
            .map(|name| format!("\"{}\"", name.replace('"', "\"\"")))
    }

    /// A statement with the names of the table and of its columns `xid` and `seq` as strings in it, and
    /// the settings that name other columns as rows of strings.
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
        // In one pass: a value may hold what looks like another's name.
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

    /// Whether it is the table that this project's migrations make, with its partitions.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Whether rows say when they were written.
    pub(crate) fn has_created_at(&self) -> bool {
        self.has_created_at
    }
}

/// The settings of a source that are about its table.
pub(super) struct MappingTable {
    pub(super) table: Option<String>,
    pub(super) topic: Option<String>,
    pub(super) columns: Option<ColumnsTable>,
    pub(super) header_columns: BTreeMap<String, String>,
}

/// The table `[source.columns]`. Those that have to be there are named as in the outbox if nothing else
/// is said; of the others the table has those that are named.
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
}

macro_rules! named_as_in_the_outbox {
    ($($column:ident)*) => {
        $(fn $column() -> String {
            stringify!($column).to_owned()
        })*
    };
}

named_as_in_the_outbox!(xid seq event_id key event_type payload);

impl Default for ColumnsTable {
    /// All that the outbox has.
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
        }
    }
}

const DEFAULT_TOPIC: &str = "${topic}";

impl MappingTable {
    /// `name` is the source's.
    pub(super) fn check(self, name: &str, problems: &mut Problems) -> Option<Mapping> {
        if self.table.is_none()
            && self.topic.is_none()
            && self.columns.is_none()
            && self.header_columns.is_empty()
        {
            return Some(Mapping::default());
        }
        let table = self.table.unwrap_or_else(|| "outbox".to_owned());
        let table = problems.check(&format!("{name}.table"), table_name(&table));
        let template = self.topic.as_deref().unwrap_or(DEFAULT_TOPIC);
        let topic = problems.check(&format!("{name}.topic"), topic_expression(template));
        let columns = self.columns.unwrap_or_default();
        let has_created_at = columns.created_at.is_some();
        let listed = columns.listed(&self.header_columns);
        let listed = problems.check(&format!("{name}.columns"), listed);
        let (table, topic, listed) = (table?, topic?, listed?);
        let named = columns.named(template, self.header_columns);
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
    /// Which setting names which column, but for `xid` and `seq`.
    fn named(
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

    /// All but the topic, as the reader wants them.
    fn listed(&self, header_columns: &BTreeMap<String, String>) -> Result<String, String> {
        let optional = |column: &Option<String>, kind: &str| match column {
            Some(column) => Ok(format!("{}::{kind}", identifier(column)?)),
            None => Ok::<_, String>(format!("null::{kind}")),
        };
        Ok(format!(
            "{} as xid, {} as seq, {}::uuid as event_id, {}::text as key, {}::text as event_type, \
             relay_payload({}) as payload, {} as aggregate_version, {} as headers, \
             {} as traceparent, {} as created_at",
            identifier(&self.xid)?,
            identifier(&self.seq)?,
            identifier(&self.event_id)?,
            identifier(&self.key)?,
            identifier(&self.event_type)?,
            identifier(&self.payload)?,
            optional(&self.aggregate_version, "bigint")?,
            with_columns(optional(&self.headers, "jsonb")?, header_columns)?,
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
        .check("shop", &mut problems);
        mapping.ok_or_else(|| problems.into_error().to_string())
    }

    #[test]
    fn without_a_mapping_the_outbox_is_read_as_it_is() {
        let mapping = mapping("").unwrap();
        assert_eq!(mapping.outbox(), "outbox");
        assert!(mapping.is_own());
    }

    #[test]
    fn a_table_named_like_a_placeholder_is_filled_in_as_it_is() {
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
    fn what_can_not_be_a_name_is_told_with_the_setting() {
        for (toml, part) in [
            ("table = ''", "shop.table"),
            ("table = 'a.b.c'", "isn't like schema.table"),
            ("table = '\"a\".b'", "isn't like schema.table"),
            ("table = 'a.\"b.c\"'", "isn't like schema.table"),
            ("topic = ''", "shop.topic: it is empty"),
            ("topic = 'a${b'", "without its }"),
            ("topic = 'a${}'", "shop.topic"),
            (r#"topic = "a' || b""#, "can't be in a topic's name"),
            (r#"columns.key = "a\u0000b""#, "shop.columns"),
            ("columns.keys = 'a'", "unknown field `keys`"),
            ("header_columns.\"a'b\" = 'c'", "no header can be named"),
            ("header_columns.ce_id = 'c'", "has the header ce_id already"),
        ] {
            let error = mapping(toml).unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
