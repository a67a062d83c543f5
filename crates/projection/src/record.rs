use rdkafka::{
    Message as _,
    message::{BorrowedMessage, Headers as _},
};

use crate::poison::Poison;

/// A record, as it was found in Kafka.
#[derive(Debug)]
pub struct Record<'a>(pub(crate) &'a BorrowedMessage<'a>);

impl<'a> Record<'a> {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.0
            .headers()?
            .iter()
            .find(|header| header.key == name)?
            .value
    }

    /// The key.
    ///
    /// # Errors
    /// [`Poison`] if there is none, or it is no text.
    pub fn key_text(&self) -> Result<&'a str, Poison> {
        text(
            self.0
                .key()
                .ok_or_else(|| Poison::new("key", "there is no key"))?,
            "key",
        )
    }

    /// The payload, or none for a tombstone.
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.0.payload()
    }

    /// The payload.
    ///
    /// # Errors
    /// [`Poison`] if there is none, or it is no text.
    pub fn payload_text(&self) -> Result<&'a str, Poison> {
        let payload = self
            .0
            .payload()
            .ok_or_else(|| Poison::new("payload", "it is empty"))?;
        text(payload, "payload")
    }

    /// The value of a header that must be there.
    ///
    /// # Errors
    /// [`Poison`] if it is not, or is no text.
    pub fn required_header(&self, name: &str) -> Result<&'a str, Poison> {
        let missing = || Poison::new("header", format!("there is no {name}"));
        text(self.header(name).ok_or_else(missing)?, "header")
    }
}

fn text<'a>(bytes: &'a [u8], class: &'static str) -> Result<&'a str, Poison> {
    std::str::from_utf8(bytes).map_err(|_| Poison::new(class, "it is not in UTF-8"))
}
