use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::{
    Message as _,
    message::{BorrowedMessage, Headers as _},
};
use serde::Deserialize;

use crate::poison::Poison;

/// A Kafka record.
#[derive(Debug)]
pub struct Record<'a> {
    partition: i32,
    offset: i64,
    key: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
    /// `None` if a name is not valid UTF-8.
    headers: Option<Vec<RecordHeader<'a>>>,
}

/// The name and the value of a header.
pub(crate) type RecordHeader<'a> = (&'a str, Option<&'a [u8]>);

impl<'a> Record<'a> {
    /// Creates a record, to test a [`Projection`](crate::Projection) without a consumer. `headers` is `None`
    /// if a header's name is not valid UTF-8.
    pub fn new(
        (partition, offset): (i32, i64),
        key: Option<&'a [u8]>,
        payload: Option<&'a [u8]>,
        headers: Option<Vec<RecordHeader<'a>>>,
    ) -> Self {
        Self {
            partition,
            offset,
            key,
            payload,
            headers,
        }
    }

    pub(crate) fn from_message(message: &'a BorrowedMessage<'a>) -> Self {
        let position = (message.partition(), message.offset());
        Self::new(
            position,
            message.key(),
            message.payload(),
            read_headers(message),
        )
    }

    /// # Errors
    /// [`Poison`] if a header's name is not valid UTF-8.
    pub(crate) fn validate_headers(&self) -> Result<(), Poison> {
        match self.headers {
            Some(_) => Ok(()),
            None => Err(Poison::new(
                "header",
                "the name of a header is not valid UTF-8; no headers are kept",
            )),
        }
    }

    pub(crate) fn partition(&self) -> i32 {
        self.partition
    }

    pub(crate) fn offset(&self) -> i64 {
        self.offset
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// Returns all headers. Empty if a name is not valid UTF-8.
    pub(crate) fn headers(&self) -> &[RecordHeader<'a>] {
        self.headers.as_deref().unwrap_or_default()
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let mut headers = self.headers().iter();
        headers.find(|(key, _)| *key == name)?.1
    }

    /// Returns the key.
    ///
    /// # Errors
    /// [`Poison`] if the record has no key, or it is not valid UTF-8.
    pub fn key_text(&self) -> Result<&'a str, Poison> {
        parse_text(
            self.key()
                .ok_or_else(|| Poison::new("key", "missing key"))?,
            "key",
        )
    }

    /// Returns the payload, or `None` for a tombstone.
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.payload
    }

    /// Returns the payload.
    ///
    /// # Errors
    /// [`Poison`] if the record has no payload, or it is not valid UTF-8.
    pub fn payload_text(&self) -> Result<&'a str, Poison> {
        parse_text(self.required_payload()?, "payload")
    }

    /// Parses the payload as JSON.
    ///
    /// # Errors
    /// [`Poison`] if the record has no payload, or it is not JSON of this type. The reason has the position
    /// of the error and none of the payload.
    pub fn payload_json<T: Deserialize<'a>>(&self) -> Result<T, Poison> {
        serde_json::from_slice(self.required_payload()?)
            .map_err(|err| Poison::from_json_error(&err))
    }

    /// Returns the value of a required header.
    ///
    /// # Errors
    /// [`Poison`] if the header is missing, or is not valid UTF-8.
    pub fn required_header(&self, name: &str) -> Result<&'a str, Poison> {
        let missing = || Poison::new("header", format!("missing header {name}"));
        parse_text(self.header(name).ok_or_else(missing)?, "header")
    }

    /// Returns the event type of a record that is a CloudEvent in Kafka's binary content mode.
    ///
    /// # Errors
    /// [`Poison`] if the record is not a CloudEvent, or has another major version.
    pub fn event_type(&self) -> Result<&'a str, Poison> {
        match self.required_header("ce_specversion")?.split('.').next() {
            Some("1") => self.required_header("ce_type"),
            _ => Err(Poison::new("version", "not a CloudEvent of version 1")),
        }
    }

    fn required_payload(&self) -> Result<&'a [u8], Poison> {
        self.payload()
            .ok_or_else(|| Poison::new("payload", "missing payload"))
    }
}

/// Reads all headers. Returns `None` if a name is not valid UTF-8: rdkafka panics then.
fn read_headers<'a>(message: &'a BorrowedMessage<'a>) -> Option<Vec<RecordHeader<'a>>> {
    let Some(headers) = message.headers() else {
        return Some(Vec::new());
    };
    // Unwind-safe: the headers are only read.
    let read = || headers.iter().map(|h| (h.key, h.value)).collect();
    catch_unwind(AssertUnwindSafe(read)).ok()
}

fn parse_text<'a>(bytes: &'a [u8], class: &'static str) -> Result<&'a str, Poison> {
    std::str::from_utf8(bytes).map_err(|_| Poison::new(class, "not valid UTF-8"))
}
