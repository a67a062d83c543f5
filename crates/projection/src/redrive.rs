//! Redrives dead letters: applies them again after the projection or the database was fixed.

use diesel_async::{AsyncConnection as _, AsyncPgConnection};

use crate::{
    Projection, dead_letters,
    decoded::decode_record,
    offsets,
    poison::{self, Poison},
};

/// The outcome of a redrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedriveOutcome {
    /// The record is applied and the dead letter deleted. If a newer version of its key was applied
    /// before, nothing else has changed.
    Applied,
    /// The record still cannot be applied. The dead letter stays.
    Poison(Poison),
    /// The contents are erased, so the record cannot be applied. The dead letter stays.
    Erased,
    /// The projection has no dead letter with this id.
    NotFound,
}

/// Applies a dead letter and deletes it, in one transaction.
///
/// It does not write the record to its topic again: there the record would follow newer versions of its
/// key, and compaction would keep the outdated one.
///
/// # Errors
/// Database errors that a retry can resolve.
pub async fn redrive<P: Projection>(
    conn: &mut AsyncPgConnection,
    projection: &P,
    name: &str,
    id: i64,
) -> diesel::QueryResult<RedriveOutcome> {
    let result = conn
        .transaction(async |conn| {
            // First, as the consumer does: it applies nothing in parallel to the statements below.
            offsets::lock(conn, name).await?;
            let Some(dead_letter) = dead_letters::lock(conn, name, id).await? else {
                return Ok(RedriveOutcome::NotFound);
            };
            if dead_letter.summary.erased_at.is_some() {
                return Ok(RedriveOutcome::Erased);
            }
            match decode_record(projection, &dead_letter.record()) {
                Ok(Some(change)) => projection.apply(conn, &[change]).await?,
                Ok(None) => {}
                Err(poison) => {
                    dead_letters::update_error(conn, id, &poison).await?;
                    return Ok(RedriveOutcome::Poison(poison));
                }
            }
            dead_letters::drop_dead_letter(conn, name, id).await?;
            Ok(RedriveOutcome::Applied)
        })
        .await;
    match result {
        Err(err) => match poison::from_database_error(&err) {
            Some(poison) => {
                dead_letters::update_error(conn, id, &poison).await?;
                Ok(RedriveOutcome::Poison(poison))
            }
            None => Err(err),
        },
        result => result,
    }
}
