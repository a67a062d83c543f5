//! All SQL of the service. A user and the event that tells of it are written in one transaction.

use chrono::{DateTime, SubsecRound as _, Utc};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, QueryableByName,
    Selectable, SelectableHelper as _,
    result::{DatabaseErrorKind, Error as DieselError},
    sql_types,
};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use proto::events;
use service_kit::{
    CallError,
    database::Pool,
    idempotency::{Answer, WriteContext},
};
use uuid::Uuid;

use crate::{
    domain::{NewUser, OrderSummary, User},
    error::Error,
    schema::users,
};

/// The service's database.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    topic: String,
}

impl Store {
    /// The store behind `pool`; events go to `topic`.
    pub fn new(pool: Pool, topic: String) -> Self {
        Self { pool, topic }
    }

    /// Makes a user. `respond` encodes the response, which is kept for repeats.
    ///
    /// # Errors
    /// If the e-mail is taken, the request id was used for something else, or the database fails.
    pub async fn create_user(
        &self,
        new: NewUser,
        context: WriteContext,
        respond: fn(&User) -> Vec<u8>,
    ) -> Result<Answer<User>, Error> {
        let mut conn = self.pool.get().await?;
        conn.transaction(async |conn| {
            if let Some(response) = context.earlier_response(conn).await? {
                return Ok(Answer::Repeated(response));
            }
            let user = insert(conn, &new).await?;
            let event = self.event(events::USER_CREATED, &user)?;
            outbox::enqueue(conn, &event.with_traceparent(context.traceparent.clone())).await?;
            context.keep_response(conn, || respond(&user)).await?;
            Ok(Answer::Done(user))
        })
        .await
    }

    /// Reads a user.
    ///
    /// # Errors
    /// If there is none, or the database fails.
    pub async fn user(&self, user_id: Uuid) -> Result<User, Error> {
        let mut conn = self.pool.get().await?;
        let row: Option<UserRow> = users::table
            .find(user_id)
            .select(UserRow::as_select())
            .first(&mut conn)
            .await
            .optional()?;
        row.map(User::from).ok_or(Error::UserNotFound(user_id))
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
        show_deleted: bool,
    ) -> Result<Vec<User>, Error> {
        let mut query = users::table.select(UserRow::as_select()).into_boxed();
        if let Some(after) = after {
            query = query.filter(users::user_id.gt(after));
        }
        if !show_deleted {
            query = query.filter(users::delete_time.is_null());
        }
        let mut conn = self.pool.get().await?;
        let rows = query
            .order(users::user_id)
            .limit(limit)
            .load(&mut conn)
            .await?;
        Ok(rows.into_iter().map(User::from).collect())
    }

    /// Reads the summaries of a user's orders, in the order of their currencies.
    ///
    /// # Errors
    /// If there is no such user, or the database fails.
    pub async fn order_summaries(&self, user_id: Uuid) -> Result<Vec<OrderSummary>, Error> {
        self.user(user_id).await?;
        let mut conn = self.pool.get().await?;
        let rows: Vec<SummaryRow> = diesel::sql_query(
            "select currency, order_count, cancelled_count, total::text, as_of_time
             from user_order_summaries where user_id = $1 order by currency",
        )
        .bind::<sql_types::Uuid, _>(user_id)
        .load(&mut conn)
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

async fn insert(conn: &mut AsyncPgConnection, new: &NewUser) -> Result<User, Error> {
    // Postgres keeps microseconds: what is answered now is what is read later.
    let now = Utc::now().trunc_subsecs(6);
    let user = User {
        user_id: Uuid::now_v7(),
        email: new.email.as_str().to_owned(),
        name: new.name.as_str().to_owned(),
        version: 1,
        create_time: now,
        update_time: now,
        delete_time: None,
    };
    diesel::insert_into(users::table)
        .values((
            users::user_id.eq(user.user_id),
            users::email.eq(&user.email),
            users::email_key.eq(new.email.key()),
            users::name.eq(&user.name),
            users::version.eq(user.version),
            users::create_time.eq(user.create_time),
            users::update_time.eq(user.update_time),
        ))
        .execute(conn)
        .await
        .map_err(|err| match &err {
            DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, info)
                if info.constraint_name() == Some("users_email_key") =>
            {
                Error::EmailTaken
            }
            _ => err.into(),
        })?;
    Ok(user)
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = users)]
struct UserRow {
    user_id: Uuid,
    email: String,
    name: String,
    version: i64,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    delete_time: Option<DateTime<Utc>>,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        let UserRow {
            user_id,
            email,
            name,
            version,
            create_time,
            update_time,
            delete_time,
        } = row;
        Self {
            user_id,
            email,
            name,
            version,
            create_time,
            update_time,
            delete_time,
        }
    }
}

#[derive(QueryableByName)]
struct SummaryRow {
    #[diesel(sql_type = sql_types::Text)]
    currency: String,
    #[diesel(sql_type = sql_types::BigInt)]
    order_count: i64,
    #[diesel(sql_type = sql_types::BigInt)]
    cancelled_count: i64,
    #[diesel(sql_type = sql_types::Text)]
    total: String,
    #[diesel(sql_type = sql_types::Timestamptz)]
    as_of_time: DateTime<Utc>,
}

impl From<SummaryRow> for OrderSummary {
    fn from(row: SummaryRow) -> Self {
        let SummaryRow {
            currency,
            order_count,
            cancelled_count,
            total,
            as_of_time,
        } = row;
        Self {
            currency,
            order_count,
            cancelled_count,
            total,
            as_of_time,
        }
    }
}
