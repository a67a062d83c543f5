//! All SQL of the service. A user and the event that tells of it are written in one transaction.
//! `rows` has the statements about a single user, and what rows look like.

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
    database::CallDatabase,
    idempotency::{Mutation, Response},
};
use uuid::Uuid;

use self::rows::{SummaryRow, UserRow, insert, lock, update};
use crate::{
    domain::{NewUser, OrderSummary, User, UserChange, UserDeletion},
    error::Error,
    schema::users,
};

/// Whether a list has users who were deleted.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum DeletedUsers {
    Hidden,
    Shown,
}

/// The service's database.
#[derive(Clone)]
pub struct Store {
    database: CallDatabase,
    topic: String,
}

impl Store {
    /// The store in `database`; events go to `topic`.
    pub fn new(database: CallDatabase, topic: String) -> Self {
        Self { database, topic }
    }

    /// The key of this service's page tokens.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn token_key(&self) -> Result<&TokenKey, Error> {
        Ok(self.database.token_key().await?)
    }

    /// Makes a user.
    ///
    /// # Errors
    /// If the e-mail is taken, the request id was used for something else, or the database fails.
    pub async fn create_user<R: Response>(
        &self,
        new: NewUser,
        mutation: Mutation<User, R>,
    ) -> Result<R, Error> {
        let (store, traceparent) = (self.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let user = insert(conn, &new).await?;
            let event = store.event(events::USER_CREATED, &user)?;
            outbox::enqueue(conn, &event.with_traceparent(traceparent)).await?;
            Ok(user)
        };
        self.database.mutate(mutation, write).await
    }

    /// Changes a user. What changes nothing makes no new version, and no event.
    ///
    /// # Errors
    /// If there is no such user or it was deleted, it is not the one that the caller has seen, the
    /// e-mail is taken, the request id was used for something else, or the database fails.
    pub async fn update_user<R: Response>(
        &self,
        change: UserChange,
        mutation: Mutation<User, R>,
    ) -> Result<R, Error> {
        let (store, traceparent) = (self.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let before = lock(conn, change.user_id).await?;
            let before = before.ok_or(Error::UserNotFound(change.user_id))?;
            if before.delete_time.is_some() {
                return Err(Error::UserDeleted(change.user_id));
            }
            check_etag(&change.etag, before.version)?;
            let user = changed(&before, &change);
            if user.version > before.version {
                update(conn, &user).await?;
                let event = store.event(events::USER_UPDATED, &user)?;
                outbox::enqueue(conn, &event.with_traceparent(traceparent)).await?;
            }
            Ok(user)
        };
        self.database.mutate(mutation, write).await
    }

    /// Deletes a user: its row stays, without e-mail and name. `None` if there was none, and that is
    /// as well.
    ///
    /// # Errors
    /// If there is no such user or it is deleted already, it is not the one that the caller has
    /// seen, the request id was used for something else, or the database fails.
    pub async fn delete_user<R: Response>(
        &self,
        deletion: UserDeletion,
        mutation: Mutation<Option<User>, R>,
    ) -> Result<R, Error> {
        let (store, traceparent) = (self.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let user = match lock(conn, deletion.user_id).await? {
                Some(user) if user.delete_time.is_none() => {
                    check_etag(&deletion.etag, user.version)?;
                    let user = deleted(user);
                    update(conn, &user).await?;
                    let event = store.event(events::USER_DELETED, &user)?;
                    let event = event.with_traceparent(traceparent);
                    outbox::enqueue_all(conn, &[event.clone(), event.tombstone()]).await?;
                    Some(user)
                }
                gone if deletion.allow_missing => gone,
                _ => return Err(Error::UserNotFound(deletion.user_id)),
            };
            Ok(user)
        };
        self.database.mutate(mutation, write).await
    }

    /// Reads a user.
    ///
    /// # Errors
    /// If there is none, or the database fails.
    pub async fn user(&self, user_id: Uuid) -> Result<User, Error> {
        let mut conn = self.database.get().await?;
        let row: Option<UserRow> = users::table
            .find(user_id)
            .select(UserRow::as_select())
            .first(&mut *conn)
            .await
            .optional()?;
        row.map(User::from).ok_or(Error::UserNotFound(user_id))
    }

    /// Reads these users, in this order.
    ///
    /// # Errors
    /// If there is none with one of the ids, or the database fails.
    pub async fn users_by_id(&self, user_ids: &[Uuid]) -> Result<Vec<User>, Error> {
        let mut conn = self.database.get().await?;
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

    /// Reads at most `limit` users behind `after`, in the order of their ids, which is that of
    /// their creation.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn users(
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
            DeletedUsers::Shown => query,
            DeletedUsers::Hidden => query.filter(users::delete_time.is_null()),
        };
        let mut conn = self.database.get().await?;
        let rows = query
            .order(users::user_id)
            .limit(limit)
            .load(&mut *conn)
            .await?;
        Ok(rows.into_iter().map(User::from).collect())
    }

    /// Reads the summaries of a user's orders, in the order of their currencies.
    ///
    /// # Errors
    /// If there is no such user, or the database fails.
    pub async fn order_summaries(&self, user_id: Uuid) -> Result<Vec<OrderSummary>, Error> {
        self.user(user_id).await?;
        let mut conn = self.database.get().await?;
        let rows: Vec<SummaryRow> = diesel::sql_query(
            "select currency, order_count, cancelled_count, total::text, as_of_time
             from user_order_summaries where user_id = $1 order by currency",
        )
        .bind::<sql_types::Uuid, _>(user_id)
        .load(&mut *conn)
        .await?;
        Ok(rows.into_iter().map(OrderSummary::from).collect())
    }

    /// The event that tells of a user's new state.
    fn event(&self, event_type: &str, user: &User) -> Result<outbox::Event, Error> {
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
            .map_err(|err| CallError::bug(err).into())
    }
}

/// The next version of a user, or the same one if `change` changes nothing.
fn changed(before: &User, change: &UserChange) -> User {
    let mut user = before.clone();
    if let Some(email) = &change.email {
        email.as_str().clone_into(&mut user.email);
    }
    if let Some(name) = &change.name {
        name.as_str().clone_into(&mut user.name);
    }
    if user != *before {
        user.version += 1;
        user.update_time = later_than(before.update_time);
    }
    user
}

/// The last version of a user.
fn deleted(before: User) -> User {
    let now = later_than(before.update_time);
    User {
        email: String::new(),
        name: String::new(),
        version: before.version + 1,
        update_time: now,
        delete_time: Some(now),
        ..before
    }
}

/// The present time; a clock that was set back does not make a version older than the one before.
fn later_than(time: DateTime<Utc>) -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6).max(time)
}
