//! From a row of the outbox to a record of Kafka.

use std::{collections::BTreeMap, io::Write as _};

use chrono::DateTime;

use crate::reader::Row;

/// A record, ready to be sent. Everything is borrowed: nothing is copied before the sink does.
#[derive(Debug)]
pub struct Record<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Records of one key go to one partition, in the order in which they are sent.
    pub key: &'a [u8],
    /// The value; none is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// What comes beside it.
    pub headers: &'a Headers,
}

/// The headers of one record, in one buffer that the next record uses again.
#[derive(Debug, Default)]
pub struct Headers {
    text: Vec<u8>,
    /// Where each name ends and where its value does.
    ends: Vec<(usize, usize)>,
}

impl Headers {
    /// Name and value of each header, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        self.ends
            .iter()
            .enumerate()
            .map(|(index, &(name_end, value_end))| {
                let start = if index == 0 {
                    0
                } else {
                    self.ends[index - 1].1
                };
                let name = std::str::from_utf8(&self.text[start..name_end]).unwrap_or_default();
                (name, &self.text[name_end..value_end])
            })
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    fn push(&mut self, name: &str, value: &[u8]) {
        self.push_with(name, |text| text.extend_from_slice(value));
    }

    /// A header whose value is written straight into the buffer.
    fn push_with(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.text.extend_from_slice(name.as_bytes());
        let name_end = self.text.len();
        write(&mut self.text);
        self.ends.push((name_end, self.text.len()));
    }
}

/// Turns rows into records: CloudEvents 1.0 in Kafka's binary mode. See
/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>.
#[derive(Debug)]
pub struct Router {
    ce_source: String,
    content_type: String,
    headers: Headers,
    clock: ClockText,
}

/// A row that can't become a record.
#[derive(Debug, thiserror::Error)]
#[error("column headers isn't an object of strings")]
pub struct BadHeaders;

impl Router {
    /// `ce_source` names the system that the events come from, `content_type` is that of payloads.
    pub fn new(ce_source: String, content_type: String) -> Self {
        Self {
            ce_source,
            content_type,
            headers: Headers::default(),
            clock: ClockText::default(),
        }
    }

    /// The record of a row.
    ///
    /// # Errors
    /// If the row's own headers can't be read.
    pub fn route<'a>(&'a mut self, row: &Row<'a>) -> Result<Record<'a>, BadHeaders> {
        let headers = &mut self.headers;
        headers.clear();
        headers.push("ce_specversion", b"1.0");
        headers.push(
            "ce_id",
            row.event_id
                .hyphenated()
                .encode_lower(&mut [0; 36])
                .as_bytes(),
        );
        headers.push("ce_source", self.ce_source.as_bytes());
        headers.push("ce_type", row.event_type.as_bytes());
        headers.push_with("ce_time", |text| self.clock.write(row.created_at_us, text));
        headers.push_with("ce_aggregateversion", |text| {
            // Writing to memory doesn't fail.
            let _ = write!(text, "{}", row.aggregate_version);
        });
        headers.push("content-type", self.content_type.as_bytes());
        if let Some(traceparent) = row.traceparent {
            headers.push("traceparent", traceparent.as_bytes());
        }
        if let Some(json) = row.headers {
            let own: BTreeMap<&str, &str> = serde_json::from_slice(json).map_err(|_| BadHeaders)?;
            for (name, value) in own {
                headers.push(name, value.as_bytes());
            }
        }
        let (topic, key, payload) = (row.topic, row.key.as_bytes(), row.payload);
        Ok(Record {
            topic,
            key,
            payload,
            headers,
        })
    }
}

/// Writes times as RFC 3339. Rows come roughly in the order of time, so the part up to the second
/// is mostly that of the row before.
#[derive(Debug, Default)]
struct ClockText {
    second: Option<i64>,
    to_the_second: String,
}

impl ClockText {
    fn write(&mut self, unix_us: i64, out: &mut Vec<u8>) {
        let (second, us) = (unix_us.div_euclid(1_000_000), unix_us.rem_euclid(1_000_000));
        if self.second != Some(second) {
            let time = DateTime::from_timestamp(second, 0).unwrap_or_default();
            self.to_the_second = time.format("%Y-%m-%dT%H:%M:%S").to_string();
            self.second = Some(second);
        }
        out.extend_from_slice(self.to_the_second.as_bytes());
        // Writing to memory doesn't fail.
        let _ = write!(out, ".{us:06}Z");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row<'static> = Row {
        seq: 7,
        event_id: uuid::uuid!("0199d0a0-0000-7000-8000-000000000001"),
        topic: "users.v1",
        key: "42",
        event_type: "user_created",
        aggregate_version: 3,
        payload: Some(b"{}"),
        headers: None,
        traceparent: None,
        created_at_us: 1_767_323_045_678_901,
    };

    fn headers_of(row: &Row<'static>) -> Vec<(String, String)> {
        let mut router = Router::new("/users".into(), "application/json".into());
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        // Twice, because a record must not inherit anything from the one before.
        router
            .route(&Row {
                headers: Some(br#"{"other":"x"}"#),
                ..ROW
            })
            .unwrap();
        let record = router.route(row).unwrap();
        record
            .headers
            .iter()
            .map(|(name, value)| (name.to_owned(), text(value)))
            .collect()
    }

    #[test]
    fn a_record_is_a_cloud_event() {
        let expected = [
            ("ce_specversion", "1.0"),
            ("ce_id", "0199d0a0-0000-7000-8000-000000000001"),
            ("ce_source", "/users"),
            ("ce_type", "user_created"),
            ("ce_time", "2026-01-02T03:04:05.678901Z"),
            ("ce_aggregateversion", "3"),
            ("content-type", "application/json"),
        ];
        assert_eq!(
            headers_of(&ROW),
            expected.map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
    }

    #[test]
    fn trace_and_own_headers_follow() {
        let row = Row {
            traceparent: Some("00-1-2-01"),
            headers: Some(br#"{"a":"1"}"#),
            ..ROW
        };
        let expected = [("traceparent", "00-1-2-01"), ("a", "1")];
        assert_eq!(
            headers_of(&row)[7..],
            expected.map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
    }

    #[test]
    fn headers_that_are_no_strings_are_refused() {
        let mut router = Router::new("/users".into(), "application/json".into());
        for json in [r#"{"a":1}"#, "[]", "1", ""] {
            assert!(
                router
                    .route(&Row {
                        headers: Some(json.as_bytes()),
                        ..ROW
                    })
                    .is_err(),
                "{json}"
            );
        }
    }

    #[test]
    fn times_are_written_as_chrono_writes_them() {
        let mut clock = ClockText::default();
        for unix_us in [
            0,
            1,
            999_999,
            1_000_000,
            1_767_323_045_678_901,
            1_767_323_045_678_902,
            -1,
        ] {
            let mut text = Vec::new();
            clock.write(unix_us, &mut text);
            let time = DateTime::from_timestamp_micros(unix_us).unwrap();
            let expected = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}
