//! Names of tables, columns and topics in a configuration, in SQL. They are quoted, and all other text has only
//! characters that mean nothing there.

use std::{collections::BTreeMap, fmt::Write as _};

use cli::{MAX_TOPIC_NAME_CHARS, is_topic_char};

/// The headers that a record has by itself.
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

/// The headers with one for each of these columns that is not null.
pub(super) fn with_columns(
    headers: String,
    columns: &BTreeMap<String, String>,
) -> Result<String, String> {
    if columns.is_empty() {
        return Ok(headers);
    }
    let mut pairs = Vec::new();
    for (header, column) in columns {
        if !is_plain(header) {
            return Err(format!(
                "no header can be named {header:?}; use 1 to 249 of a-z, A-Z, 0-9, ., _, -"
            ));
        }
        if OWN_HEADERS.contains(&header.as_str()) {
            return Err(format!("every record has the header {header} already"));
        }
        pairs.push(format!("'{header}', {}::text", identifier(column)?));
    }
    Ok(format!(
        "coalesce({headers}, '{{}}') || jsonb_strip_nulls(jsonb_build_object({}))",
        pairs.join(", ")
    ))
}

/// `schema.table`, or a table that the session's search path leads to. If each part is in quotes they may
/// have dots in them.
pub(super) fn table_name(name: &str) -> Result<String, String> {
    let parts: Vec<&str> = match name.strip_prefix('"').map(|rest| rest.strip_suffix('"')) {
        None => name.split('.').collect(),
        Some(Some(quoted)) => quoted.split("\".\"").collect(),
        Some(None) => Vec::new(),
    };
    if !(1..=2).contains(&parts.len()) {
        return Err(format!(
            "{name:?} isn't like schema.table, nor like \"a schema\".\"a table\", as names with dots are written"
        ));
    }
    let quoted: Result<Vec<String>, String> = parts.into_iter().map(identifier).collect();
    Ok(quoted?.join("."))
}

/// `outbox.event.${aggregatetype}` in SQL.
pub(super) fn topic_expression(template: &str) -> Result<String, String> {
    let mut expression = "''".to_owned();
    let mut rest = template;
    let literal = |text: &str| {
        if text.is_empty() || is_plain(text) {
            return Ok(format!(" || '{text}'"));
        }
        Err(format!(
            "{text:?} can't be in a topic's name; use a-z, A-Z, 0-9, ., _, - and ${{column}}"
        ))
    };
    while let Some((before, after)) = rest.split_once("${") {
        let Some((column, behind)) = after.split_once('}') else {
            return Err(format!("{template:?} has a ${{ without its }}"));
        };
        expression += &literal(before)?;
        let _ = write!(expression, " || {}::text", identifier(column)?);
        rest = behind;
    }
    expression += &literal(rest)?;
    if template.is_empty() {
        return Err("it is empty; name a topic, or a column as ${column}".to_owned());
    }
    Ok(expression)
}

fn is_plain(text: &str) -> bool {
    (1..=MAX_TOPIC_NAME_CHARS).contains(&text.len()) && text.chars().all(is_topic_char)
}

/// A name as the catalog spells it, quoted. Postgres would cut a longer one and find another column.
pub(super) fn identifier(name: &str) -> Result<String, String> {
    const MAX_BYTES: usize = 63;
    if name.is_empty() || name.len() > MAX_BYTES || name.chars().any(char::is_control) {
        return Err(format!("{name:?} isn't a name of 1 to {MAX_BYTES} bytes"));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_joins_text_and_columns() {
        let sql = topic_expression("outbox.event.${aggregatetype}-${Region}").unwrap();
        let expected =
            r#"'' || 'outbox.event.' || "aggregatetype"::text || '-' || "Region"::text || ''"#;
        assert_eq!(sql, expected);
    }

    #[test]
    fn names_stay_names() {
        let quoted = identifier(r#"id" from users; drop table users; --"#).unwrap();
        assert_eq!(quoted, r#""id"" from users; drop table users; --""#);
        let sql = table_name(r#"app.out"box"#).unwrap();
        assert_eq!(sql, r#""app"."out""box""#);
        for (name, sql) in [
            (r#""My.App"."Order.Events""#, r#""My.App"."Order.Events""#),
            (r#""Order.Events""#, r#""Order.Events""#),
        ] {
            assert_eq!(table_name(name).unwrap(), sql);
        }
    }
}
