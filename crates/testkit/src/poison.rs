use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use devstack::{Addresses, NewRecord, Sql, WAIT_TIMEOUT};

use crate::RunningService;

/// The name and value of a header.
pub type Header = (&'static str, &'static str);

/// A kind of poison record.
pub struct PoisonRecord {
    /// The defect.
    pub what: &'static str,
    /// The error class of its dead letter; `None` if the record is skipped or applied.
    pub class: Option<&'static str>,
    /// It counts as applied, although it changes nothing.
    pub is_applied: bool,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<Header>,
}

impl PoisonRecord {
    pub fn new(
        what: &'static str,
        class: Option<&'static str>,
        key: Option<Vec<u8>>,
        payload: Option<Vec<u8>>,
        headers: &[Header],
    ) -> Self {
        Self {
            what,
            class,
            is_applied: false,
            key,
            payload,
            headers: headers.to_vec(),
        }
    }

    /// Expects that the record counts as applied.
    #[must_use]
    pub fn applied(self) -> Self {
        Self {
            is_applied: true,
            ..self
        }
    }

    pub fn record(&self) -> NewRecord<'_> {
        NewRecord {
            key: self.key.as_deref(),
            payload: self.payload.as_deref(),
            headers: &self.headers,
            ..NewRecord::default()
        }
    }

    /// Asserts that the record is dead-lettered unchanged, in the table and in the topic.
    ///
    /// # Errors
    /// If there is no dead letter, or the query fails.
    ///
    /// # Panics
    /// If the dead letter differs.
    pub async fn assert_dead_lettered(
        &self,
        sql: &Sql,
        class: &str,
        offset: i64,
        copy: &devstack::Record,
    ) -> Result<()> {
        let query =
            "select key, payload, header_names, header_values, error_class, topic, partition
                     from dead_letters where record_offset = $1";
        let row = sql.query_opt(query, &[&offset]).await?;
        let row = row.context("no dead letter")?;
        let (names, values): (Vec<&str>, Vec<&[u8]>) = (self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes())))
        .unzip();
        assert_eq!(row.get::<_, Option<&[u8]>>(0), self.key.as_deref());
        assert_eq!(row.get::<_, Option<&[u8]>>(1), self.payload.as_deref());
        assert_eq!(row.get::<_, Vec<&str>>(2), names);
        assert_eq!(row.get::<_, Vec<&[u8]>>(3), values);
        assert_eq!(row.get::<_, &str>(4), class);

        let key = String::from_utf8_lossy(self.key.as_deref().unwrap_or_default());
        assert_eq!((&*copy.key, &copy.payload), (&*key, &self.payload));
        let (own, added) = copy.headers.split_at(self.headers.len());
        let own: Vec<_> = own.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(own, self.headers);
        let (topic, offset) = (row.get::<_, String>(5), offset.to_string());
        let partition = row.get::<_, i32>(6).to_string();
        let origin = [
            ("dlq_topic", &*topic),
            ("dlq_partition", &*partition),
            ("dlq_offset", &*offset),
            ("dlq_class", class),
        ];
        for (name, value) in origin {
            assert_eq!(copy.header(name), Some(value));
        }
        assert!(added.iter().any(|(name, _)| name == "dlq_error"));
        Ok(())
    }
}

/// Writes the records `before` and `last`. Returns the time until the query `applied` selects a number other than 0.
///
/// # Errors
/// If the query fails, or after a timeout.
pub async fn time_to_apply(
    service: &RunningService,
    before: &[NewRecord<'_>],
    last: NewRecord<'_>,
    applied: &str,
) -> Result<Duration> {
    let records = [before, &[last]].concat();
    let started = Instant::now();
    let servers = Addresses::shared();
    servers.write_records(&service.name, &records).await?;
    let waiting = async {
        // Without a pause, which would be longer than the measured time.
        while service.sql.count(applied).await? == 0 {}
        anyhow::Ok(started.elapsed())
    };
    tokio::time::timeout(WAIT_TIMEOUT, waiting)
        .await
        .context("the last record was not applied")?
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
