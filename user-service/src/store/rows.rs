//! Row types, and the statements that write and lock a single user.

use chrono::{DateTime, SubsecRound as _, Utc};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, QueryableByName,
    Selectable, SelectableHelper as _,
    result::{DatabaseErrorKind, Error as DieselError},
    sql_types,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use uuid::Uuid;

use crate::{
    domain::{Email, NewUser, OrderSummary, User},
    error::Error,
    schema::users,
};

/// Inserts a user.
pub(super) async fn insert_user(
    conn: &mut AsyncPgConnection,
    new: &NewUser,
) -> Result<User, Error> {
    // Postgres stores microseconds; truncate so that later reads return the same value.
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
            users::email_key.eq(new.email.comparison_key()),
            users::name.eq(&user.name),
            users::version.eq(user.version),
            users::create_time.eq(user.create_time),
            users::update_time.eq(user.update_time),
        ))
        .execute(conn)
        .await
        .map_err(map_write_error)?;
    Ok(user)
}

/// Reads a user and locks it against changes until the transaction ends.
pub(super) async fn lock_user(
    conn: &mut AsyncPgConnection,
    user_id: Uuid,
) -> Result<Option<User>, Error> {
    let row: Option<UserRow> = users::table
        .find(user_id)
        .select(UserRow::as_select())
        .for_no_key_update()
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(User::from))
}

/// Writes the next version of a user.
pub(super) async fn update_user(conn: &mut AsyncPgConnection, user: &User) -> Result<(), Error> {
    diesel::update(users::table.find(user.user_id))
        .set((
            users::email.eq(&user.email),
            users::email_key.eq(Email::fold_case(&user.email)),
            users::name.eq(&user.name),
            users::version.eq(user.version),
            users::update_time.eq(user.update_time),
            users::delete_time.eq(user.delete_time),
        ))
        .execute(conn)
        .await
        .map_err(map_write_error)?;
    Ok(())
}

/// Maps the error of an insert or update.
fn map_write_error(err: DieselError) -> Error {
    match &err {
        DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, info)
            if info.constraint_name() == Some("users_email_key") =>
        {
            Error::EmailTaken
        }
        _ => err.into(),
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = users)]
pub(super) struct UserRow {
    pub(super) user_id: Uuid,
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
pub(super) struct SummaryRow {
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
