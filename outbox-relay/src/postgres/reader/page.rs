//! Pages of outbox rows, decoded from the binary COPY format without copying.

use bytes::Bytes;
use uuid::Uuid;

use super::ReadError;
use crate::postgres::window::Position;

/// The columns of a row, in the order in which [`Row`] reads them.
pub(crate) const COLUMNS: &str =
    "seq, event_id, topic, key, event_type, aggregate_version, payload, headers,
     traceparent, created_at";
/// The number of these columns.
const FIELDS: i16 = 10;

/// The encoded rows of one page.
#[derive(Debug, Default)]
pub struct Page {
    rows: Vec<Bytes>,
    bytes: usize,
    /// True if the window ends with this page.
    is_last: bool,
    /// True if no row after the page shares the seq of its last row.
    has_complete_seqs: bool,
    repeated_seq: Option<i64>,
}

impl Page {
    /// Adds the row of a COPY message, if it contains one.
    pub(super) fn push(&mut self, message: Bytes) -> Result<(), ReadError> {
        if let Some(row) = strip_framing(message)? {
            self.bytes += row.len();
            self.rows.push(row);
        }
        Ok(())
    }

    /// Completes a page after the last of at most `max_rows` rows.
    pub(super) fn finish(&mut self, max_rows: usize) {
        self.is_last = self.rows.len() < max_rows;
    }

    /// Removes the rows of the last seq if it may be incomplete, and sorts the others by position. Returns `None` if no row
    /// is left.
    pub(super) fn keep_complete_seqs(mut self) -> Result<Option<Self>, ReadError> {
        let seqs = self.seqs()?;
        if !self.is_last
            && let Some(&last_seq) = seqs.last()
        {
            let whole = seqs.partition_point(|seq| *seq < last_seq);
            if whole == 0 {
                return Ok(None);
            }
            self.bytes -= self.rows.drain(whole..).map(|row| row.len()).sum::<usize>();
        }
        self.has_complete_seqs = true;
        let mut first = 0;
        for of_one_seq in seqs[..self.rows.len()].chunk_by(|a, b| a == b) {
            let end = first + of_one_seq.len();
            if of_one_seq.len() > 1 {
                self.repeated_seq = of_one_seq.first().copied();
                // Nulls last, as Postgres sorts them.
                self.rows[first..end].sort_by_key(|row| match decode_event_id(row) {
                    Some(event_id) => (false, event_id),
                    None => (true, Uuid::nil()),
                });
            }
            first = end;
        }
        Ok(Some(self))
    }

    /// Removes the rows of the last position if it may be incomplete. The rows must be sorted by position. Returns the seq as an
    /// inner error if no row is left.
    pub(super) fn keep_complete_positions(mut self) -> Result<Result<Self, i64>, ReadError> {
        let Some(last) = self.rows.last().filter(|_| !self.is_last) else {
            return Ok(Ok(self));
        };
        let (last_seq, last) = (decode_seq(last)?, decode_position(last)?);
        let mut whole = self.rows.len();
        while whole > 0 && decode_position(&self.rows[whole - 1])? == last {
            whole -= 1;
        }
        if whole == 0 {
            return Ok(Err(last_seq));
        }
        self.bytes -= self.rows.drain(whole..).map(|row| row.len()).sum::<usize>();
        self.repeated_seq = Some(last_seq);
        Ok(Ok(self))
    }

    /// Returns the rows in the order of their positions.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Result<Row<'_>, ReadError>> {
        self.rows.iter().map(|bytes| Row::parse(bytes))
    }

    /// Returns the position after this row. `None` if the next row has the same position. Decodes only seqs and event ids.
    ///
    /// # Errors
    /// If a row has no seq.
    ///
    /// # Panics
    /// If the index is out of bounds.
    pub fn position_after(&self, index: usize) -> Result<Option<Position>, ReadError> {
        let (seq, event_id) = decode_position(&self.rows[index])?;
        let shares_seq = match self.rows.get(index + 1) {
            Some(next) if decode_position(next)? == (seq, event_id) => return Ok(None),
            Some(next) => decode_seq(next)? == seq,
            None => !self.has_complete_seqs,
        };
        Ok(Some(Position {
            seq,
            event_id: event_id.filter(|_| shares_seq),
        }))
    }

    /// Returns a seq that several rows share.
    pub(crate) fn repeated_seq(&self) -> Option<i64> {
        self.repeated_seq
    }

    /// Returns the total size of the rows in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the seq of each row. The rows may have no other column.
    pub(super) fn seqs(&self) -> Result<Vec<i64>, ReadError> {
        self.rows.iter().map(|row| decode_seq(row)).collect()
    }

    /// Returns the page as one that is not the last of its window.
    pub(super) fn with_more_to_come(self) -> Self {
        Self {
            is_last: false,
            ..self
        }
    }

    /// Returns true if the window ends with this page.
    pub fn is_last(&self) -> bool {
        self.is_last
    }
}

/// A row of the outbox.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub seq: i64,
    pub event_id: Uuid,
    pub topic: &'a str,
    pub key: &'a str,
    pub event_type: &'a str,
    pub aggregate_version: Option<i64>,
    pub payload: Option<&'a [u8]>,
    /// A JSON object.
    pub headers: Option<&'a [u8]>,
    pub traceparent: Option<&'a str>,
    /// Microseconds since 1970-01-01 UTC.
    pub created_at_us: Option<i64>,
}

/// `PGCOPY`, and bytes that reveal conversions of line ends or of the eighth bit.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// 2000-01-01, the epoch of Postgres timestamps.
const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// Removes the header and the trailer of a COPY. Postgres sends each row in a separate message. The first message also has the
/// header, and the trailer has no row. See "COPY Operations" in
/// <https://www.postgresql.org/docs/current/protocol-flow.html>.
fn strip_framing(mut message: Bytes) -> Result<Option<Bytes>, ReadError> {
    if message.starts_with(SIGNATURE) {
        let mut header = Fields(&message[SIGNATURE.len()..]);
        let (_flags, extension) = (header.i32()?, header.i32()?);
        let extension = usize::try_from(extension).map_err(|_| TOO_SHORT)?;
        let length = SIGNATURE.len() + 8 + extension;
        if message.len() < length {
            return Err(TOO_SHORT);
        }
        message = message.split_off(length);
    }
    Ok((message.len() > 2).then_some(message))
}

const TOO_SHORT: ReadError = ReadError::Layout("truncated row");

/// Decodes the first column of a row.
fn decode_seq(row: &[u8]) -> Result<i64, ReadError> {
    let mut fields = Fields(row);
    fields.i16()?;
    fields.seq()
}

/// Decodes the second column of a row, if it is a UUID.
fn decode_event_id(row: &[u8]) -> Option<Uuid> {
    let mut fields = Fields(row);
    fields.i16().ok()?;
    fields.next().ok()?;
    Uuid::from_slice(fields.next().ok()??).ok()
}

fn decode_position(row: &[u8]) -> Result<(i64, Option<Uuid>), ReadError> {
    Ok((decode_seq(row)?, decode_event_id(row)))
}

impl<'a> Row<'a> {
    /// Decodes a row without copying.
    fn parse(bytes: &'a [u8]) -> Result<Self, ReadError> {
        let mut fields = Fields(bytes);
        if fields.i16()? != FIELDS {
            return Err(ReadError::Layout("unexpected number of columns"));
        }
        let seq = fields.seq()?;
        Self::parse_rest(seq, fields).map_err(|err| match err {
            ReadError::Layout(reason) => ReadError::Row { seq, reason },
            err => err,
        })
    }

    fn parse_rest(seq: i64, mut fields: Fields<'a>) -> Result<Self, ReadError> {
        Ok(Self {
            seq,
            event_id: Uuid::from_slice(
                fields.required("its event_id is null (source.columns.event_id)")?,
            )
            .map_err(|_| {
                ReadError::Layout("its event_id is not a uuid (source.columns.event_id)")
            })?,
            topic: text(fields.required("its topic is null (a column in source.topic)")?)?,
            key: text(fields.required("its key is null (source.columns.key)")?)?,
            event_type: text(
                fields.required("its event_type is null (source.columns.event_type)")?,
            )?,
            aggregate_version: fields.i64("its aggregate_version is not a bigint")?,
            payload: fields.next()?,
            headers: match fields.next()? {
                None => None,
                // Binary jsonb is the version 1 and the text.
                Some([1, json @ ..]) => Some(json),
                Some(_) => return Err(ReadError::Layout("column headers is not a jsonb")),
            },
            traceparent: fields.next()?.map(text).transpose()?,
            created_at_us: (fields.i64("its created_at is not a timestamptz")?)
                .map(|us| us.saturating_add(POSTGRES_EPOCH_UNIX_US)),
        })
    }
}

/// The remaining fields of a row: each is its length, or -1 for null, and its bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ReadError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TOO_SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn i16(&mut self) -> Result<i16, ReadError> {
        Ok(i16::from_be_bytes(
            self.take(2)?.try_into().map_err(|_| TOO_SHORT)?,
        ))
    }

    fn i32(&mut self) -> Result<i32, ReadError> {
        Ok(i32::from_be_bytes(
            self.take(4)?.try_into().map_err(|_| TOO_SHORT)?,
        ))
    }

    fn next(&mut self) -> Result<Option<&'a [u8]>, ReadError> {
        match self.i32()? {
            -1 => Ok(None),
            length => self
                .take(usize::try_from(length).map_err(|_| TOO_SHORT)?)
                .map(Some),
        }
    }

    fn required(&mut self, error: &'static str) -> Result<&'a [u8], ReadError> {
        self.next()?.ok_or(ReadError::Layout(error))
    }

    fn seq(&mut self) -> Result<i64, ReadError> {
        (self.i64("column seq is not a bigint")?).ok_or(ReadError::Layout("column seq is null"))
    }

    fn i64(&mut self, error: &'static str) -> Result<Option<i64>, ReadError> {
        let integer = |bytes: &[u8]| (bytes.try_into().ok()).map(i64::from_be_bytes);
        match self.next()? {
            None => Ok(None),
            Some(bytes) => (integer(bytes).map(Some)).ok_or(ReadError::Layout(error)),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, ReadError> {
    std::str::from_utf8(bytes).map_err(|_| ReadError::Layout("the text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Row::parse(&bytes);
            let _ = strip_framing([SIGNATURE, &bytes].concat().into());
        }
    }
}
