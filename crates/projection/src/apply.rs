//! A batch of records and their offsets, in one transaction.

use std::collections::BTreeMap;

use crate::{
    Projection, dead_letters,
    offsets::{Counts, Moves, Offsets},
    poison::{self, Poison},
    record::Record,
};
use diesel_async::{AsyncConnection as _, AsyncPgConnection};

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is applied, or set aside, and the offsets are behind it.
    Applied { set_aside: usize },
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

/// Applies `records`. `from` is the next offset that each of their partitions has now.
///
/// # Errors
/// Where trying again can help.
pub(crate) async fn apply<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    from: &Moves,
    records: &[Record<'_>],
) -> diesel::QueryResult<Outcome> {
    let all = transact(projection, offsets, conn, from, records, None).await;
    let err = match all {
        Ok(outcome) => return Ok(outcome),
        Err(err) => err,
    };
    if poison::in_change(&err).is_none() {
        return Err(err);
    }
    // One of them is refused: apply them one by one, to find it and to keep the others.
    let mut from = from.clone();
    let mut all_set_aside = 0;
    for record in records {
        let one = std::slice::from_ref(record);
        let mut outcome = transact(projection, offsets, conn, &from, one, None).await;
        if let Some(poison) = outcome.as_ref().err().and_then(poison::in_change) {
            outcome = transact(projection, offsets, conn, &from, one, Some(&poison)).await;
        }
        match outcome? {
            Outcome::Applied { set_aside } => all_set_aside += set_aside,
            Outcome::Overtaken => return Ok(Outcome::Overtaken),
        }
        advance(&mut from, record);
    }
    Ok(Outcome::Applied {
        set_aside: all_set_aside,
    })
}

/// The offsets behind `records`.
pub(crate) fn moves(from: &Moves, records: &[Record<'_>]) -> Moves {
    let mut moves = Moves::new();
    for record in records {
        let start = from
            .get(&record.partition())
            .map_or(record.offset(), |(next, _)| *next);
        moves.entry(record.partition()).or_insert((start, 0)).1 = record.offset() + 1;
    }
    moves
}

fn advance(from: &mut Moves, record: &Record<'_>) {
    let next = record.offset() + 1;
    from.insert(record.partition(), (next, next));
}

async fn transact<P: Projection>(
    projection: &P,
    offsets: &Offsets<'_>,
    conn: &mut AsyncPgConnection,
    from: &Moves,
    records: &[Record<'_>],
    refused: Option<&Poison>,
) -> diesel::QueryResult<Outcome> {
    let mut changes = Vec::with_capacity(records.len());
    let mut aside = Vec::new();
    let mut counts = BTreeMap::<i32, Counts>::new();
    for record in records {
        let decoded = match refused {
            Some(poison) => Err(poison.clone()),
            None => record.check().and_then(|()| projection.decode(record)),
        };
        let count = counts.entry(record.partition()).or_default();
        match decoded {
            Ok(Some(change)) => {
                changes.push(change);
                count.applied += 1;
            }
            Ok(None) => count.skipped += 1,
            Err(poison) => {
                aside.push((record, poison));
                count.set_aside += 1;
            }
        }
    }
    let moves = moves(from, records);
    let result = conn
        .transaction(async |conn| {
            // First of all, because it locks the rows: from here on nobody else can apply these.
            if !offsets.compare_and_set(conn, &moves, &counts).await? {
                return Err(Rollback::Overtaken);
            }
            for (record, poison) in &aside {
                dead_letters::set_aside(conn, offsets, record, poison).await?;
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
    for (record, poison) in &aside {
        tracing::error!(
            projection = offsets.projection,
            topic = offsets.topic,
            partition = record.partition(),
            offset = record.offset(),
            %poison,
            "record set aside in dead_letters",
        );
    }
    projection.applied(&changes);
    Ok(Outcome::Applied {
        set_aside: aside.len(),
    })
}
