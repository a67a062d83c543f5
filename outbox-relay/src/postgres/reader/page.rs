//! What a COPY of outbox rows brings, in Postgres' binary format, decoded without copying anything.

use bytes::Bytes;
use uuid::Uuid;

use super::ReadError;
use crate::postgres::window::Position;

/// The columns of a row, in the order in which [`Row`] reads them.
pub(crate) const COLUMNS: &str =
    "seq, event_id, topic, key, event_type, aggregate_version, payload, headers,
     traceparent, created_at";
/// How many these are.
const FIELDS: i16 = 10;

/// Rows of one page, as they came.
#[derive(Debug, Default)]
pub struct Page {
    rows: Vec<Bytes>,
    bytes: usize,
    /// No row of the window is behind the page.
    is_last: bool,
    /// No row behind the page shares the seq of its last row.
    has_whole_seqs: bool,
    repeated_seq: Option<i64>,
}

impl Page {
    /// Takes the row out of a message of the COPY, if there is one in it.
    pub(super) fn push(&mut self, message: Bytes) -> Result<(), ReadError> {
        if let Some(row) = without_framing(message)? {
            self.bytes += row.len();
            self.rows.push(row);
        }
        Ok(())
    }

    /// Notes that no more rows came, of `max_rows` that were asked for.
    pub(super) fn end(&mut self, max_rows: usize) {
        self.is_last = self.rows.len() < max_rows;
    }

    /// The rows in the order of their positions, without those of a last seq of which more may come. `None` if that is the
    /// only one.
    pub(super) fn with_whole_seqs(mut self) -> Result<Option<Self>, ReadError> {
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
        self.has_whole_seqs = true;
        let mut first = 0;
        for of_one_seq in seqs[..self.rows.len()].chunk_by(|a, b| a == b) {
            let behind = first + of_one_seq.len();
            if of_one_seq.len() > 1 {
                self.repeated_seq = of_one_seq.first().copied();
                // As Postgres sorts them: nulls last.
                self.rows[first..behind].sort_by_key(|row| match event_id_of(row) {
                    Some(event_id) => (false, event_id),
                    None => (true, Uuid::nil()),
                });
            }
            first = behind;
        }
        Ok(Some(self))
    }

    /// The rows, which came in the order of their positions, without those of a last position of which more may come. The
    /// seq, if that is the only one.
    pub(super) fn with_whole_positions(mut self) -> Result<Result<Self, i64>, ReadError> {
        let Some(last) = self.rows.last().filter(|_| !self.is_last) else {
            return Ok(Ok(self));
        };
        let (last_seq, last) = (seq_of(last)?, position_of(last)?);
        let mut whole = self.rows.len();
        while whole > 0 && position_of(&self.rows[whole - 1])? == last {
            whole -= 1;
        }
        if whole == 0 {
            return Ok(Err(last_seq));
        }
        self.bytes -= self.rows.drain(whole..).map(|row| row.len()).sum::<usize>();
        self.repeated_seq = Some(last_seq);
        Ok(Ok(self))
    }

    /// The rows, in the order of their positions.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Result<Row<'_>, ReadError>> {
        self.rows.iter().map(|bytes| Row::parse(bytes))
    }

    /// Where reading goes on behind this row; none if the next one has its position, so that there is no place between them.
    /// Nothing but their seqs and event ids is looked at.
    ///
    /// # Errors
    /// If a row has no seq.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn position_behind(&self, index: usize) -> Result<Option<Position>, ReadError> {
        let (seq, event_id) = position_of(&self.rows[index])?;
        let shares_seq = match self.rows.get(index + 1) {
            Some(next) if position_of(next)? == (seq, event_id) => return Ok(None),
            Some(next) => seq_of(next)? == seq,
            None => !self.has_whole_seqs,
        };
        Ok(Some(Position {
            seq,
            event_id: event_id.filter(|_| shares_seq),
        }))
    }

    /// A seq that several rows have.
    pub(crate) fn repeated_seq(&self) -> Option<i64> {
        self.repeated_seq
    }

    /// How large the rows are together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The seq of each row; also if they have no other column.
    pub(super) fn seqs(&self) -> Result<Vec<i64>, ReadError> {
        self.rows.iter().map(|row| seq_of(row)).collect()
    }

    /// The same rows, with more to come in the window.
    pub(super) fn with_more_behind(self) -> Self {
        Self {
            is_last: false,
            ..self
        }
    }

    /// Whether the window ends with this page.
    pub fn is_last(&self) -> bool {
        self.is_last
    }
}

/// A row of the outbox.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
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
    /// Microseconds since 1970.
    pub created_at_us: Option<i64>,
}

/// `PGCOPY`, and bytes that show when something on the way has changed line ends or the eighth bit.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Postgres counts from 2000-01-01.
const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// Takes off what a COPY begins and ends with. Postgres sends every row in a message of its own,
/// the first with the header before it; the trailer has no row. See "COPY Operations" in
/// <https://www.postgresql.org/docs/current/protocol-flow.html>.
fn without_framing(mut message: Bytes) -> Result<Option<Bytes>, ReadError> {
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

const TOO_SHORT: ReadError = ReadError::Layout("a row is cut off");

/// The first column of a row.
fn seq_of(row: &[u8]) -> Result<i64, ReadError> {
    let mut fields = Fields(row);
    fields.i16()?;
    fields.seq()
}

/// The second column of a row, if it is what it should be.
fn event_id_of(row: &[u8]) -> Option<Uuid> {
    let mut fields = Fields(row);
    fields.i16().ok()?;
    fields.next().ok()?;
    Uuid::from_slice(fields.next().ok()??).ok()
}

fn position_of(row: &[u8]) -> Result<(i64, Option<Uuid>), ReadError> {
    Ok((seq_of(row)?, event_id_of(row)))
}

impl<'a> Row<'a> {
    /// Reads a row in Postgres' binary format, without copying anything.
    fn parse(bytes: &'a [u8]) -> Result<Self, ReadError> {
        let mut fields = Fields(bytes);
        if fields.i16()? != FIELDS {
            return Err(ReadError::Layout("a row has another number of columns"));
        }
        let seq = fields.seq()?;
        Self::parse_rest(seq, fields).map_err(|err| match err {
            ReadError::Layout(what) => ReadError::Row { seq, what },
            err => err,
        })
    }

    fn parse_rest(seq: i64, mut fields: Fields<'a>) -> Result<Self, ReadError> {
        Ok(Self {
            seq,
            event_id: Uuid::from_slice(
                fields.required("its event_id is null (source.columns.event_id)")?,
            )
            .map_err(|_| ReadError::Layout("its event_id is no uuid (source.columns.event_id)"))?,
            topic: text(fields.required("its topic is null (a column that source.topic names)")?)?,
            key: text(fields.required("its key is null (source.columns.key)")?)?,
            event_type: text(
                fields.required("its event_type is null (source.columns.event_type)")?,
            )?,
            aggregate_version: fields.i64("its aggregate_version is no bigint")?,
            payload: fields.next()?,
            headers: match fields.next()? {
                None => None,
                // jsonb in binary is a version, 1, and the text.
                Some([1, json @ ..]) => Some(json),
                Some(_) => return Err(ReadError::Layout("column headers is no jsonb")),
            },
            traceparent: fields.next()?.map(text).transpose()?,
            created_at_us: (fields.i64("its created_at is no timestamptz")?)
                .map(|us| us.saturating_add(POSTGRES_EPOCH_UNIX_US)),
        })
    }
}

/// What is left of a row: each field is its length, -1 for null, and so many bytes.
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

    fn required(&mut self, otherwise: &'static str) -> Result<&'a [u8], ReadError> {
        self.next()?.ok_or(ReadError::Layout(otherwise))
    }

    fn seq(&mut self) -> Result<i64, ReadError> {
        (self.i64("column seq is no bigint")?).ok_or(ReadError::Layout("column seq is null"))
    }

    fn i64(&mut self, otherwise: &'static str) -> Result<Option<i64>, ReadError> {
        let integer = |bytes: &[u8]| (bytes.try_into().ok()).map(i64::from_be_bytes);
        match self.next()? {
            None => Ok(None),
            Some(bytes) => (integer(bytes).map(Some)).ok_or(ReadError::Layout(otherwise)),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, ReadError> {
    std::str::from_utf8(bytes).map_err(|_| ReadError::Layout("the database isn't in UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Row::parse(&bytes);
            let _ = without_framing([SIGNATURE, &bytes].concat().into());
        }
    }
}
