//! Follows the users of user-service into `users_cache`.

use std::sync::Arc;

use diesel::{QueryResult, sql_types::*};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use projection::{Poison, Projection, Record};
use proto::events::{self, User};

use crate::consistency::Waiters;

/// The projection into `users_cache`.
pub struct UsersProjection {
    waiters: Arc<Waiters>,
}

/// The newest version of each user wins; of a deleted user no name and no e-mail is kept.
const APPLY: &str = "
    insert into users_cache (user_id, email, name, version, deleted)
    select distinct on (user_id) user_id, email, name, version, deleted
    from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::boolean[])
        as incoming (user_id, email, name, version, deleted)
    order by user_id, version desc
    on conflict on constraint users_cache_pkey do update set
        email = excluded.email, name = excluded.name,
        version = excluded.version, deleted = excluded.deleted
    where excluded.version > users_cache.version";

impl UsersProjection {
    /// A projection that wakes these waiters.
    pub fn new(waiters: Arc<Waiters>) -> Self {
        Self { waiters }
    }
}

impl Projection for UsersProjection {
    type Change = User;

    fn decode(&self, record: &Record<'_>) -> Result<Option<User>, Poison> {
        // A tombstone only tells compaction to forget the key; the state was said before it.
        if record.payload().is_none() {
            return Ok(None);
        }
        if !record
            .required_header(events::header::TYPE)?
            .starts_with("user_")
        {
            return Ok(None);
        }
        let user: User = record.payload_json()?;
        if record.key_text()? != user.user_id.to_string() {
            return Err(Poison::new("key", "it is not the payload's user_id"));
        }
        // JSON can hold this character, and Postgres can't.
        if user.email.contains('\0') || user.name.contains('\0') {
            return Err(Poison::new(
                "payload",
                "it has a character with the number 0",
            ));
        }
        Ok(Some(user))
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, users: &[User]) -> QueryResult<()> {
        fn column<'a, T>(users: &'a [User], of: impl Fn(&'a User) -> T) -> Vec<T> {
            users.iter().map(of).collect()
        }
        diesel::sql_query(APPLY)
            .bind::<Array<Uuid>, _>(column(users, |u| u.user_id))
            .bind::<Array<Nullable<Text>>, _>(column(users, |u| (!u.deleted).then_some(&u.email)))
            .bind::<Array<Nullable<Text>>, _>(column(users, |u| (!u.deleted).then_some(&u.name)))
            .bind::<Array<BigInt>, _>(column(users, |u| u.version))
            .bind::<Array<Bool>, _>(column(users, |u| u.deleted))
            .execute(conn)
            .await?;
        Ok(())
    }

    fn applied(&self, users: &[User]) {
        for user in users {
            self.waiters.wake(user.user_id);
        }
    }
}
