//! Applies a batch of records and advances its offsets in one transaction.

use diesel_async::{AsyncConnection as _, AsyncPgConnection};
use rdkafka::{Message as _, message::BorrowedMessage};

use crate::{
    Projection, dead_letters,
    decoded::DecodedBatch,
    offsets::{OffsetRanges, Offsets},
    poison,
    record::Record,
};

/// The outcome of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its records are applied or dead-lettered, and the offsets are advanced.
    Applied { dead_lettered: usize },
    /// Another consumer has advanced the offsets. Nothing is applied.
    OffsetConflict,
}

/// The reason why a transaction was rolled back.
enum Rollback {
    OffsetConflict,
    Database(diesel::result::Error),
}

impl From<diesel::result::Error> for Rollback {
    fn from(err: diesel::result::Error) -> Self {
        Self::Database(err)
    }
}

/// Applies decoded messages. `positions` holds the next offset of each of their partitions. Calls
/// `begin_transaction` before each transaction.
///
/// A poison record that only the database can detect is found by halving the batch.
///
/// # Errors
/// Errors that a retry can resolve.
pub(crate) async fn apply_batch<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    positions: &OffsetRanges,
    messages: &[BorrowedMessage<'_>],
    decoded: &DecodedBatch<P::Change>,
    begin_transaction: &(dyn Fn() + Sync),
) -> diesel::QueryResult<Outcome> {
    let mut positions = positions.clone();
    let mut total_dead_lettered = 0;
    let mut parts = vec![messages];
    while let Some(part) = parts.pop() {
        let decoded_part;
        let decoded = if part.len() == messages.len() {
            decoded
        } else {
            decoded_part = DecodedBatch::decode(projection, part);
            &decoded_part
        };
        begin_transaction();
        let mut outcome =
            apply_in_transaction(projection, offsets, conn, &positions, part, decoded).await;
        if let Some(poison) = outcome.as_ref().err().and_then(poison::from_database_error) {
            let [message] = part else {
                // One of them is poison: halving isolates it in a few transactions.
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
                continue;
            };
            let poison_batch = DecodedBatch::from_poison(message, poison);
            outcome =
                apply_in_transaction(projection, offsets, conn, &positions, part, &poison_batch)
                    .await;
        }
        match outcome? {
            Outcome::Applied { dead_lettered } => total_dead_lettered += dead_lettered,
            Outcome::OffsetConflict => return Ok(Outcome::OffsetConflict),
        }
        for (partition, (_, to)) in offset_ranges(&positions, part) {
            positions.insert(partition, (to, to));
        }
    }
    Ok(Outcome::Applied {
        dead_lettered: total_dead_lettered,
    })
}

/// Returns the range from each partition's position to the offset after its last message.
pub(crate) fn offset_ranges(
    positions: &OffsetRanges,
    messages: &[BorrowedMessage<'_>],
) -> OffsetRanges {
    let mut ranges = OffsetRanges::new();
    for message in messages {
        let start = positions
            .get(&message.partition())
            .map_or(message.offset(), |(next, _)| *next);
        ranges.entry(message.partition()).or_insert((start, 0)).1 = message.offset() + 1;
    }
    ranges
}

async fn apply_in_transaction<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    positions: &OffsetRanges,
    messages: &[BorrowedMessage<'_>],
    decoded: &DecodedBatch<P::Change>,
) -> diesel::QueryResult<Outcome> {
    let DecodedBatch {
        changes,
        dead_letters,
        counts,
    } = decoded;
    let dead_letters = dead_letters.iter().map(|(index, poison)| {
        let record = Record::from_message(&messages[*index]);
        (record, poison)
    });
    let dead_letters: Vec<_> = dead_letters.collect();
    let ranges = offset_ranges(positions, messages);
    let result = conn
        .transaction(async |conn| {
            // First, because it locks the rows: no other consumer can apply these records after it.
            if !offsets.compare_and_set(conn, &ranges, counts).await? {
                return Err(Rollback::OffsetConflict);
            }
            for (record, poison) in &dead_letters {
                dead_letters::insert(conn, offsets, record, poison).await?;
            }
            if !changes.is_empty() {
                projection.apply(conn, changes).await?;
            }
            Ok(())
        })
        .await;
    match result {
        Ok(()) => {}
        Err(Rollback::OffsetConflict) => return Ok(Outcome::OffsetConflict),
        Err(Rollback::Database(err)) => return Err(err),
    }
    for (record, poison) in &dead_letters {
        tracing::error!(
            projection = offsets.projection,
            topic = offsets.topic,
            partition = record.partition(),
            offset = record.offset(),
            %poison,
            "poison record dead-lettered",
        );
    }
    projection.after_commit(changes);
    Ok(Outcome::Applied {
        dead_lettered: dead_letters.len(),
    })
}
