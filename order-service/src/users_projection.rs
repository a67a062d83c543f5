//! Follows the users of user-service into `users_cache`, and cancels what deleted users leave open.

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
    store::{Deletion, cancel_orders_of_deleted, cancel_what_deleted_users_left_open},
    subscribers::Subscribers,
};

/// The projection into `users_cache`.
#[derive(Debug)]
pub struct UsersProjection {
    /// Where events of orders go.
    pub orders_topic: String,
    /// Wakes those who wait for a user.
    pub arrivals: Arc<Subscribers>,
    /// Wakes those who follow a user's orders.
    pub changes: Arc<Subscribers>,
}

/// Where events of orders go.
#[derive(Args, Clone, Debug)]
pub struct OrdersTopic {
    /// The topic of this service's events
    #[arg(long, env = "ORDERS_TOPIC", default_value = events::ORDERS_TOPIC, value_parser = kafka_name)]
    pub(crate) orders_topic: String,
}

impl Configurable for UsersProjection {
    const CONSUMER_GROUP: &'static str = "order_service_group";
    const TOPIC: TopicOption = TopicOption {
        option: "users-topic",
        variable: "USERS_TOPIC",
        default: events::USERS_TOPIC,
        help: "The topic of the users that are followed",
    };
    /// A deleted user's open orders are cancelled, which makes events.
    type Options = OrdersTopic;

    /// Without those whom it would wake: whoever waits in a running server looks for himself now and
    /// then.
    fn from_options(OrdersTopic { orders_topic }: OrdersTopic) -> Self {
        Self {
            orders_topic,
            arrivals: Arc::default(),
            changes: Arc::default(),
        }
    }
}

/// What an event tells of a user.
#[derive(Debug)]
pub enum UserChange {
    /// A user was created or changed.
    Upserted {
        /// Which user.
        user_id: uuid::Uuid,
        /// The new address.
        email: String,
        /// The new name.
        name: String,
        /// The new version.
        version: i64,
    },
    /// A user was deleted.
    Deleted {
        /// Which user.
        user_id: uuid::Uuid,
        /// The last version.
        version: i64,
        /// The event, where it had a `ce_id`.
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

    fn deletion(&self) -> Option<Deletion> {
        match *self {
            Self::Upserted { .. } => None,
            Self::Deleted { user_id, cause, .. } => Some(Deletion { user_id, cause }),
        }
    }
}

/// A deletion that was news.
#[derive(QueryableByName)]
struct Deleted {
    #[diesel(sql_type = Uuid)]
    user_id: uuid::Uuid,
    #[diesel(sql_type = BigInt)]
    version: i64,
}

/// The newest version of each user wins; of a deleted user no name and no e-mail is kept. What was
/// known before has been reacted to before.
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

/// A deleted user's: compaction takes the record before it away, and then it is the only one that
/// tells. All others only tell compaction to forget their key.
fn tombstone(record: &Record<'_>, event_type: &str) -> Result<Option<UserChange>, Poison> {
    if event_type != events::USER_DELETED {
        return Ok(None);
    }
    let user_id = record.key_text()?.parse();
    let user_id = user_id.map_err(|_| Poison::new("key", "it is no UUID"))?;
    let version = record
        .required_header(events::header::AGGREGATE_VERSION)?
        .parse();
    let version = version.ok().filter(|version| *version >= 1);
    let version = version
        .ok_or_else(|| Poison::new("header", "ce_aggregateversion is no positive number"))?;
    Ok(Some(UserChange::Deleted {
        user_id,
        version,
        cause: cause(record)?,
    }))
}

/// The record as the cause of other events; none if it has no id. Whoever wrote it may have written
/// anything.
fn cause(record: &Record<'_>) -> Result<Option<Cause>, Poison> {
    let id = record.header(events::header::ID);
    let Some(event_id) = id.and_then(|id| uuid::Uuid::try_parse_ascii(id).ok()) else {
        return Ok(None);
    };
    let depth = match record.header(events::header::CAUSATION_DEPTH) {
        None => 0,
        Some(_) => record
            .required_header(events::header::CAUSATION_DEPTH)?
            .parse()
            .map_err(|_| Poison::new("header", "ce_causationdepth is no number of up to 255"))?,
    };
    let cause = Cause::new(event_id, depth).map_err(|err| Poison::new("chain", err))?;
    Ok(Some(cause))
}

impl Rebuildable for UsersProjection {
    const TABLES: &'static [&'static str] = &["users_cache"];

    /// An order that was placed meanwhile was checked against the old table, which may not have heard
    /// of a deletion that the new one has.
    async fn after_swap(&self, conn: &mut AsyncPgConnection) -> QueryResult<()> {
        cancel_what_deleted_users_left_open(conn, &self.orders_topic).await
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
            return tombstone(record, event_type);
        }
        let user: User = record.payload_json()?;
        if record.key_text()? != user.user_id.to_string() {
            return Err(Poison::new("key", "it is not the payload's user_id"));
        }
        if user.version < 1 {
            return Err(Poison::new("payload", "version is not positive"));
        }
        // JSON can hold this character, and Postgres can't.
        if user.email.contains('\0') || user.name.contains('\0') {
            return Err(Poison::new(
                "payload",
                "it has a character with the number 0",
            ));
        }
        Ok(Some(if user.deleted {
            UserChange::Deleted {
                user_id: user.user_id,
                version: user.version,
                cause: cause(record)?,
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
        let deleted: Vec<Deleted> = diesel::sql_query(APPLY)
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
        let news = users
            .iter()
            .filter(|user| versions.get(&user.user_id()) == Some(&user.version()));
        let deletions: Vec<Deletion> = news.filter_map(UserChange::deletion).collect();
        if deletions.is_empty() {
            return Ok(());
        }
        cancel_orders_of_deleted(conn, &self.orders_topic, &deletions).await
    }

    fn after_commit(&self, users: &[UserChange]) {
        for user in users {
            self.arrivals.wake(user.user_id());
            if user.deletion().is_some() {
                self.changes.wake(user.user_id());
            }
        }
    }
}
