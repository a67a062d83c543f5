//! SQL for the table, column and topic names in a configuration. Identifiers are quoted, and literals may only
//! contain characters without a meaning in SQL: no setting can inject SQL.

use std::{collections::BTreeMap, fmt::Write as _};

use cli::{MAX_TOPIC_NAME_CHARS, is_topic_char};

/// The headers that the relay adds to records. Events must not set them.
pub(crate) const OWN_HEADERS: [&str; 8] = [
    "ce_specversion",
    "ce_source",
    "content-type",
    "ce_id",
    "ce_type",
    "ce_time",
    "ce_aggregateversion",
    "traceparent",
];

/// A header of a row that is not sent: the partition of its record.
pub(crate) const PARTITION_HEADER: &str = "relay_partition";
/// A header of a row that is not sent: the timestamp of its record in milliseconds since 1970.
pub(crate) const TIMESTAMP_HEADER: &str = "relay_timestamp_ms";

/// Returns `headers` extended with those that place a record, from columns of types that convert to int and timestamptz. As headers
/// they also reach the tables of rejected events.
pub(super) fn add_placement(
    headers: String,
    partition: Option<&str>,
    timestamp: Option<&str>,
) -> Result<String, String> {
    let mut pairs = Vec::new();
    if let Some(column) = partition {
        let column = quote_identifier(column)?;
        pairs.push(format!("'{PARTITION_HEADER}', {column}::text"));
    }
    if let Some(column) = timestamp {
        let time = format!("{}::timestamptz", quote_identifier(column)?);
        // Infinity is rejected with the row, by its text. A failing conversion would block every row.
        let ms = format!(
            "case when isfinite({time}) then (date_part('epoch', {time}) * 1000)::bigint::text else {time}::text end"
        );
        pairs.push(format!("'{TIMESTAMP_HEADER}', {ms}"));
    }
    Ok(extend_headers(headers, &pairs))
}

/// Returns `headers` extended with pairs of a name and a text, without those that are null.
fn extend_headers(headers: String, pairs: &[String]) -> String {
    if pairs.is_empty() {
        return headers;
    }
    format!(
        "coalesce({headers}, '{{}}') || jsonb_strip_nulls(jsonb_build_object({}))",
        pairs.join(", ")
    )
}

/// Returns `headers` extended with a header for each of these columns that is not null.
pub(super) fn add_header_columns(
    headers: String,
    columns: &BTreeMap<String, String>,
) -> Result<String, String> {
    let mut pairs = Vec::new();
    for (header, column) in columns {
        if !is_plain(header) {
            return Err(format!(
                "invalid header name {header:?}; use 1 to 249 of the characters a-z, A-Z, 0-9, ., _, -"
            ));
        }
        if OWN_HEADERS.contains(&header.as_str()) {
            return Err(format!(
                "header {header} is reserved; the relay sets it on every record"
            ));
        }
        pairs.push(format!("'{header}', {}::text", quote_identifier(column)?));
    }
    Ok(extend_headers(headers, &pairs))
}

/// Parses `schema.table`, or `table`, which is found by the search path. Quoted parts may contain dots.
pub(super) fn parse_table_name(name: &str) -> Result<String, String> {
    let parts: Vec<&str> = match name.strip_prefix('"').map(|rest| rest.strip_suffix('"')) {
        None => name.split('.').collect(),
        Some(Some(quoted)) => quoted.split("\".\"").collect(),
        Some(None) => Vec::new(),
    };
    if !(1..=2).contains(&parts.len()) {
        return Err(format!(
            "invalid table name {name:?}; must be table or schema.table; quote names that contain dots: \"a.b\".\"c.d\""
        ));
    }
    let quoted: Result<Vec<String>, String> = parts.into_iter().map(quote_identifier).collect();
    Ok(quoted?.join("."))
}

/// Translates a template such as `outbox.event.${aggregatetype}` to an SQL expression.
pub(super) fn parse_topic_template(template: &str) -> Result<String, String> {
    let mut expression = "''".to_owned();
    let mut rest = template;
    let literal = |text: &str| {
        if text.is_empty() || is_plain(text) {
            return Ok(format!(" || '{text}'"));
        }
        Err(format!(
            "invalid text {text:?} in a topic name; use a-z, A-Z, 0-9, ., _, - and ${{column}}"
        ))
    };
    while let Some((before, after)) = rest.split_once("${") {
        let Some((column, tail)) = after.split_once('}') else {
            return Err(format!("missing }} after ${{ in {template:?}"));
        };
        expression += &literal(before)?;
        let _ = write!(expression, " || {}::text", quote_identifier(column)?);
        rest = tail;
    }
    expression += &literal(rest)?;
    if template.is_empty() {
        return Err("must not be empty; set a topic, or a column as ${column}".to_owned());
    }
    Ok(expression)
}

fn is_plain(text: &str) -> bool {
    (1..=MAX_TOPIC_NAME_CHARS).contains(&text.len()) && text.chars().all(is_topic_char)
}

/// Quotes a name as the catalog spells it. Postgres would truncate a longer one and find another column.
pub(super) fn quote_identifier(name: &str) -> Result<String, String> {
    const MAX_BYTES: usize = 63;
    if name.is_empty() || name.len() > MAX_BYTES || name.chars().any(char::is_control) {
        return Err(format!(
            "invalid name {name:?}; must be 1 to {MAX_BYTES} bytes without control characters"
        ));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_joins_text_and_columns() {
        let sql = parse_topic_template("outbox.event.${aggregatetype}-${Region}").unwrap();
        let expected =
            r#"'' || 'outbox.event.' || "aggregatetype"::text || '-' || "Region"::text || ''"#;
        assert_eq!(sql, expected);
    }

    #[test]
    fn names_are_quoted() {
        let quoted = quote_identifier(r#"id" from users; drop table users; --"#).unwrap();
        assert_eq!(quoted, r#""id"" from users; drop table users; --""#);
        let sql = parse_table_name(r#"app.out"box"#).unwrap();
        assert_eq!(sql, r#""app"."out""box""#);
        for (name, sql) in [
            (r#""My.App"."Order.Events""#, r#""My.App"."Order.Events""#),
            (r#""Order.Events""#, r#""Order.Events""#),
        ] {
            assert_eq!(parse_table_name(name).unwrap(), sql);
        }
    }
}
