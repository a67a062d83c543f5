//! Formats the report as text and as Markdown.

use std::fmt::Write as _;

use lab::Table;

use crate::{
    curves::Point,
    latency::Latency,
    report::{DrainFigures, Report},
};

/// Returns the report as plain text.
pub(crate) fn text(report: &Report) -> String {
    let mut text = format!("\n{}\n", setting(report));
    for table in tables(report) {
        let _ = write!(text, "\n{table}");
    }
    text
}

/// Returns the report as Markdown.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = format!("# Results\n\n{}\n", setting(report));
    for table in tables(report) {
        let _ = write!(text, "\n## {}\n\n{}.\n\n", table.heading, table.note);
        for (number, row) in table.rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if number == 0 {
                let _ = writeln!(text, "|---{}|", "|---:".repeat(row.len() - 1));
            }
        }
    }
    text
}

fn setting(report: &Report) -> String {
    let machine = &report.machine;
    let debezium = report.debezium.as_ref();
    let debezium = debezium.map(|debezium| format!(", Debezium {}", debezium.version));
    format!(
        "Measured {} on {} cores ({}), {:.0} GiB, Linux {}: Postgres {} with fsync, Apache Kafka {} \
         (one broker), librdkafka {}{}. Servers, load and consumer share the machine.",
        report.measured_at,
        machine.cores,
        machine.processor,
        machine.memory_gib,
        machine.kernel,
        machine.postgres,
        machine.kafka,
        machine.librdkafka,
        debezium.unwrap_or_default(),
    )
}

fn tables(report: &Report) -> Vec<Table> {
    let mut tables = vec![
        drains(report),
        limits(report),
        latencies(report),
        sessions(report),
        statements(report),
    ];
    if !report.curves.is_empty() {
        let (codecs, curves): (Vec<&Point>, Vec<&Point>) =
            report.curves.iter().partition(|point| point.is_of_codec());
        tables.push(points(
            "Cost per event by backlog, payload size and headers",
            "Runs over the backlogs are interleaved; small backlogs run several times in each round. CPU is \
             the median of the runs for the rows after the first 1,000: the CPU of a start up to these \
             rows is measured separately and subtracted. MB/s count payloads only",
            &curves,
        ));
        tables.push(points(
            "Compression",
            "Payloads are JSON with random hexadecimal digits, which a codec can at best halve. Keys and headers \
             repeat. A topic also stores 61 bytes for each batch",
            &codecs,
        ));
    }
    tables
}

fn drains(report: &Report) -> Table {
    let mut rows = vec![row(&[
        "",
        "events/s: median",
        "min",
        "max",
        "events per CPU-second: publisher",
        "Postgres",
        "broker",
        "peak RSS, MiB",
    ])];
    let is_default = |figures: &&DrainFigures| figures.program != report.drain.program;
    let programs = [Some(&report.drain)]
        .into_iter()
        .chain([report.drain_rdkafka.as_ref().filter(is_default)])
        .flatten()
        .chain(report.debezium.iter().map(|debezium| &debezium.tuned))
        .chain(
            report
                .debezium
                .iter()
                .map(|debezium| &debezium.with_defaults),
        );
    for figures in programs {
        rows.push(vec![
            figures.program.clone(),
            whole(figures.events_per_s),
            whole(figures.events_per_s_min),
            whole(figures.events_per_s_max),
            whole(figures.events_per_cpu_s),
            whole(figures.events_per_postgres_cpu_s),
            whole(figures.events_per_broker_cpu_s),
            whole(figures.peak_rss_mib),
        ]);
    }
    Table {
        heading: format!(
            "Drain of a backlog of {} events of {} B, {} interleaved runs",
            whole(report.rows as f64),
            report.payload_bytes,
            report.runs
        ),
        note: "Time from the last poll of the topic that found no record to the first that found all; polls \
               are 10 ms apart. CPU is measured from the start of the relay, and from the first record \
               of Debezium. A new JVM is slow for some seconds, which weighs more in a short run. The \
               relay's records have eight headers, Debezium's have one",
        rows,
    }
}

fn limits(report: &Report) -> Table {
    let limits = &report.limits;
    let rows = vec![
        row(&[
            "",
            "rows/s: median",
            "min",
            "max",
            "rows per CPU-second",
            "peak RSS, MiB",
        ]),
        vec![
            "read only".to_owned(),
            whole(limits.read_rows_per_s),
            whole(limits.read_rows_per_s_min),
            whole(limits.read_rows_per_s_max),
            whole(limits.read_rows_per_cpu_s),
            whole(limits.read_peak_rss_mib),
        ],
        vec![
            "produce only, librdkafka".to_owned(),
            whole(limits.produce_events_per_s),
            whole(limits.produce_events_per_s_min),
            whole(limits.produce_events_per_s_max),
            whole(limits.produce_events_per_cpu_s),
            whole(limits.produce_peak_rss_mib),
        ],
    ];
    Table {
        heading: "Upper bounds".to_owned(),
        note: "Read only reads the same rows with COPY in pages of 20,000 and discards them. Produce only \
               sends the same records, with eight headers each, from memory",
        rows,
    }
}

/// Returns the latencies of the relay, then those of Debezium, each with the program's name.
fn latencies_by_program(report: &Report) -> impl Iterator<Item = (&'static str, &Latency)> {
    let relay = report.latency.iter().map(|found| ("outbox-relay", found));
    let debezium = report
        .debezium
        .iter()
        .flat_map(|debezium| &debezium.latency);
    relay.chain(debezium.map(|found| ("Debezium, tuned", found)))
}

fn latencies(report: &Report) -> Table {
    let mut rows = vec![row(&[
        "",
        "commits/s",
        "achieved",
        "p50, ms",
        "p99",
        "max",
        "from schedule: p50",
        "p99",
        "CPU, % of a core: publisher",
        "Postgres",
        "broker",
    ])];
    for (program, found) in latencies_by_program(report) {
        rows.push(vec![
            program.to_owned(),
            whole(found.rate as f64),
            whole(found.achieved_per_s),
            format!("{:.2}", found.p50_ms),
            format!("{:.2}", found.p99_ms),
            format!("{:.1}", found.max_ms),
            format!("{:.2}", found.since_due_p50_ms),
            format!("{:.2}", found.since_due_p99_ms),
            format!("{:.1}", found.publisher_cpu_percent),
            format!("{:.1}", found.postgres_cpu_percent),
            format!("{:.1}", found.broker_cpu_percent),
        ]);
    }
    Table {
        heading: format!(
            "Latency of single-row commits; an idle relay uses {:.2} % of a core, and Postgres {:.2} %",
            report.idle.publisher_cpu_percent, report.idle.postgres_cpu_percent
        ),
        note: "After a warm-up. Latency is the time from the row's timestamp, taken right before its commit, to the \
               consumer. From schedule, it is the time from the commit's scheduled time, which is independent of \
               slow commits",
        rows,
    }
}

fn sessions(report: &Report) -> Table {
    let mut rows = vec![row(&["", "commits/s", "session", "CPU, % of a core"])];
    for (program, found) in latencies_by_program(report) {
        for (session, percent) in &found.postgres_cpu_percent_by_session {
            rows.push(vec![
                program.to_owned(),
                whole(found.rate as f64),
                session.clone(),
                format!("{percent:.1}"),
            ]);
        }
    }
    Table {
        heading: "CPU of Postgres during these commits, by session".to_owned(),
        note: "Sessions of the same kind are added up, and those that have ended are left out. \"Debezium\" is its \
               walsender and its other sessions",
        rows,
    }
}

fn statements(report: &Report) -> Table {
    let mut rows = vec![row(&["statement", "calls", "ms a call", "ms in total"])];
    for statement in &report.statements.most_expensive {
        rows.push(vec![
            format!("`{}`", statement.text),
            whole(statement.calls as f64),
            format!("{:.3}", statement.total_ms / statement.calls.max(1) as f64),
            whole(statement.total_ms),
        ]);
    }
    Table {
        heading: format!(
            "Statements of the relay during these commits: {} entries in pg_stat_statements; {} during a drain",
            report.statements.entries, report.drain.statements
        ),
        note: "Execution time without planning. Includes the start of the relay and all warm-ups",
        rows,
    }
}

fn points(heading: &str, note: &'static str, points: &[&Point]) -> Table {
    let mut rows = vec![row(&[
        "",
        "rows",
        "payload, B",
        "headers",
        "B per event in the topic",
        "events/s",
        "MB/s",
        "CPU per event, us: relay",
        "Postgres",
        "broker",
        "peak RSS, MiB",
    ])];
    for point in points {
        rows.push(vec![
            point.what.to_owned(),
            whole(point.rows as f64),
            whole(point.payload_bytes.into()),
            point.headers.to_string(),
            whole(point.topic_bytes_per_event),
            whole(point.events_per_s),
            whole(point.events_per_s * f64::from(point.payload_bytes) / 1e6),
            format!("{:.2}", point.relay_us_per_event),
            format!("{:.2}", point.postgres_us_per_event),
            format!("{:.2}", point.broker_us_per_event),
            whole(point.peak_rss_mib),
        ]);
    }
    Table {
        heading: heading.to_owned(),
        note,
        rows,
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Formats a number without a fraction, in groups of three digits.
fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn digits_are_grouped_by_three() {
        let found = [1.2, 999.6, 123_456.0, 1e7].map(whole);
        assert_eq!(found, ["1", "1,000", "123,456", "10,000,000"]);
    }
}
