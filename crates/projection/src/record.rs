use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::{
    Message as _,
    message::{BorrowedMessage, Headers as _},
};
use serde::Deserialize;

use crate::poison::Poison;

/// A record, as it was found in Kafka.
#[derive(Debug)]
pub struct Record<'a> {
    partition: i32,
    offset: i64,
    key: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
    /// None if they can't be read.
    headers: Option<Vec<RecordHeader<'a>>>,
}

/// Its name, and its value if it has one.
pub(crate) type RecordHeader<'a> = (&'a str, Option<&'a [u8]>);

impl<'a> Record<'a> {
    /// A record with its partition and offset, for those who try a [`Projection`](crate::Projection)
    /// without [`follow`](crate::follow). The headers are none if they can't be read.
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

    pub(crate) fn of(message: &'a BorrowedMessage<'a>) -> Self {
        let place = (message.partition(), message.offset());
        Self::new(
            place,
            message.key(),
            message.payload(),
            read_headers(message),
        )
    }

    /// # Errors
    /// [`Poison`] if no projection can read the record.
    pub(crate) fn check(&self) -> Result<(), Poison> {
        match self.headers {
            Some(_) => Ok(()),
            None => Err(Poison::new(
                "header",
                "a header's name is not in UTF-8; none of the headers is kept here",
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

    /// All headers; none if they can't be read.
    pub(crate) fn headers(&self) -> &[RecordHeader<'a>] {
        self.headers.as_deref().unwrap_or_default()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let mut headers = self.headers().iter();
        headers.find(|(key, _)| *key == name)?.1
    }

    /// The key.
    ///
    /// # Errors
    /// [`Poison`] if there is none, or it is no text.
    pub fn key_text(&self) -> Result<&'a str, Poison> {
        text(
            self.key()
                .ok_or_else(|| Poison::new("key", "there is no key"))?,
            "key",
        )
    }

    /// The payload, or none for a tombstone.
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.payload
    }

    /// The payload.
    ///
    /// # Errors
    /// [`Poison`] if there is none, or it is no text.
    pub fn payload_text(&self) -> Result<&'a str, Poison> {
        text(self.required_payload()?, "payload")
    }

    /// What the payload says, in JSON.
    ///
    /// # Errors
    /// [`Poison`] if there is none, or it says no such thing; where, and nothing of what it holds.
    pub fn payload_json<T: Deserialize<'a>>(&self) -> Result<T, Poison> {
        serde_json::from_slice(self.required_payload()?).map_err(|err| Poison::json(&err))
    }

    /// The value of a header that must be there.
    ///
    /// # Errors
    /// [`Poison`] if it is not, or is no text.
    pub fn required_header(&self, name: &str) -> Result<&'a str, Poison> {
        let missing = || Poison::new("header", format!("there is no {name}"));
        text(self.header(name).ok_or_else(missing)?, "header")
    }

    /// The type of the event that the record is: a CloudEvent in Kafka's binary mode.
    ///
    /// # Errors
    /// [`Poison`] if it is none, or one of another major version, which may mean anything.
    pub fn event_type(&self) -> Result<&'a str, Poison> {
        match self.required_header("ce_specversion")?.split('.').next() {
            Some("1") => self.required_header("ce_type"),
            _ => Err(Poison::new("version", "it is no CloudEvent of version 1")),
        }
    }

    fn required_payload(&self) -> Result<&'a [u8], Poison> {
        self.payload()
            .ok_or_else(|| Poison::new("payload", "it is empty"))
    }
}

/// All headers, or none if a name is not in UTF-8: rdkafka panics then, and has no other way to tell.
fn read_headers<'a>(message: &'a BorrowedMessage<'a>) -> Option<Vec<RecordHeader<'a>>> {
    let Some(headers) = message.headers() else {
        return Some(Vec::new());
    };
    // Nothing is left half done: the headers are only read.
    let read = || headers.iter().map(|h| (h.key, h.value)).collect();
    catch_unwind(AssertUnwindSafe(read)).ok()
}

fn text<'a>(bytes: &'a [u8], class: &'static str) -> Result<&'a str, Poison> {
    std::str::from_utf8(bytes).map_err(|_| Poison::new(class, "it is not in UTF-8"))
}
