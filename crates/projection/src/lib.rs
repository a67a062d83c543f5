#![doc = include_str!("../README.md")]

mod apply;
mod assignment;
mod command;
mod consumer;
mod dead_letter_topic;
mod dead_letter_upkeep;
pub mod dead_letters;
mod decoded;
mod following;
mod lookout;
mod offsets;
mod options;
mod poison;
mod rebuild;
mod record;
mod redrive;
mod schema;
mod status;
mod topic;

use diesel::QueryResult;
use diesel_async::AsyncPgConnection;

pub use self::{
    command::{DlqOptions, ProjectionOptions},
    consumer::follow,
    following::{Following, Options, State},
    options::{Configurable, FollowOptions, TopicOption},
    poison::Poison,
    rebuild::{RebuildOptions, Rebuildable, Rebuilt, drop_replaced, rebuild},
    record::Record,
    redrive::{Redriven, redrive},
    status::{PartitionStatus, status},
};

/// The migrations of the offsets and the dead letters. Run them before the service's own.
pub const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
    diesel_migrations::embed_migrations!("migrations");

/// What a consumer makes of the records of a topic.
pub trait Projection: Send + Sync + 'static {
    /// What one record changes.
    type Change: Send + Sync;

    /// Reads a record; `None` means that it is of no concern here.
    ///
    /// # Errors
    /// [`Poison`] if the record can't be understood. It is then set aside.
    fn decode(&self, record: &Record<'_>) -> Result<Option<Self::Change>, Poison>;

    /// Applies changes, in the order of their records, inside of a transaction.
    ///
    /// Records come again after a replay, and the versions of a key may have gaps, because
    /// compaction removes what was overwritten: let a row win only over an older version of itself.
    ///
    /// # Errors
    /// The database's. Where a constraint or a column's type refuses a change, the record is set
    /// aside; everything else is tried again.
    fn apply(
        &self,
        conn: &mut AsyncPgConnection,
        changes: &[Self::Change],
    ) -> impl Future<Output = QueryResult<()>> + Send;

    /// Is told of changes right after their transaction was committed.
    fn applied(&self, changes: &[Self::Change]) {
        let _ = changes;
    }
}
