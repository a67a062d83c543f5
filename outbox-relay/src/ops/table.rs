//! Renders `/status` as a table.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Deserialize;

/// The fields of a source that the table shows. A relay of another version may lack some.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    source: String,
    state: String,
    leader: Option<String>,
    epoch: Option<i64>,
    published_per_s: f64,
    published: u64,
    in_flight: u64,
    pending_rows: Option<i64>,
    pending_is_estimate: bool,
    oldest_pending_age_s: Option<f64>,
    commit_to_ack: Durations,
    parked_keys: usize,
    dead_letters: Option<i64>,
    error: Option<String>,
    hint: Option<String>,
    warnings: Vec<Warning>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Warning {
    message: String,
    hint: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Durations {
    p50_s: Option<f64>,
    p99_s: Option<f64>,
}

const HEAD: [&str; 11] = [
    "SOURCE",
    "STATE",
    "EPOCH",
    "EVENTS/S",
    "PUBLISHED",
    "BACKLOG",
    "OLDEST",
    "P50",
    "P99",
    "IN FLIGHT",
    "PARKED",
];

/// Renders the table, followed by the errors and warnings of each source.
///
/// # Errors
/// If `json` is not the status of a relay.
pub fn status_table(json: &str) -> Result<String, serde_json::Error> {
    let sources: Vec<Source> = serde_json::from_str(json)?;
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(HEAD);
    table.add_rows(sources.iter().map(row));
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        // Text is left-aligned, numbers are right-aligned.
        if number > 1 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt() + "\n";
    for source in &sources {
        if let Some(error) = &source.error {
            text += &format!("\n{}: {error}\n", source.source);
            if let Some(hint) = &source.hint {
                text += &format!("  {hint}\n");
            }
        }
        for Warning { message, hint } in &source.warnings {
            text += &format!("\n{}: degraded: {message}\n  {hint}\n", source.source);
        }
        let name = &source.source;
        if let Some(count @ 1..) = source.dead_letters {
            let plural = if count == 1 { "" } else { "s" };
            text += &format!(
                "\n{name}: {count} dead letter{plural}\n  List them with `outbox-relay dead-letters list --source {name}`.\n"
            );
        }
        if let Some(leader) = &source.leader {
            text += &format!("\n{}: the leader is {leader}\n", source.source);
        }
    }
    Ok(text)
}

fn row(source: &Source) -> [String; HEAD.len()] {
    let estimate_sign = if source.pending_is_estimate { "~" } else { "" };
    let backlog = source
        .pending_rows
        .map(|rows| format!("{estimate_sign}{rows}"));
    let oldest_s = (source.oldest_pending_age_s).filter(|_| source.pending_rows != Some(0));
    [
        source.source.clone(),
        source.state.clone(),
        source.epoch.map_or_else(absent, |epoch| epoch.to_string()),
        format!("{:.0}", source.published_per_s),
        source.published.to_string(),
        backlog.unwrap_or_else(absent),
        oldest_s.map_or_else(absent, duration),
        source.commit_to_ack.p50_s.map_or_else(absent, duration),
        source.commit_to_ack.p99_s.map_or_else(absent, duration),
        source.in_flight.to_string(),
        source.parked_keys.to_string(),
    ]
}

fn absent() -> String {
    "-".to_owned()
}

/// Formats a duration with about three significant digits.
fn duration(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.1} ms", seconds * 1_000.0),
        ..120.0 => format!("{seconds:.1} s"),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_errors_follow_the_table() {
        let text = status_table(
            r#"[{"source":"orders","state":"publishing","epoch":3,"published_per_s":41.7,
                 "published":1234,"pending_rows":12000,"pending_is_estimate":true,
                 "oldest_pending_age_s":7300,"commit_to_ack":{"p50_s":0.0023,"p99_s":null}},
                {"source":"b","state":"stalled","error":"no Kafka","hint":"start it","new":1,"dead_letters":2}]"#,
        )
        .unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let end_of = |line: &str, word: &str| line.find(word).map(|start| start + word.len());
        let column = end_of(lines[0], "BACKLOG");
        assert!(
            column.is_some() && column == end_of(lines[1], "~12000"),
            "{text}"
        );
        assert!(
            lines[1].contains("2.0 h") && lines[1].contains("2.3 ms"),
            "{text}"
        );
        let list = "  List them with `outbox-relay dead-letters list --source b`.";
        let below = ["b: no Kafka", "  start it", "", "b: 2 dead letters", list];
        assert_eq!(lines[4..], below);
        assert!(status_table("{}").is_err());
    }
}
