//! Builds a Kafka record from an outbox row.

use std::{borrow::Cow, fmt};

use chrono::{DateTime, Datelike as _};
use serde::{
    Deserialize, Deserializer as _,
    de::{MapAccess, Visitor},
};

use crate::{
    config::{OWN_HEADERS, PARTITION_HEADER, TIMESTAMP_HEADER},
    kafka::{Headers, Record},
    postgres::reader::Row,
};

/// Builds records from rows: CloudEvents 1.0 in Kafka's binary content mode. See
/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>.
#[derive(Debug)]
pub struct RecordBuilder {
    /// The headers that every record with a payload shares.
    common: Headers,
    /// The same without `content-type`, because a tombstone has no data.
    tombstone: Headers,
    headers: Headers,
    time: TimeFormatter,
}

/// The reason why a row cannot become a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRow {
    /// Its headers are not a JSON object of strings.
    #[error("column headers is not a JSON object of strings")]
    Headers,
    /// It has a header that the relay sets. Consumers could read either value.
    #[error("column headers contains {0}, which the relay sets itself")]
    OwnHeader(&'static str),
    /// The partition is not a number of one.
    #[error("its partition is not an integer between 0 and {}", i32::MAX)]
    Partition,
    /// The timestamp cannot be that of a record.
    #[error("its timestamp is not a time since 1970")]
    Timestamp,
    /// RFC 3339 has no form for its time: infinity, or a year with more than four digits.
    #[error("column created_at is not a time between the years 0 and 9999")]
    Time,
}

impl RecordBuilder {
    /// Creates a builder. `ce_source` names the system that emits the events, `content_type` the format of payloads.
    pub fn new(ce_source: &str, content_type: &str) -> Self {
        let mut tombstone = Headers::default();
        tombstone.push("ce_specversion", b"1.0");
        tombstone.push("ce_source", ce_source.as_bytes());
        let mut common = tombstone.clone();
        common.push("content-type", content_type.as_bytes());
        Self {
            common,
            tombstone,
            headers: Headers::default(),
            time: TimeFormatter::default(),
        }
    }

    /// Builds the record of a row. A null payload makes a tombstone, which has no `content-type`.
    ///
    /// # Errors
    /// If the row cannot be a CloudEvent.
    pub fn build<'a>(&'a mut self, row: &Row<'a>) -> Result<Record<'a>, BadRow> {
        let headers = &mut self.headers;
        headers.clear();
        let mut placement = Placement::default();
        headers.extend(match row.payload {
            Some(_) => &self.common,
            None => &self.tombstone,
        });
        let id = row.event_id.hyphenated();
        headers.push("ce_id", id.encode_lower(&mut [0; 36]).as_bytes());
        headers.push("ce_type", row.event_type.as_bytes());
        if let Some(created_at_us) = row.created_at_us {
            let time = self.time.format(created_at_us).ok_or(BadRow::Time)?;
            headers.push("ce_time", time);
        }
        if let Some(version) = row.aggregate_version {
            let mut digits = itoa::Buffer::new();
            headers.push("ce_aggregateversion", digits.format(version).as_bytes());
        }
        if let Some(traceparent) = row.traceparent {
            headers.push("traceparent", traceparent.as_bytes());
        }
        if let Some(json) = row.headers {
            let mut parser = serde_json::Deserializer::from_slice(json);
            let own_header = parser
                .deserialize_map(RowHeaders {
                    headers,
                    placement: &mut placement,
                })
                .and_then(|own_header| parser.end().map(|()| own_header))
                .map_err(|_| BadRow::Headers)?;
            if let Some(name) = own_header {
                return Err(BadRow::OwnHeader(name));
            }
        }
        let Placement {
            partition,
            timestamp_ms,
            invalid,
        } = placement;
        if let Some(invalid) = invalid {
            return Err(invalid);
        }
        let (topic, key, payload) = (row.topic, row.key.as_bytes(), row.payload);
        Ok(Record {
            topic,
            key,
            payload,
            headers,
            partition,
            timestamp_ms,
        })
    }
}

/// Where and when a record is stored, as the headers [`PARTITION_HEADER`] and [`TIMESTAMP_HEADER`] of its row say.
#[derive(Debug, Default)]
struct Placement {
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
    invalid: Option<BadRow>,
}

impl Placement {
    /// Takes a header that places the record. Returns false for any other.
    fn take(&mut self, name: &str, value: &str) -> bool {
        match name {
            PARTITION_HEADER => match value.parse() {
                Ok(partition @ 0..) => self.partition = Some(partition),
                _ => self.invalid = Some(BadRow::Partition),
            },
            TIMESTAMP_HEADER => match value.parse() {
                Ok(timestamp_ms @ 0..) => self.timestamp_ms = Some(timestamp_ms),
                _ => self.invalid = Some(BadRow::Timestamp),
            },
            _ => return false,
        }
        true
    }
}

/// Appends the headers of a JSON object. Returns the first name that the relay sets itself, if there is one.
struct RowHeaders<'a> {
    headers: &'a mut Headers,
    placement: &'a mut Placement,
}

impl<'de> Visitor<'de> for RowHeaders<'_> {
    type Value = Option<&'static str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut own_header = None;
        while let Some((Text(name), Text(value))) = map.next_entry()? {
            own_header = own_header.or(OWN_HEADERS.into_iter().find(|own| *own == name));
            if !self.placement.take(&name, &value) {
                self.headers.push(&name, value.as_bytes());
            }
        }
        Ok(own_header)
    }
}

/// A string, borrowed unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Formats times as RFC 3339 with microseconds. Caches the text up to the second, because consecutive rows
/// mostly share it.
#[derive(Debug, Default)]
struct TimeFormatter {
    second: Option<i64>,
    text: Vec<u8>,
}

impl TimeFormatter {
    /// Returns `None` for a time that RFC 3339 cannot express.
    fn format(&mut self, unix_us: i64) -> Option<&[u8]> {
        const DIGITS: usize = 6;
        let (second, mut us) = (unix_us.div_euclid(1_000_000), unix_us.rem_euclid(1_000_000));
        if self.second != Some(second) {
            let time = DateTime::from_timestamp(second, 0)?;
            if !(0..=9_999).contains(&time.year()) {
                return None;
            }
            self.text = time.format("%Y-%m-%dT%H:%M:%S.000000Z").to_string().into();
            self.second = Some(second);
        }
        let end = self.text.len() - 1;
        for digit in self.text[end - DIGITS..end].iter_mut().rev() {
            *digit = b'0' + u8::try_from(us % 10).unwrap_or(0);
            us /= 10;
        }
        Some(&self.text)
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
        aggregate_version: Some(3),
        payload: Some(b"{}"),
        headers: None,
        traceparent: None,
        created_at_us: Some(1_767_323_045_678_901),
    };

    fn headers_of(row: &Row<'static>) -> Vec<(String, String)> {
        let mut builder = RecordBuilder::new("/users", "application/json");
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        // Built twice, because a record must not inherit headers from the one before.
        builder
            .build(&Row {
                headers: Some(br#"{"other":"x"}"#),
                ..ROW
            })
            .unwrap();
        let record = builder.build(row).unwrap();
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
            ("ce_source", "/users"),
            ("content-type", "application/json"),
            ("ce_id", "0199d0a0-0000-7000-8000-000000000001"),
            ("ce_type", "user_created"),
            ("ce_time", "2026-01-02T03:04:05.678901Z"),
            ("ce_aggregateversion", "3"),
        ];
        assert_eq!(
            headers_of(&ROW),
            expected.map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
    }

    /// A tombstone has no data that a content type could describe.
    #[test]
    fn a_tombstone_has_no_content_type() {
        let tombstone = Row {
            payload: None,
            ..ROW
        };
        let mut expected = headers_of(&ROW);
        expected.retain(|(name, _)| name != "content-type");
        assert_eq!(expected.len(), 6);
        assert_eq!(headers_of(&tombstone), expected);
    }

    #[test]
    fn trace_and_row_headers_follow_the_event_headers() {
        let row = Row {
            traceparent: Some("00-1-2-01"),
            headers: Some(br#"{"a":"1","b":"x\"\n\u00e4"}"#),
            ..ROW
        };
        let expected = [
            ("traceparent", "00-1-2-01"),
            ("a", "1"),
            ("b", "x\"\n\u{e4}"),
        ];
        assert_eq!(
            headers_of(&row)[7..],
            expected.map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
    }

    #[test]
    fn headers_other_than_an_object_of_strings_are_rejected() {
        let mut builder = RecordBuilder::new("/users", "application/json");
        for json in [r#"{"a":1}"#, r#"{"a":"x"} 1"#, "[]", "1", ""] {
            assert!(
                builder
                    .build(&Row {
                        headers: Some(json.as_bytes()),
                        ..ROW
                    })
                    .is_err(),
                "{json}"
            );
        }
    }

    #[test]
    fn partition_and_timestamp_are_taken_out_of_the_headers() {
        let mut builder = RecordBuilder::new("/users", "application/json");
        let json = br#"{"a":"1","relay_partition":"3","relay_timestamp_ms":"1700000000123"}"#;
        let row = Row {
            headers: Some(json),
            ..ROW
        };
        let record = builder.build(&row).unwrap();
        assert_eq!(record.partition, Some(3));
        assert_eq!(record.timestamp_ms, Some(1_700_000_000_123));
        let names: Vec<&str> = record
            .headers
            .iter()
            .skip(7)
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a"]);
        let record = builder.build(&ROW).unwrap();
        assert_eq!((record.partition, record.timestamp_ms), (None, None));
        for (name, value, reason) in [
            (PARTITION_HEADER, "-1", BadRow::Partition),
            (PARTITION_HEADER, "3000000000", BadRow::Partition),
            (TIMESTAMP_HEADER, "-1", BadRow::Timestamp),
            (TIMESTAMP_HEADER, "infinity", BadRow::Timestamp),
        ] {
            let json = format!(r#"{{"{name}":"{value}"}}"#);
            let row = Row {
                headers: Some(json.as_bytes()),
                ..ROW
            };
            assert_eq!(builder.build(&row).unwrap_err(), reason);
        }
    }

    #[test]
    fn headers_that_the_relay_sets_are_rejected() {
        let mut builder = RecordBuilder::new("/users", "application/json");
        for name in OWN_HEADERS {
            let json = format!(r#"{{"a":"1","{name}":"x","b":"2"}}"#);
            let row = Row {
                headers: Some(json.as_bytes()),
                ..ROW
            };
            assert_eq!(builder.build(&row).unwrap_err(), BadRow::OwnHeader(name));
        }
    }

    #[test]
    fn times_that_rfc_3339_cannot_express_are_rejected() {
        let mut builder = RecordBuilder::new("/users", "application/json");
        // Infinity as the reader decodes it, minus infinity, and the year 10000.
        for created_at_us in [i64::MAX, i64::MIN, 253_402_300_800_000_000] {
            let row = Row {
                created_at_us: Some(created_at_us),
                ..ROW
            };
            assert_eq!(builder.build(&row).unwrap_err(), BadRow::Time);
            // The next row is not affected.
            assert!(builder.build(&ROW).is_ok());
        }
    }

    #[test]
    fn times_are_formatted_as_by_chrono() {
        let mut formatter = TimeFormatter::default();
        for unix_us in [
            0,
            1,
            999_999,
            1_000_000,
            1_767_323_045_678_901,
            1_767_323_045_678_902,
            -1,
        ] {
            let text = formatter.format(unix_us).unwrap().to_vec();
            let time = DateTime::from_timestamp_micros(unix_us).unwrap();
            let expected = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}
