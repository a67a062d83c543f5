//! A batch of records and their offsets, in one transaction.

use diesel_async::{AsyncConnection as _, AsyncPgConnection};
use rdkafka::{Message as _, message::BorrowedMessage};

use crate::{
    Projection, dead_letters,
    decoded::Decoded,
    offsets::{Moves, Offsets},
    poison,
    record::Record,
};

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is applied, or set aside, and the offsets are behind it.
    Applied { dead_lettered: usize },
    /// Somebody else has moved the offsets; nothing is applied.
    Overtaken,
}

/// Why a transaction was rolled back.
enum Rollback {
    Overtaken,
    Database(diesel::result::Error),
}

impl From<diesel::result::Error> for Rollback {
    fn from(err: diesel::result::Error) -> Self {
        Self::Database(err)
    }
}

/// Applies `messages`, which were decoded. `from` is the next offset that each of their partitions has
/// now.
///
/// # Errors
/// Where trying again can help.
pub(crate) async fn apply<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    from: &Moves,
    messages: &[BorrowedMessage<'_>],
    decoded: &Decoded<P::Change>,
) -> diesel::QueryResult<Outcome> {
    let mut from = from.clone();
    let mut all_dead_lettered = 0;
    let mut parts = vec![messages];
    while let Some(part) = parts.pop() {
        let of_part;
        let decoded = if part.len() == messages.len() {
            decoded
        } else {
            of_part = Decoded::of(projection, part);
            &of_part
        };
        let mut outcome = transact(projection, offsets, conn, &from, part, decoded).await;
        if let Some(poison) = outcome.as_ref().err().and_then(poison::in_change) {
            let [message] = part else {
                // One of them is rejected: halves find it, and keep the others, in a few transactions.
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
                continue;
            };
            let rejected = Decoded::rejected(message, poison);
            outcome = transact(projection, offsets, conn, &from, part, &rejected).await;
        }
        match outcome? {
            Outcome::Applied { dead_lettered } => all_dead_lettered += dead_lettered,
            Outcome::Overtaken => return Ok(Outcome::Overtaken),
        }
        for (partition, (_, to)) in moves(&from, part) {
            from.insert(partition, (to, to));
        }
    }
    Ok(Outcome::Applied {
        dead_lettered: all_dead_lettered,
    })
}

/// The offsets behind `messages`.
pub(crate) fn moves(from: &Moves, messages: &[BorrowedMessage<'_>]) -> Moves {
    let mut moves = Moves::new();
    for message in messages {
        let start = from
            .get(&message.partition())
            .map_or(message.offset(), |(next, _)| *next);
        moves.entry(message.partition()).or_insert((start, 0)).1 = message.offset() + 1;
    }
    moves
}

async fn transact<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    from: &Moves,
    messages: &[BorrowedMessage<'_>],
    decoded: &Decoded<P::Change>,
) -> diesel::QueryResult<Outcome> {
    let Decoded {
        changes,
        dead_letters,
        counts,
    } = decoded;
    let dead_letters = dead_letters.iter().map(|(index, poison)| {
        let record = Record::of(&messages[*index]);
        (record, poison)
    });
    let dead_letters: Vec<_> = dead_letters.collect();
    let moves = moves(from, messages);
    let result = conn
        .transaction(async |conn| {
            // First of all, because it locks the rows: from here on nobody else can apply these.
            if !offsets.compare_and_set(conn, &moves, counts).await? {
                return Err(Rollback::Overtaken);
            }
            for (record, poison) in &dead_letters {
                dead_letters::dead_lettered(conn, offsets, record, poison).await?;
            }
            if !changes.is_empty() {
                projection.apply(conn, changes).await?;
            }
            Ok(())
        })
        .await;
    match result {
        Ok(()) => {}
        Err(Rollback::Overtaken) => return Ok(Outcome::Overtaken),
        Err(Rollback::Database(err)) => return Err(err),
    }
    for (record, poison) in &dead_letters {
        tracing::error!(
            projection = offsets.projection,
            topic = offsets.topic,
            partition = record.partition(),
            offset = record.offset(),
            %poison,
            "record moved to dead_letters",
        );
    }
    projection.applied(changes);
    Ok(Outcome::Applied {
        dead_lettered: dead_letters.len(),
    })
}
