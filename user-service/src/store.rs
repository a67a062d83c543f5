//! The SQL of the gRPC calls. A user and its event are written in one transaction. `rows` has the row types
//! and the statements for a single user; `orders_projection` has the SQL that writes the summaries.

mod rows;

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound as _, Utc};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, SelectableHelper as _, sql_types,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use proto::events;
use service_kit::{
    CallError, TokenKey, check_etag,
    database::Database,
    idempotency::{MutationContext, Response},
};
use uuid::Uuid;

use self::rows::{SummaryRow, UserRow, insert_user, lock_user, update_user};
use crate::{
    domain::{NewUser, OrderSummary, User, UserChange, UserDeletion},
    error::Error,
    schema::users,
};

/// Includes or excludes deleted users in a list.
#[derive(Clone, Copy, Debug)]
pub enum DeletedUsers {
    Excluded,
    Included,
}

/// The service's database.
#[derive(Clone)]
pub struct Store {
    database: Database,
    topic: String,
}

impl Store {
    /// Creates a store that enqueues events for `topic`.
    pub fn new(database: Database, topic: String) -> Self {
        Self { database, topic }
    }

    /// Returns the key of page tokens.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn token_key(&self) -> Result<&TokenKey, Error> {
        Ok(self.database.token_key().await?)
    }

    /// Creates a user.
    ///
    /// # Errors
    /// If the e-mail is taken, the request id was used for a different request, or the database fails.
    pub async fn create_user<R: Response>(
        &self,
        new: NewUser,
        mutation: MutationContext<User, R>,
    ) -> Result<R, Error> {
        let (store, traceparent) = (self.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let user = insert_user(conn, &new).await?;
            let event = store.user_event(events::USER_CREATED, &user)?;
            outbox::enqueue(conn, &event.with_traceparent(traceparent)).await?;
            Ok(user)
        };
        self.database
            .run_idempotent_transaction(mutation, write)
            .await
    }

    /// Updates a user. An update that changes nothing creates no version and no event.
    ///
    /// # Errors
    /// If the user does not exist, was deleted or does not match the etag, the e-mail is taken, the
    /// request id was used for a different request, or the database fails.
    pub async fn update_user<R: Response>(
        &self,
        change: UserChange,
        mutation: MutationContext<User, R>,
    ) -> Result<R, Error> {
        let (store, traceparent) = (self.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let before = lock_user(conn, change.user_id).await?;
            let before = before.ok_or(Error::UserNotFound(change.user_id))?;
            if before.delete_time.is_some() {
                return Err(Error::UserDeleted(change.user_id));
            }
            check_etag(&change.etag, before.version)?;
            let user = apply_change(&before, &change);
            if user.version > before.version {
                update_user(conn, &user).await?;
                let event = store.user_event(events::USER_UPDATED, &user)?;
                outbox::enqueue(conn, &event.with_traceparent(traceparent)).await?;
            }
            Ok(user)
        };
        self.database
            .run_idempotent_transaction(mutation, write)
            .await
    }

    /// Deletes a user; its row stays, without e-mail and name. The mutation gets `None` if the user does
    /// not exist and `allow_missing` is set.
    ///
    /// # Errors
    /// If the user does not exist, is already deleted or does not match the etag, the request id was used
    /// for a different request, or the database fails.
    pub async fn delete_user<R: Response>(
        &self,
        deletion: UserDeletion,
        mutation: MutationContext<Option<User>, R>,
    ) -> Result<R, Error> {
        let (store, traceparent) = (self.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let user = match lock_user(conn, deletion.user_id).await? {
                Some(user) if user.delete_time.is_none() => {
                    check_etag(&deletion.etag, user.version)?;
                    let user = erase(user);
                    update_user(conn, &user).await?;
                    let event = store.user_event(events::USER_DELETED, &user)?;
                    let event = event.with_traceparent(traceparent);
                    outbox::enqueue_all(conn, &[event.clone(), event.tombstone()]).await?;
                    Some(user)
                }
                gone if deletion.allow_missing => gone,
                _ => return Err(Error::UserNotFound(deletion.user_id)),
            };
            Ok(user)
        };
        self.database
            .run_idempotent_transaction(mutation, write)
            .await
    }

    /// Reads a user.
    ///
    /// # Errors
    /// If it does not exist, or the database fails.
    pub async fn load_user(&self, user_id: Uuid) -> Result<User, Error> {
        let mut conn = self.database.connection().await?;
        let row: Option<UserRow> = users::table
            .find(user_id)
            .select(UserRow::as_select())
            .first(&mut *conn)
            .await
            .optional()?;
        row.map(User::from).ok_or(Error::UserNotFound(user_id))
    }

    /// Reads users, in the order of `user_ids`.
    ///
    /// # Errors
    /// If one of them does not exist, or the database fails.
    pub async fn load_users_by_id(&self, user_ids: &[Uuid]) -> Result<Vec<User>, Error> {
        let mut conn = self.database.connection().await?;
        let rows: Vec<UserRow> = users::table
            .filter(users::user_id.eq_any(user_ids))
            .select(UserRow::as_select())
            .load(&mut *conn)
            .await?;
        let users: HashMap<Uuid, User> = rows
            .into_iter()
            .map(|row| (row.user_id, User::from(row)))
            .collect();
        let user = |id: &Uuid| users.get(id).cloned().ok_or(Error::UserNotFound(*id));
        user_ids.iter().map(user).collect()
    }

    /// Reads at most `limit` users after the id `after`, by id, which is the order of creation.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list_users(
        &self,
        after: Option<Uuid>,
        limit: i64,
        deleted: DeletedUsers,
    ) -> Result<Vec<User>, Error> {
        let mut query = users::table.select(UserRow::as_select()).into_boxed();
        if let Some(after) = after {
            query = query.filter(users::user_id.gt(after));
        }
        query = match deleted {
            DeletedUsers::Included => query,
            DeletedUsers::Excluded => query.filter(users::delete_time.is_null()),
        };
        let mut conn = self.database.connection().await?;
        let rows = query
            .order(users::user_id)
            .limit(limit)
            .load(&mut *conn)
            .await?;
        Ok(rows.into_iter().map(User::from).collect())
    }

    /// Reads the summaries of a user's orders, by currency.
    ///
    /// # Errors
    /// If the user does not exist, or the database fails.
    pub async fn load_order_summaries(&self, user_id: Uuid) -> Result<Vec<OrderSummary>, Error> {
        self.load_user(user_id).await?;
        let mut conn = self.database.connection().await?;
        let rows: Vec<SummaryRow> = diesel::sql_query(
            "select currency, order_count, cancelled_count, total::text, as_of_time
             from user_order_summaries where user_id = $1 order by currency",
        )
        .bind::<sql_types::Uuid, _>(user_id)
        .load(&mut *conn)
        .await?;
        Ok(rows.into_iter().map(OrderSummary::from).collect())
    }

    /// Creates the event with a user's new state.
    fn user_event(&self, event_type: &str, user: &User) -> Result<outbox::Event, Error> {
        let state = events::User {
            user_id: user.user_id,
            email: user.email.clone(),
            name: user.name.clone(),
            version: user.version,
            deleted: user.delete_time.is_some(),
            create_time: user.create_time,
            update_time: user.update_time,
        };
        outbox::Event::new(&self.topic, user.user_id, event_type, user.version, &state)
            .map_err(|err| CallError::internal(err).into())
    }
}

/// Returns the next version of a user, or the same version if `change` changes nothing.
fn apply_change(before: &User, change: &UserChange) -> User {
    let mut user = before.clone();
    if let Some(email) = &change.email {
        email.as_str().clone_into(&mut user.email);
    }
    if let Some(name) = &change.name {
        name.as_str().clone_into(&mut user.name);
    }
    if user != *before {
        user.version += 1;
        user.update_time = now_not_before(before.update_time);
    }
    user
}

/// Returns the last version of a user, without e-mail and name.
fn erase(before: User) -> User {
    let now = now_not_before(before.update_time);
    User {
        email: String::new(),
        name: String::new(),
        version: before.version + 1,
        update_time: now,
        delete_time: Some(now),
        ..before
    }
}

/// Returns the current time, but not before `time`, in case the clock was set back.
fn now_not_before(time: DateTime<Utc>) -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6).max(time)
}
