//! `/metrics` in the Prometheus text format, rendered from the status, so that publishing registers and allocates nothing. See
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{Display, Write as _};

use crate::{
    kafka::{BOUNDS_US, Histogram},
    ops::status::{Reason, Role, SharedStatus, State, View, WarningReason},
};

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders the metrics of all sources.
pub(super) fn text(sources: &[SharedStatus]) -> String {
    let mut text = Text::default();
    text.family(
        "build_info",
        "gauge",
        "The version of the program; always 1.",
    );
    let version = env!("CARGO_PKG_VERSION");
    text.line("build_info", &[("version", version)], 1);
    let views: Vec<View> = sources.iter().map(SharedStatus::view).collect();
    write_leadership(&mut text, &views);
    write_progress(&mut text, &views);
    write_failures(&mut text, &views);
    write_durations(
        &mut text,
        sources,
        "commit_to_ack_seconds",
        "Time from a row's created_at to the acknowledgement by Kafka. Pages of up to 64 rows \
         are measured completely, of larger pages every n-th row, counted n times.",
        |status| status.commit_to_ack(),
    );
    write_durations(
        &mut text,
        sources,
        "page_read_seconds",
        "Time to read a page of rows.",
        |status| status.page_read(),
    );
    text.0
}

fn write_leadership(text: &mut Text, views: &[View]) {
    text.gauges(
        views,
        "ready",
        "1 if /readyz reports the source as ready.",
        |view| Some(u8::from(view.ready)),
    );
    text.gauges(
        views,
        "leader",
        "1 if this relay is the leader of the source.",
        |view| Some(u8::from(view.role == Role::Leader)),
    );
    text.gauges(
        views,
        "epoch",
        "Epoch of the last leadership of this relay; it increases with every leader.",
        |view| view.epoch,
    );
    text.family("state", "gauge", "1 for the current state of the source.");
    for view in views {
        for state in State::ALL {
            let labels = [("source", view.source.as_str()), ("state", state.name())];
            text.line("state", &labels, u8::from(view.state == state));
        }
    }
    text.gauges(
        views,
        "checkpoint_age_seconds",
        "Time since the checkpoint was stored; a leader stores it within 375 ms.",
        |view| view.checkpoint_age_s,
    );
}

fn write_progress(text: &mut Text, views: &[View]) {
    text.counters(
        views,
        "shipped_records_total",
        "Records acknowledged by Kafka.",
        |view| Some(view.published),
    );
    text.gauges(
        views,
        "in_flight_records",
        "Records sent and not yet acknowledged.",
        |view| Some(view.in_flight),
    );
    text.counters(
        views,
        "throttled_seconds_total",
        "Time for which the brokers throttled this relay because of a quota.",
        |view| Some(view.throttled_s),
    );
    text.gauges(
        views,
        "clock_skew_seconds",
        "How far the database's clock is ahead of this machine's; 0 within half a minute.",
        |view| Some(view.clock_skew_s),
    );
    text.gauges(
        views,
        "pending_rows",
        "Rows committed and not published, measured every 5 s; from 1000 on an estimate from seq.",
        |view| view.pending_rows,
    );
    text.gauges(
        views,
        "pending_rows_is_estimate",
        "1 if pending_rows is an estimate.",
        |view| {
            view.pending_rows
                .map(|_| u8::from(view.pending_is_estimate))
        },
    );
    text.gauges(
        views,
        "oldest_pending_age_seconds",
        "Age of the oldest row committed and not published; 0 if there is none.",
        |view| view.oldest_pending_age_s,
    );
    text.gauges(
        views,
        "outbox_bytes",
        "Size of the outbox with its indexes.",
        |view| view.outbox_bytes,
    );
    text.counters(
        views,
        "truncated_partitions_total",
        "Partitions truncated after all of their rows were published.",
        |view| view.truncations,
    );
}

fn write_failures(text: &mut Text, views: &[View]) {
    text.family(
        "restarts_total",
        "counter",
        "Restarts from the checkpoint with a new sink.",
    );
    for view in views {
        for reason in Reason::ALL.map(Reason::name) {
            let labels = [("source", view.source.as_str()), ("reason", reason)];
            let restarts = view.restarts.get(reason).copied().unwrap_or(0);
            text.line("restarts_total", &labels, restarts);
        }
    }
    text.family(
        "refused_records_total",
        "counter",
        "Records that Kafka rejected permanently, by outcome.",
    );
    for view in views {
        for (outcome, records) in [
            ("halted", view.rejected.halted),
            ("parked", view.rejected.parked),
            ("dead_lettered", view.rejected.dead_lettered),
        ] {
            let labels = [("source", view.source.as_str()), ("outcome", outcome)];
            text.line("refused_records_total", &labels, records);
        }
    }
    text.gauges(
        views,
        "parked_keys",
        "Keys held back because Kafka rejected one of their events.",
        |view| Some(view.parked_keys),
    );
    text.gauges(
        views,
        "dead_letters",
        "Events in relay_dead_letters, counted up to 10000.",
        |view| view.dead_letters,
    );
    text.gauges(
        views,
        "unpublishable_rows",
        "Rows without seq or transaction id, which are never published, counted up to 1000.",
        |view| view.unpublishable_rows,
    );
    text.family(
        "degraded",
        "gauge",
        "1 for a problem of a source that publishes.",
    );
    for view in views {
        for reason in WarningReason::ALL {
            let labels = [("source", view.source.as_str()), ("reason", reason.name())];
            let is_active = view.warnings.iter().any(|warning| warning.reason == reason);
            text.line("degraded", &labels, u8::from(is_active));
        }
    }
}

fn write_durations(
    text: &mut Text,
    sources: &[SharedStatus],
    name: &str,
    help: &str,
    histogram: fn(&SharedStatus) -> &Histogram,
) {
    text.family(name, "histogram", help);
    let (bucket, sum, count) = (
        format!("{name}_bucket"),
        format!("{name}_sum"),
        format!("{name}_count"),
    );
    for status in sources {
        let (source, histogram) = (("source", status.name()), histogram(status));
        let counts = histogram.counts();
        let mut total = 0;
        for (count, bound_us) in counts.iter().zip(BOUNDS_US) {
            total += count;
            #[expect(clippy::cast_precision_loss)]
            let bound = (bound_us as f64 / 1e6).to_string();
            text.line(&bucket, &[source, ("le", &bound)], total);
        }
        total += counts[BOUNDS_US.len()];
        text.line(&bucket, &[source, ("le", "+Inf")], total);
        text.line(&sum, &[source], histogram.sum_s());
        text.line(&count, &[source], total);
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn gauges<V: Display>(
        &mut self,
        views: &[View],
        name: &str,
        help: &str,
        value: impl Fn(&View) -> Option<V>,
    ) {
        self.values(views, name, ("gauge", help), value);
    }

    fn counters<V: Display>(
        &mut self,
        views: &[View],
        name: &str,
        help: &str,
        value: impl Fn(&View) -> Option<V>,
    ) {
        self.values(views, name, ("counter", help), value);
    }

    /// Writes the value of each source that has one.
    fn values<V: Display>(
        &mut self,
        views: &[View],
        name: &str,
        (kind, help): (&str, &str),
        value: impl Fn(&View) -> Option<V>,
    ) {
        self.family(name, kind, help);
        for view in views {
            if let Some(value) = value(view) {
                self.line(name, &[("source", &view.source)], value);
            }
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "# HELP outbox_relay_{name} {help}");
        let _ = writeln!(self.0, "# TYPE outbox_relay_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let label = |(name, value): &(&str, &str)| format!("{name}=\"{}\"", escaped(value));
        let labels: Vec<String> = labels.iter().map(label).collect();
        let labels = labels.join(",");
        let _ = writeln!(self.0, "outbox_relay_{name}{{{labels}}} {value}");
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    /// An alert on a metric that does not exist never fires.
    #[test]
    fn alerts_use_existing_metrics() {
        let text = text(&[SharedStatus::new("test")]);
        for name in metric_names_in(RULES).chain(metric_names_in(PAGE)) {
            let is_sample = text.contains(&format!("\n{name}{{"));
            assert!(
                is_sample || text.contains(&format!("# TYPE {name} ")),
                "{name}"
            );
        }
    }

    #[test]
    fn every_metric_state_and_restart_reason_is_documented() {
        let text = text(&[SharedStatus::new("test")]);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for name in types.filter_map(|rest| rest.split(' ').next()) {
            assert!(PAGE.contains(&format!("| `{name}` |")), "{name}");
        }
        let reasons = Reason::ALL.map(Reason::name);
        for name in State::ALL.map(State::name).iter().chain(&reasons) {
            assert!(PAGE.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn every_alert_links_to_its_runbook() {
        let rules: Vec<&str> = RULES.split("- alert: ").skip(1).collect();
        assert!(!rules.is_empty());
        for rule in rules {
            let name = rule.lines().next().unwrap();
            let heading = format!("### {name}");
            let headings = PAGE.lines().filter(|line| *line == heading).count();
            assert_eq!(headings, 1, "{PATH} has {headings} headings '{heading}'");
            let runbooks: Vec<&str> = rule
                .lines()
                .filter_map(|line| line.trim().strip_prefix("runbook_url: "))
                .collect();
            assert_eq!(
                runbooks,
                [format!("{PATH}#{}", name.to_lowercase())],
                "{name}"
            );
        }
        let runbooks = PAGE
            .lines()
            .filter_map(|line| line.strip_prefix("### OutboxRelay"));
        for name in runbooks {
            let alert = format!("- alert: OutboxRelay{name}\n");
            assert!(
                RULES.contains(&alert),
                "there is no alert OutboxRelay{name}"
            );
        }
    }

    const PATH: &str = "docs/operations/outbox-relay.md";
    const RULES: &str = include_str!("../../../../deploy/prometheus/outbox-relay.rules.yaml");
    const PAGE: &str = include_str!("../../../../docs/operations/outbox-relay.md");

    fn metric_names_in(text: &str) -> impl Iterator<Item = &str> {
        let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(move |c| !is_of_a_name(c))
            .filter(|word| word.starts_with("outbox_relay_"))
    }

    #[test]
    fn every_sample_belongs_to_a_family_that_is_declared_once() {
        let status = SharedStatus::new(r#"a "b" \c"#);
        status.page_read().observe(Duration::from_millis(2), 3);
        let text = text(&[status, SharedStatus::new("other")]);
        let mut families = HashSet::new();
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap();
                assert!(families.insert(family), "{family} is declared twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(rest.starts_with(family), "{line}");
            } else {
                assert!(line.starts_with(family), "{line} is not of {family}");
                let (_, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        let bucket = r#"page_read_seconds_bucket{source="a \"b\" \\c",le="0.002"} 3"#;
        assert!(text.contains(bucket), "{text}");
    }
}
