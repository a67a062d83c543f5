//! Pages of outbox rows, decoded from Postgres' binary format without copying.

use std::error::Error;

use tokio_postgres::{
    Row as EncodedRow,
    types::{FromSql, Type},
};
use uuid::Uuid;

use super::ReadError;
use crate::postgres::window::Position;

/// The columns of a row, in the order in which [`Row`] reads them.
pub(crate) const COLUMNS: &str =
    "seq, event_id, topic, key, event_type, aggregate_version, payload, headers,
     traceparent, created_at";
/// The encoded rows of one page.
#[derive(Debug, Default)]
pub struct Page {
    rows: Vec<EncodedRow>,
    /// The seq of each row, for `position_after`. Empty before `keep_complete_seqs` or `keep_complete_positions`.
    seqs: Vec<i64>,
    bytes: usize,
    /// True if the window ends with this page.
    is_last: bool,
    /// True if no row after the page shares the seq of its last row.
    has_complete_seqs: bool,
    /// A seq that several rows share.
    repeated_seq: Option<i64>,
}

impl Page {
    pub(super) fn push(&mut self, row: EncodedRow) {
        self.bytes += row.raw_size_bytes();
        self.rows.push(row);
    }

    /// Marks the page as the last of its window.
    pub(super) fn finish(&mut self) {
        self.is_last = true;
    }

    /// Returns the number of rows.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Sorts the rows with a seq up to `max_seq` by seq. They come first. Returns their number.
    pub(super) fn sort_up_to(&mut self, max_seq: i64) -> Result<usize, ReadError> {
        let mut rows = Vec::new();
        for row in &self.rows {
            let seq = decode_seq(row)?;
            if seq > max_seq {
                break;
            }
            rows.push((seq, rows.len()));
        }
        let count = rows.len();
        if !rows.is_sorted() {
            rows.sort_unstable();
            let sorted: Vec<EncodedRow> =
                (rows.iter().map(|(_, index)| self.rows[*index].clone())).collect();
            self.rows.splice(..count, sorted);
        }
        Ok(count)
    }

    /// Removes the rows of the last seq if it may be incomplete, and sorts the others by position. Returns `None` if no row
    /// is left.
    pub(super) fn keep_complete_seqs(mut self) -> Result<Option<Self>, ReadError> {
        self.seqs = self.decode_seqs()?;
        if !self.is_last
            && let Some(&last_seq) = self.seqs.last()
        {
            let whole = self.seqs.partition_point(|seq| *seq < last_seq);
            if whole == 0 {
                return Ok(None);
            }
            self.truncate(whole);
        }
        self.has_complete_seqs = true;
        let mut first = 0;
        for of_one_seq in self.seqs.chunk_by(|a, b| a == b) {
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

    /// Removes the rows after the first `rows`.
    pub(super) fn truncate(&mut self, rows: usize) {
        if rows >= self.rows.len() {
            return;
        }
        self.bytes -= self
            .rows
            .drain(rows..)
            .map(|row| row.raw_size_bytes())
            .sum::<usize>();
        self.seqs.truncate(rows);
    }

    /// Removes the rows of the last position if it may be incomplete. The rows must be sorted by position. Returns the seq as an
    /// inner error if no row is left.
    pub(super) fn keep_complete_positions(mut self) -> Result<Result<Self, i64>, ReadError> {
        self.seqs = self.decode_seqs()?;
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
        self.truncate(whole);
        self.repeated_seq = Some(last_seq);
        Ok(Ok(self))
    }

    /// Returns the rows in the order of their positions.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Result<Row<'_>, ReadError>> {
        self.rows.iter().map(Row::decode)
    }

    /// Returns the position after this row. `None` if the next row has the same position.
    ///
    /// # Panics
    /// If the index is out of bounds, or the page was not read with a cursor.
    pub fn position_after(&self, index: usize) -> Option<Position> {
        let seq = self.seqs[index];
        let shares_seq = match self.seqs.get(index + 1) {
            Some(next) => *next == seq,
            None => !self.has_complete_seqs,
        };
        if !shares_seq {
            return Some(Position::after(seq));
        }
        let event_id = decode_event_id(&self.rows[index]);
        match self.rows.get(index + 1) {
            Some(next) if decode_event_id(next) == event_id => None,
            _ => Some(Position { seq, event_id }),
        }
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
    pub(super) fn decode_seqs(&self) -> Result<Vec<i64>, ReadError> {
        self.rows.iter().map(decode_seq).collect()
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

/// 2000-01-01, the epoch of Postgres timestamps.
const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// The value of a column as it was received, of whatever type.
struct Field<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Field<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Returns the value of a column, or `None` for null.
fn field(row: &EncodedRow, index: usize) -> Result<Option<&[u8]>, ReadError> {
    let field: Option<Field<'_>> = row
        .try_get(index)
        .map_err(|_| ReadError::Layout("unexpected number of columns"))?;
    Ok(field.map(|field| field.0))
}

/// Decodes the first column of a row.
fn decode_seq(row: &EncodedRow) -> Result<i64, ReadError> {
    seq(field(row, 0)?)
}

/// Decodes the second column of a row, if it is a UUID.
fn decode_event_id(row: &EncodedRow) -> Option<Uuid> {
    Uuid::from_slice(field(row, 1).ok()??).ok()
}

fn decode_position(row: &EncodedRow) -> Result<(i64, Option<Uuid>), ReadError> {
    Ok((decode_seq(row)?, decode_event_id(row)))
}

impl<'a> Row<'a> {
    /// Decodes a row without copying.
    fn decode(row: &'a EncodedRow) -> Result<Self, ReadError> {
        Self::from_fields(|index| field(row, index))
    }

    fn from_fields(
        field: impl Fn(usize) -> Result<Option<&'a [u8]>, ReadError>,
    ) -> Result<Self, ReadError> {
        let seq = seq(field(0)?)?;
        Self::from_fields_after_seq(seq, field).map_err(|err| match err {
            ReadError::Layout(reason) => ReadError::Row { seq, reason },
            err => err,
        })
    }

    fn from_fields_after_seq(
        seq: i64,
        field: impl Fn(usize) -> Result<Option<&'a [u8]>, ReadError>,
    ) -> Result<Self, ReadError> {
        let required = |index, error| field(index)?.ok_or(ReadError::Layout(error));
        let event_id = required(1, "its event_id is null (source.columns.event_id)")?;
        Ok(Self {
            seq,
            event_id: Uuid::from_slice(event_id).map_err(|_| {
                ReadError::Layout("its event_id is not a uuid (source.columns.event_id)")
            })?,
            topic: text(required(2, "its topic is null (a column in source.topic)")?)?,
            key: text(required(3, "its key is null (source.columns.key)")?)?,
            event_type: text(required(
                4,
                "its event_type is null (source.columns.event_type)",
            )?)?,
            aggregate_version: bigint(field(5)?, "its aggregate_version is not a bigint")?,
            payload: field(6)?,
            headers: match field(7)? {
                None => None,
                // Binary jsonb is the version 1 and the text.
                Some([1, json @ ..]) => Some(json),
                Some(_) => return Err(ReadError::Layout("column headers is not a jsonb")),
            },
            traceparent: field(8)?.map(text).transpose()?,
            created_at_us: bigint(field(9)?, "its created_at is not a timestamptz")?
                .map(|us| us.saturating_add(POSTGRES_EPOCH_UNIX_US)),
        })
    }
}

fn seq(field: Option<&[u8]>) -> Result<i64, ReadError> {
    bigint(field, "column seq is not a bigint")?.ok_or(ReadError::Layout("column seq is null"))
}

fn bigint(field: Option<&[u8]>, error: &'static str) -> Result<Option<i64>, ReadError> {
    let integer = |bytes: &[u8]| bytes.try_into().ok().map(i64::from_be_bytes);
    field
        .map(|bytes| integer(bytes).ok_or(ReadError::Layout(error)))
        .transpose()
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
        fn decoding_never_panics(
            fields in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 10)
        ) {
            let _ = Row::from_fields(|index| Ok(fields[index].as_deref()));
        }
    }
}
