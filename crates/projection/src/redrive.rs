//! Applies dead letters once more, after what was wrong with them was mended here.

use diesel_async::{AsyncConnection as _, AsyncPgConnection};

use crate::{
    Projection, dead_letters, offsets,
    poison::{self, Poison},
};

/// What became of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redriven {
    /// It is applied, and no dead letter any more. Where a newer version of its key was applied
    /// meanwhile, it has changed nothing.
    Applied,
    /// It still can't be applied, and stays.
    Rejected(Poison),
    /// What it held was erased, so that nothing can be applied. It stays.
    Erased,
    /// There is none with this number.
    Missing,
}

/// Applies a dead letter, and forgets it, in one transaction.
///
/// It is applied here and not written to its topic again: there it would come behind newer versions
/// of its key, and compaction would keep the wrong one, for every reader.
///
/// # Errors
/// The database's, where trying again can help.
pub async fn redrive<P: Projection>(
    conn: &mut AsyncPgConnection,
    projection: &P,
    name: &str,
    id: i64,
) -> diesel::QueryResult<Redriven> {
    let result = conn
        .transaction(async |conn| {
            // Before everything else, as the follower does: from here on it applies nothing that this
            // statement does not see.
            offsets::lock(conn, name).await?;
            let Some(dead_letter) = dead_letters::lock(conn, name, id).await? else {
                return Ok(Redriven::Missing);
            };
            if dead_letter.summary.erased_at.is_some() {
                return Ok(Redriven::Erased);
            }
            match projection.decode(&dead_letter.record()) {
                Ok(Some(change)) => projection.apply(conn, &[change]).await?,
                Ok(None) => {}
                Err(poison) => {
                    dead_letters::judge(conn, id, &poison).await?;
                    return Ok(Redriven::Rejected(poison));
                }
            }
            dead_letters::discard(conn, name, id).await?;
            Ok(Redriven::Applied)
        })
        .await;
    match result {
        Err(err) => match poison::in_change(&err) {
            Some(poison) => {
                dead_letters::judge(conn, id, &poison).await?;
                Ok(Redriven::Rejected(poison))
            }
            None => Err(err),
        },
        result => result,
    }
}
