//! Applies user events to `users_cache`, and cancels the open orders of deleted users.

mod change;

use std::{collections::HashMap, sync::Arc};

use clap::Args;
use cli::kafka_name;
use diesel::{QueryResult, QueryableByName, sql_types::*};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use projection::{
    Configurable, Poison, Projection, Rebuildable, Record, TopicOption, dead_letters,
};
use proto::events;

use self::change::FINAL_VERSION;
pub use self::change::UserChange;
use crate::{
    store::{UserDeletion, cancel_orders_of_all_deleted_users, cancel_orders_of_deleted_users},
    subscribers::Subscribers,
};

/// The projection into `users_cache`.
#[derive(Debug)]
pub struct UsersProjection {
    pub orders_topic: String,
    /// Calls that wait for a user version. Notified of every change of a user.
    pub user_subscribers: Arc<Subscribers>,
    /// WatchOrders streams. Notified of users whose orders changed.
    pub order_subscribers: Arc<Subscribers>,
}

/// The topic option of order events.
#[derive(Args, Clone, Debug)]
pub struct OrdersTopic {
    /// Publish this service's order events to this topic
    #[arg(long, env = "ORDERS_TOPIC", default_value = events::ORDERS_TOPIC, value_parser = kafka_name)]
    pub(crate) orders_topic: String,
}

impl Configurable for UsersProjection {
    const CONSUMER_GROUP: &'static str = "order_service_group";
    const TOPIC: TopicOption = TopicOption {
        option: "users-topic",
        variable: "USERS_TOPIC",
        default: events::USERS_TOPIC,
        help: "Consume user events from this topic",
    };
    /// Needed because cancelling a deleted user's open orders enqueues events.
    type Options = OrdersTopic;

    /// Creates a projection for commands, whose process has no waiting calls to notify.
    fn from_options(OrdersTopic { orders_topic }: OrdersTopic) -> Self {
        Self {
            orders_topic,
            user_subscribers: Arc::default(),
            order_subscribers: Arc::default(),
        }
    }
}

/// A newly applied deletion.
#[derive(QueryableByName)]
struct DeletedRow {
    #[diesel(sql_type = Uuid)]
    user_id: uuid::Uuid,
    #[diesel(sql_type = BigInt)]
    version: i64,
}

/// Keeps the latest version of each user, and no name or e-mail of a deleted user. A deletion replaces its own
/// version: a tool may write a tombstone with the version that it ends. Returns only newly applied deletions,
/// because earlier ones have already cancelled their orders.
const WRITE_VERSIONS: &str = "
    with applied as (
        insert into users_cache (user_id, email, name, version, deleted)
        select distinct on (user_id) user_id, email, name, version, deleted
        from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::boolean[])
            as incoming (user_id, email, name, version, deleted)
        order by user_id, version desc, deleted desc
        on conflict on constraint users_cache_pkey do update set
            email = excluded.email, name = excluded.name,
            version = excluded.version, deleted = excluded.deleted
        where (excluded.version, excluded.deleted) > (users_cache.version, users_cache.deleted)
        returning user_id, version, deleted
    )
    select user_id, version from applied where deleted";

/// Ends known users. The row stays, so that no earlier record restores the user.
const END_USERS: &str = "
    update users_cache set email = null, name = null, version = $2, deleted = true
    where user_id = any ($1) and version < $2
    returning user_id, version";

impl Rebuildable for UsersProjection {
    const TABLES: &'static [&'static str] = &["users_cache"];

    /// Cancels orders that were validated against the old table, which may lack a deletion that the new
    /// table has.
    async fn after_swap(&self, conn: &mut AsyncPgConnection) -> QueryResult<()> {
        cancel_orders_of_all_deleted_users(conn, &self.orders_topic).await
    }
}

impl Projection for UsersProjection {
    type Change = UserChange;

    fn decode(&self, record: &Record<'_>) -> Result<Option<UserChange>, Poison> {
        UserChange::from_event(record)
    }

    fn decode_tombstone(&self, tombstone: &Record<'_>) -> Option<UserChange> {
        UserChange::from_tombstone(tombstone)
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, users: &[UserChange]) -> QueryResult<()> {
        let deletions = users.iter().filter_map(UserChange::deletion);
        let keys: Vec<String> = deletions.map(|d| d.user_id.to_string()).collect();
        if !keys.is_empty() {
            // Also of unknown users: a redrive of a dead letter would restore them.
            dead_letters::erase(conn, &keys).await?;
        }
        let mut applied = Vec::new();
        // In the order of the records, because it decides whether the user of an end is known. Ends are rare: our
        // own tombstones have a version.
        for run in users.chunk_by(|a, b| a.is_end() == b.is_end()) {
            applied.extend(match run {
                [UserChange::Ended { .. }, ..] => end_users(conn, run).await?,
                _ => write_versions(conn, run).await?,
            });
        }
        if applied.is_empty() {
            return Ok(());
        }
        cancel_orders_of_deleted_users(conn, &self.orders_topic, &applied).await
    }

    fn after_commit(&self, users: &[UserChange]) {
        for user in users {
            self.user_subscribers.notify(user.user_id());
            if user.deletion().is_some() {
                self.order_subscribers.notify(user.user_id());
            }
        }
    }
}

/// Applies changes with a version. Returns the deletions that took effect.
async fn write_versions(
    conn: &mut AsyncPgConnection,
    users: &[UserChange],
) -> QueryResult<Vec<UserDeletion>> {
    let deleted: Vec<DeletedRow> = diesel::sql_query(WRITE_VERSIONS)
        .bind::<Array<Uuid>, _>(column(users, UserChange::user_id))
        .bind::<Array<Nullable<Text>>, _>(column(users, UserChange::email))
        .bind::<Array<Nullable<Text>>, _>(column(users, UserChange::name))
        .bind::<Array<BigInt>, _>(column(users, UserChange::version))
        .bind::<Array<Bool>, _>(column(users, |user| user.deletion().is_some()))
        .load(conn)
        .await?;
    Ok(applied_deletions(users, deleted))
}

/// Applies ends of users. Returns the deletions that took effect.
async fn end_users(
    conn: &mut AsyncPgConnection,
    users: &[UserChange],
) -> QueryResult<Vec<UserDeletion>> {
    let ended: Vec<DeletedRow> = diesel::sql_query(END_USERS)
        .bind::<Array<Uuid>, _>(column(users, UserChange::user_id))
        .bind::<BigInt, _>(FINAL_VERSION)
        .load(conn)
        .await?;
    Ok(applied_deletions(users, ended))
}

fn column<'a, T>(users: &'a [UserChange], of: impl Fn(&'a UserChange) -> T) -> Vec<T> {
    users.iter().map(of).collect()
}

/// Returns the deletions that wrote these rows.
fn applied_deletions(users: &[UserChange], rows: Vec<DeletedRow>) -> Vec<UserDeletion> {
    let rows = rows.into_iter().map(|row| (row.user_id, row.version));
    let versions: HashMap<uuid::Uuid, i64> = rows.collect();
    let applied = users
        .iter()
        .filter(|user| versions.get(&user.user_id()) == Some(&user.version()));
    applied.filter_map(UserChange::deletion).collect()
}
