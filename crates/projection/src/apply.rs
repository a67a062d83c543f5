//! A batch of records and their offsets, in one transaction.

use diesel_async::{AsyncConnection as _, AsyncPgConnection};
use rdkafka::{Message as _, message::BorrowedMessage};

use crate::{
    Projection,
    offsets::{Moves, Offsets},
    poison::{self, Poison},
    record::Record,
};

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is applied, and the offsets are behind it.
    Applied,
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

/// Applies `messages`. `from` is the next offset that each of their partitions has now.
///
/// # Errors
/// Where trying again can help.
pub(crate) async fn apply<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    from: &Moves,
    messages: &[BorrowedMessage<'_>],
) -> diesel::QueryResult<Outcome> {
    let all = transact(projection, offsets, conn, from, messages, None).await;
    let err = match all {
        Ok(outcome) => return Ok(outcome),
        Err(err) => err,
    };
    if poison::in_change(&err).is_none() {
        return Err(err);
    }
    // One of them is refused: apply them one by one, to find it and to keep the others.
    let mut from = from.clone();
    for message in messages {
        let one = std::slice::from_ref(message);
        let mut outcome = transact(projection, offsets, conn, &from, one, None).await;
        if let Some(poison) = outcome.as_ref().err().and_then(poison::in_change) {
            outcome = transact(projection, offsets, conn, &from, one, Some(&poison)).await;
        }
        if outcome? == Outcome::Overtaken {
            return Ok(Outcome::Overtaken);
        }
        advance(&mut from, message);
    }
    Ok(Outcome::Applied)
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

fn advance(from: &mut Moves, message: &BorrowedMessage<'_>) {
    let next = message.offset() + 1;
    from.insert(message.partition(), (next, next));
}

async fn transact<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    from: &Moves,
    messages: &[BorrowedMessage<'_>],
    refused: Option<&Poison>,
) -> diesel::QueryResult<Outcome> {
    let mut changes = Vec::with_capacity(messages.len());
    let mut aside = Vec::new();
    for message in messages {
        let decoded = match refused {
            Some(poison) => Err(poison.clone()),
            None => projection.decode(&Record(message)),
        };
        match decoded {
            Ok(change) => changes.extend(change),
            Err(poison) => aside.push((message, poison)),
        }
    }
    let moves = moves(from, messages);
    let result = conn
        .transaction(async |conn| {
            // First of all, because it locks the rows: from here on nobody else can apply these.
            if !offsets.compare_and_set(conn, &moves).await? {
                return Err(Rollback::Overtaken);
            }
            for (message, poison) in &aside {
                poison::set_aside(conn, offsets.projection, message, poison).await?;
            }
            if !changes.is_empty() {
                projection.apply(conn, &changes).await?;
            }
            Ok(())
        })
        .await;
    match result {
        Ok(()) => {}
        Err(Rollback::Overtaken) => return Ok(Outcome::Overtaken),
        Err(Rollback::Database(err)) => return Err(err),
    }
    for (message, poison) in &aside {
        tracing::error!(
            projection = offsets.projection,
            topic = message.topic(),
            partition = message.partition(),
            offset = message.offset(),
            %poison,
            "record set aside in dead_letters",
        );
    }
    projection.applied(&changes);
    Ok(Outcome::Applied)
}
