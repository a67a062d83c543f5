//! Truncates published partitions. No row is deleted, so vacuum has no work, even while an old transaction is open.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    config::SourceConfig,
    postgres::{
        leader::Leadership, session::DatabaseError, verification::connect_to_leaders_database,
    },
};

/// Truncates each partition whose rows are published, and to which no new rows go. Skips a partition that it can't lock
/// within the `lock_timeout`. Continues with the other partitions after an error, and fails with the first one.
const TRUNCATE: &str = include_str!("truncation.sql");
/// Selects the report of the last [`TRUNCATE`] in this session.
const REPORT: &str = "select current_setting('outbox_relay.truncation_report', true)";

/// The `lock_timeout` is short: sessions that access a partition wait behind a truncation that waits for it. Only unusually slow
/// transactions still write to it. The other settings force index scans, because the statistics of a partition that was just
/// filled are wrong.
const SETTINGS: [(&str, &str); 4] = [
    ("lock_timeout", "100"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
];

/// The timeout for all partitions.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The age of its last heartbeat from which another source is reported for blocking a truncation.
const IDLE_SOURCE_AFTER: Duration = Duration::from_mins(10);

/// The result of [`truncate_published_partitions`].
#[derive(Default)]
pub(crate) struct TruncationReport {
    pub(crate) truncated: Vec<String>,
    /// A partition that an idle source blocks.
    pub(crate) blocked: Option<BlockedPartition>,
}

/// A partition that can't be truncated because an idle source has not published all of its rows.
pub(crate) struct BlockedPartition {
    pub(crate) partition: String,
    pub(crate) source: String,
    pub(crate) idle_for: Duration,
}

/// What `truncation.sql` reports.
#[derive(Deserialize)]
struct Report {
    truncated: Vec<String>,
    blocked: Vec<Blocked>,
}

/// A partition with rows that a source has not published.
#[derive(Deserialize)]
struct Blocked {
    partition: String,
    source: String,
    idle_s: f64,
}

/// Truncates each published partition. The report is complete also after an error.
pub(crate) async fn truncate_published_partitions(
    config: &SourceConfig,
    leadership: &Leadership,
    report: &mut TruncationReport,
) -> Result<(), DatabaseError> {
    // A separate session, because locks take time.
    // Verified: a copy of the database would have the same checkpoint, and rows that were never published.
    let identity = leadership.identity();
    let mut session =
        connect_to_leaders_database(config, identity, "outbox-relay truncation").await?;
    let retention_s = config.retention.as_secs_f64().to_string();
    let mut settings = SETTINGS.to_vec();
    settings.push(("outbox_relay.retention_s", &retention_s));
    session.apply_settings(&settings).await?;
    session.set_timeout(TIMEOUT).await?;
    let result = session.batch_execute(TRUNCATE).await;
    if session.is_closed() || matches!(result, Err(DatabaseError::Timeout(_))) {
        return result;
    }
    let row = session.query_one(REPORT, &[]).await?;
    let json: Option<&str> = row.get(0);
    let Some(Report { truncated, blocked }) = json.and_then(|json| serde_json::from_str(json).ok())
    else {
        return result;
    };
    report.truncated = truncated;
    report.blocked = blocked
        .into_iter()
        .map(|blocked| BlockedPartition {
            partition: blocked.partition,
            source: blocked.source,
            idle_for: Duration::try_from_secs_f64(blocked.idle_s).unwrap_or_default(),
        })
        .rfind(|blocked| blocked.source != config.name && blocked.idle_for > IDLE_SOURCE_AFTER);
    result
}
