//! Snapshots and transaction ids, in Postgres' binary format, and snapshots as text for messages and tests.

use std::{error::Error, fmt, str::FromStr};

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// A Postgres snapshot (`pg_snapshot`): the set of transactions that had completed when it was taken.
///
/// Transactions below `xmax` had completed, except those in `in_progress`. Transactions from `xmax` on had not completed.
/// They include transactions that were already in progress, because `xmax` is the last *completed* id plus one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

/// The text is not a `pg_snapshot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pg_snapshot")]
pub struct MalformedSnapshot;

impl Snapshot {
    /// Returns the snapshot before the first transaction.
    pub fn beginning() -> Self {
        Self {
            xmin: 1,
            xmax: 1,
            in_progress: Vec::new(),
        }
    }

    /// Returns the last completed transaction id plus one.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Returns the transactions below `xmax` that were in progress.
    pub fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// Returns true if this snapshot is later than `now`, the current one. Then the database was restored from a dump, or is
    /// another one.
    pub fn is_ahead_of(&self, now: &Self) -> bool {
        self.xmax > now.xmax
    }
}

impl FromStr for Snapshot {
    type Err = MalformedSnapshot;

    fn from_str(text: &str) -> Result<Self, MalformedSnapshot> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| MalformedSnapshot);
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(MalformedSnapshot);
        let (xmin, xmax, in_progress) = (number(next()?)?, number(next()?)?, next()?);
        let in_progress: Result<_, _> = in_progress
            .split(',')
            .filter(|part| !part.is_empty())
            .map(number)
            .collect();
        Ok(Self {
            xmin,
            xmax,
            in_progress: in_progress?,
        })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

type BoxError = Box<dyn Error + Sync + Send>;

impl ToSql for Snapshot {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_u32(u32::try_from(self.in_progress.len())?);
        out.put_u64(self.xmin);
        out.put_u64(self.xmax);
        self.in_progress.iter().for_each(|xid| out.put_u64(*xid));
        Ok(IsNull::No)
    }

    accepts!(PG_SNAPSHOT);
    to_sql_checked!();
}

impl FromSql<'_> for Snapshot {
    fn from_sql(_: &Type, mut raw: &[u8]) -> Result<Self, BoxError> {
        let count = raw.try_get_u32()?;
        let (xmin, xmax) = (raw.try_get_u64()?, raw.try_get_u64()?);
        if raw.len() != 8 * count as usize {
            return Err(MalformedSnapshot.into());
        }
        Ok(Self {
            xmin,
            xmax,
            in_progress: raw.chunks_exact(8).map(|mut xid| xid.get_u64()).collect(),
        })
    }

    accepts!(PG_SNAPSHOT);
}

/// A transaction id with its epoch (`xid8`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Xid(pub(crate) u64);

impl Xid {
    /// No transaction has a higher id.
    pub(crate) const MAX: Self = Self(u64::MAX);
}

impl ToSql for Xid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_u64(self.0);
        Ok(IsNull::No)
    }

    accepts!(XID8);
    to_sql_checked!();
}

impl FromSql<'_> for Xid {
    fn from_sql(_: &Type, mut raw: &[u8]) -> Result<Self, BoxError> {
        Ok(Self(raw.try_get_u64()?))
    }

    accepts!(XID8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_snapshot_round_trips_through_text_and_binary(
            xmin in 1..u64::MAX / 2,
            ahead in 0..1_000_u64,
            in_progress in prop::collection::vec(1..u64::MAX, 0..20),
        ) {
            let snapshot = Snapshot { xmin, xmax: xmin + ahead, in_progress };
            prop_assert_eq!(snapshot.to_string().parse(), Ok(snapshot.clone()));
            let mut binary = BytesMut::new();
            snapshot.to_sql(&Type::PG_SNAPSHOT, &mut binary).unwrap();
            prop_assert_eq!(Snapshot::from_sql(&Type::PG_SNAPSHOT, &binary).unwrap(), snapshot);
        }

        #[test]
        fn decoding_never_panics(raw in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Snapshot::from_sql(&Type::PG_SNAPSHOT, &raw);
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<Snapshot>();
        }
    }

    #[test]
    fn valid_snapshots_are_parsed_and_others_rejected() {
        for text in ["1:1:", "10:20:", "10:20:10", "10:20:10,14,15"] {
            assert_eq!(text.parse::<Snapshot>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "-1:2:", "1:2:3:4"] {
            assert_eq!(text.parse::<Snapshot>(), Err(MalformedSnapshot), "{text}");
        }
    }
}
