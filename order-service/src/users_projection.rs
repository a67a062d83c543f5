//! Applies user events to `users_cache`, and cancels the open orders of deleted users.

use std::{collections::HashMap, sync::Arc};

use clap::Args;
use cli::kafka_name;
use diesel::{QueryResult, QueryableByName, sql_types::*};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use outbox::Cause;
use projection::{
    Configurable, Poison, Projection, Rebuildable, Record, TopicOption, dead_letters,
};
use proto::events::{self, User};

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

/// A change of a user, from an event.
#[derive(Debug)]
pub enum UserChange {
    Upserted {
        user_id: uuid::Uuid,
        email: String,
        name: String,
        version: i64,
    },
    Deleted {
        user_id: uuid::Uuid,
        /// The last version.
        version: i64,
        /// The event, if it had a `ce_id`.
        cause: Option<Cause>,
    },
}

impl UserChange {
    fn user_id(&self) -> uuid::Uuid {
        let (Self::Upserted { user_id, .. } | Self::Deleted { user_id, .. }) = self;
        *user_id
    }

    fn version(&self) -> i64 {
        let (Self::Upserted { version, .. } | Self::Deleted { version, .. }) = self;
        *version
    }

    fn email(&self) -> Option<&str> {
        match self {
            Self::Upserted { email, .. } => Some(email),
            Self::Deleted { .. } => None,
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Upserted { name, .. } => Some(name),
            Self::Deleted { .. } => None,
        }
    }

    fn deletion(&self) -> Option<UserDeletion> {
        match *self {
            Self::Upserted { .. } => None,
            Self::Deleted { user_id, cause, .. } => Some(UserDeletion { user_id, cause }),
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

/// Keeps the latest version of each user, and no name or e-mail of a deleted user. Returns only newly
/// applied deletions, because earlier ones have already cancelled their orders.
const APPLY: &str = "
    with applied as (
        insert into users_cache (user_id, email, name, version, deleted)
        select distinct on (user_id) user_id, email, name, version, deleted
        from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::boolean[])
            as incoming (user_id, email, name, version, deleted)
        order by user_id, version desc
        on conflict on constraint users_cache_pkey do update set
            email = excluded.email, name = excluded.name,
            version = excluded.version, deleted = excluded.deleted
        where excluded.version > users_cache.version
        returning user_id, version, deleted
    )
    select user_id, version from applied where deleted";

/// Decodes a tombstone. A deleted user's tombstone counts as the deletion, because compaction may have
/// removed the event before it. Other tombstones carry no change.
fn decode_tombstone(record: &Record<'_>, event_type: &str) -> Result<Option<UserChange>, Poison> {
    if event_type != events::USER_DELETED {
        return Ok(None);
    }
    let user_id = record.key_text()?.parse();
    let user_id = user_id.map_err(|_| Poison::new("key", "must be a UUID"))?;
    let version = record
        .required_header(events::header::AGGREGATE_VERSION)?
        .parse();
    let version = version.ok().filter(|version| *version >= 1);
    let version = version
        .ok_or_else(|| Poison::new("header", "ce_aggregateversion must be a positive number"))?;
    Ok(Some(UserChange::Deleted {
        user_id,
        version,
        cause: parse_cause(record)?,
    }))
}

/// Returns the record as the cause of other events, or `None` if it has no event id. Headers are not
/// trusted: another producer may have written them.
fn parse_cause(record: &Record<'_>) -> Result<Option<Cause>, Poison> {
    let id = record.header(events::header::ID);
    let Some(event_id) = id.and_then(|id| uuid::Uuid::try_parse_ascii(id).ok()) else {
        return Ok(None);
    };
    let depth = match record.header(events::header::CAUSATION_DEPTH) {
        None => 0,
        Some(_) => record
            .required_header(events::header::CAUSATION_DEPTH)?
            .parse()
            .map_err(|_| {
                Poison::new("header", "ce_causationdepth must be a number from 0 to 255")
            })?,
    };
    let cause = Cause::new(event_id, depth).map_err(|err| Poison::new("chain", err))?;
    Ok(Some(cause))
}

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
        let event_type = record.event_type()?;
        if !events::USER_TYPES.contains(&event_type) {
            return Ok(None);
        }
        if record.payload().is_none() {
            return decode_tombstone(record, event_type);
        }
        let user: User = record.payload_json()?;
        if record.key_text()? != user.user_id.to_string() {
            return Err(Poison::new("key", "must be the payload's user_id"));
        }
        if user.version < 1 {
            return Err(Poison::new("payload", "version must be positive"));
        }
        // JSON allows this character, and Postgres does not.
        if user.email.contains('\0') || user.name.contains('\0') {
            return Err(Poison::new(
                "payload",
                "must not contain the character U+0000",
            ));
        }
        Ok(Some(if user.deleted {
            UserChange::Deleted {
                user_id: user.user_id,
                version: user.version,
                cause: parse_cause(record)?,
            }
        } else {
            UserChange::Upserted {
                user_id: user.user_id,
                email: user.email,
                name: user.name,
                version: user.version,
            }
        }))
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, users: &[UserChange]) -> QueryResult<()> {
        fn column<'a, T>(users: &'a [UserChange], of: impl Fn(&'a UserChange) -> T) -> Vec<T> {
            users.iter().map(of).collect()
        }
        let deletions = users.iter().filter_map(UserChange::deletion);
        let keys: Vec<String> = deletions.map(|d| d.user_id.to_string()).collect();
        if !keys.is_empty() {
            dead_letters::erase(conn, &keys).await?;
        }
        let deleted: Vec<DeletedRow> = diesel::sql_query(APPLY)
            .bind::<Array<Uuid>, _>(column(users, UserChange::user_id))
            .bind::<Array<Nullable<Text>>, _>(column(users, UserChange::email))
            .bind::<Array<Nullable<Text>>, _>(column(users, UserChange::name))
            .bind::<Array<BigInt>, _>(column(users, UserChange::version))
            .bind::<Array<Bool>, _>(column(users, |user| user.deletion().is_some()))
            .load(conn)
            .await?;
        let versions: HashMap<uuid::Uuid, i64> = deleted
            .into_iter()
            .map(|row| (row.user_id, row.version))
            .collect();
        let applied = users
            .iter()
            .filter(|user| versions.get(&user.user_id()) == Some(&user.version()));
        let deletions: Vec<UserDeletion> = applied.filter_map(UserChange::deletion).collect();
        if deletions.is_empty() {
            return Ok(());
        }
        cancel_orders_of_deleted_users(conn, &self.orders_topic, &deletions).await
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
