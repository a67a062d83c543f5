//! From a row of the outbox to a record of Kafka.

use std::{borrow::Cow, fmt};

use chrono::{DateTime, Datelike as _};
use serde::{
    Deserialize, Deserializer as _,
    de::{MapAccess, Visitor},
};

use crate::{
    config::OWN_HEADERS,
    kafka::{Headers, Record},
    postgres::reader::Row,
};

/// Turns rows into records: CloudEvents 1.0 in Kafka's binary mode. See
/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>.
#[derive(Debug)]
pub struct Router {
    /// What is the same for every record.
    common: Headers,
    headers: Headers,
    clock: ClockText,
}

/// A row that can't become a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRow {
    /// Its headers can't be read.
    #[error("column headers isn't an object of strings")]
    Headers,
    /// It has one of the record's own headers, of which consumers would see either.
    #[error("column headers has {0}, a name that is the relay's own")]
    OwnHeader(&'static str),
    /// Its time can't be written as RFC 3339: infinity, or a year with more than four digits.
    #[error("column created_at isn't a time from year 0 to 9999")]
    Time,
}

impl Router {
    /// `ce_source` names the system that the events come from, `content_type` is that of payloads.
    pub fn new(ce_source: &str, content_type: &str) -> Self {
        let mut common = Headers::default();
        common.push("ce_specversion", b"1.0");
        common.push("ce_source", ce_source.as_bytes());
        common.push("content-type", content_type.as_bytes());
        Self {
            common,
            headers: Headers::default(),
            clock: ClockText::default(),
        }
    }

    /// The record of a row.
    ///
    /// # Errors
    /// If the row can't be a CloudEvent.
    pub fn route<'a>(&'a mut self, row: &Row<'a>) -> Result<Record<'a>, BadRow> {
        let headers = &mut self.headers;
        headers.clear();
        headers.extend(&self.common);
        let id = row.event_id.hyphenated();
        headers.push("ce_id", id.encode_lower(&mut [0; 36]).as_bytes());
        headers.push("ce_type", row.event_type.as_bytes());
        if let Some(created_at_us) = row.created_at_us {
            let time = self.clock.text(created_at_us).ok_or(BadRow::Time)?;
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
            let mut further = serde_json::Deserializer::from_slice(json);
            let repeated = further
                .deserialize_map(FurtherHeaders(headers))
                .and_then(|repeated| further.end().map(|()| repeated))
                .map_err(|_| BadRow::Headers)?;
            if let Some(name) = repeated {
                return Err(BadRow::OwnHeader(name));
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

/// Takes the headers of a JSON object, one after the other. The result is one that a record has by
/// itself, if it is among them.
struct FurtherHeaders<'a>(&'a mut Headers);

impl<'de> Visitor<'de> for FurtherHeaders<'_> {
    type Value = Option<&'static str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut repeated = None;
        while let Some((Text(name), Text(value))) = map.next_entry()? {
            repeated = repeated.or(OWN_HEADERS.into_iter().find(|own| *own == name));
            self.0.push(&name, value.as_bytes());
        }
        Ok(repeated)
    }
}

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Writes times as RFC 3339, to the microsecond. Rows come roughly in the order of time, so the part
/// up to the second is mostly that of the row before.
#[derive(Debug, Default)]
struct ClockText {
    second: Option<i64>,
    text: Vec<u8>,
}

impl ClockText {
    /// None for what RFC 3339 has no form for.
    fn text(&mut self, unix_us: i64) -> Option<&[u8]> {
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
        let mut router = Router::new("/users", "application/json");
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

    #[test]
    fn trace_and_own_headers_follow() {
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
    fn headers_that_are_no_strings_are_rejected() {
        let mut router = Router::new("/users", "application/json");
        for json in [r#"{"a":1}"#, r#"{"a":"x"} 1"#, "[]", "1", ""] {
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
    fn headers_that_a_record_has_by_itself_are_rejected() {
        let mut router = Router::new("/users", "application/json");
        for name in OWN_HEADERS {
            let json = format!(r#"{{"a":"1","{name}":"x","b":"2"}}"#);
            let row = Row {
                headers: Some(json.as_bytes()),
                ..ROW
            };
            assert_eq!(router.route(&row).unwrap_err(), BadRow::OwnHeader(name));
        }
    }

    #[test]
    fn times_that_have_no_form_are_rejected() {
        let mut router = Router::new("/users", "application/json");
        // Infinity as the reader has it, minus infinity, and the year 10000.
        for created_at_us in [i64::MAX, i64::MIN, 253_402_300_800_000_000] {
            let row = Row {
                created_at_us: Some(created_at_us),
                ..ROW
            };
            assert_eq!(router.route(&row).unwrap_err(), BadRow::Time);
            // The next row is none the worse for it.
            assert!(router.route(&ROW).is_ok());
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
            let text = clock.text(unix_us).unwrap().to_vec();
            let time = DateTime::from_timestamp_micros(unix_us).unwrap();
            let expected = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}
