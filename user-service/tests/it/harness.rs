//! A user-service that runs in this process, with a database and a topic of its own, and what the
//! tests do to it.

use std::{fmt::Debug, ops::Deref};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Sql};
use prost_types::FieldMask;
use proto::{
    events,
    user::v1::{
        CreateUserRequest, CreateUserResponse, DeleteUserRequest, DeleteUserResponse,
        GetUserRequest, UpdateUserRequest, UpdateUserResponse, User,
        user_service_client::UserServiceClient,
    },
};
use testkit::RunningService;
pub(crate) use testkit::at_last;
use tonic::{Code, Status, transport::Channel};
use tonic_types::ErrorDetails;
use user_service::UserService;

/// Counts of the users, and of the events that tell of them.
pub(crate) const USERS: &str = "select count(*) from users";
pub(crate) const EVENTS: &str = "select count(*) from outbox";

/// The topic that the service's own events are for. They stay in the outbox: no relay runs here.
pub(crate) const USERS_TOPIC: &str = "users.test";

/// Options for a crowd of calls. To open a connection costs so much in a build without optimizations
/// that a machine with other things to do would open and drop them for ever; and such a machine is
/// no reason to end a call.
pub(crate) const CROWDED: &[&str] = &["--database-pool-size=4", "--max-deadline-ms=60000"];

/// A user-service; its name is also that of the topic of the orders that it follows.
pub(crate) struct TestService(RunningService);

impl Deref for TestService {
    type Target = RunningService;

    fn deref(&self) -> &RunningService {
        &self.0
    }
}

/// A row of the outbox.
#[derive(Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) version: i64,
    /// Of the transaction that wrote it.
    pub(crate) xid: String,
    /// None makes it a tombstone.
    pub(crate) state: Option<events::User>,
}

impl TestService {
    pub(crate) async fn start(test: &str) -> Result<Self> {
        Self::start_with(test, &[]).await
    }

    /// Starts it with further options.
    pub(crate) async fn start_with(test: &str, options: &[&str]) -> Result<Self> {
        let name = Addresses::unique_name(test);
        Addresses::shared().create_topic(&name, 3).await?;
        Self::start_on(name, options).await
    }

    /// Starts it with this topic of orders, which is there.
    pub(crate) async fn start_on(name: String, options: &[&str]) -> Result<Self> {
        let database_url = RunningService::create_database::<UserService>(&name).await?;
        let topics = ["--users-topic", USERS_TOPIC, "--orders-topic", &name];
        let options = [&topics, options].concat();
        let running = RunningService::start::<UserService>(&name, &database_url, &options);
        Ok(Self(running.await?))
    }

    /// Ends it, and starts another one on the same database.
    pub(crate) async fn restart(self) -> Result<Self> {
        Ok(Self(self.0.restart::<UserService>().await?))
    }

    /// Ends it, which takes no longer than the calls in flight.
    pub(crate) async fn stop(self) -> Result<()> {
        self.0.stop().await
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(self) -> Result<()> {
        self.0.ended().await
    }

    pub(crate) fn users(&self) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel())
    }

    pub(crate) async fn create(
        &self,
        request: CreateUserRequest,
    ) -> Result<CreateUserResponse, Status> {
        let response = self.users().create_user(request).await?;
        Ok(response.into_inner())
    }

    /// Creates a user, as a client should: see [`at_last`].
    pub(crate) async fn create_at_last(
        &self,
        request: &CreateUserRequest,
    ) -> Result<CreateUserResponse, Status> {
        at_last(async || self.create(request.clone()).await).await
    }

    pub(crate) async fn get(&self, user_id: &str) -> Result<User, Status> {
        let user_id = user_id.to_owned();
        let response = self.users().get_user(GetUserRequest { user_id }).await?;
        Ok(response.into_inner().user.unwrap_or_default())
    }

    pub(crate) async fn update(
        &self,
        request: UpdateUserRequest,
    ) -> Result<UpdateUserResponse, Status> {
        let response = self.users().update_user(request).await?;
        Ok(response.into_inner())
    }

    pub(crate) async fn delete_with(
        &self,
        request: DeleteUserRequest,
    ) -> Result<DeleteUserResponse, Status> {
        let response = self.users().delete_user(request).await?;
        Ok(response.into_inner())
    }

    /// A user of this name, of whom nothing else matters.
    pub(crate) async fn user(&self, name: &str) -> Result<User> {
        let created = self.create(request(name)).await?;
        created.user.context("an answer without a user")
    }

    /// Deletes a user, whatever has become of it.
    pub(crate) async fn delete(&self, user: &User) -> Result<User> {
        let deleted = self.delete_with(deletion(&user.user_id)).await?;
        deleted.user.context("an answer without a user")
    }

    /// What was written about a user, in the order of `seq`.
    pub(crate) async fn events_of(&self, user_id: &str) -> Result<Vec<Event>> {
        let sql = "select event_id::text, event_type, aggregate_version, xid::text, payload
                   from outbox where key = $1 order by seq";
        let rows = self.sql.query(sql, &[&user_id]).await?;
        let mut written = Vec::new();
        for row in rows {
            let payload: Option<&[u8]> = row.get(4);
            written.push(Event {
                event_id: row.get(0),
                event_type: row.get(1),
                version: row.get(2),
                xid: row.get(3),
                state: payload.map(serde_json::from_slice).transpose()?,
            });
        }
        Ok(written)
    }

    /// The service's sessions with its database, by their process ids.
    pub(crate) async fn sessions(&self) -> Result<Vec<i32>> {
        let sql = "select pid from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()
                     and backend_type = 'client backend'";
        let rows = self.sql.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Makes the database reject all writes of new sessions, and ends those that are there, as a
    /// failover to a standby does.
    pub(crate) async fn make_read_only(&self) -> Result<()> {
        self.restart_sessions_with("set default_transaction_read_only = on")
            .await
    }

    /// Makes it take writes again, as another failover does.
    pub(crate) async fn make_writable(&self) -> Result<()> {
        self.restart_sessions_with("reset default_transaction_read_only")
            .await
    }

    async fn restart_sessions_with(&self, setting: &str) -> Result<()> {
        let name = self.sql.query_one("select current_database()", &[]).await?;
        let name: String = name.get(0);
        self.sql
            .batch_execute("set transaction_read_only = off")
            .await?;
        let sql = format!("alter database \"{name}\" {setting}");
        self.sql.batch_execute(&sql).await?;
        for pid in self.sessions().await? {
            self.sql
                .query("select pg_terminate_backend($1)", &[&pid])
                .await?;
        }
        Ok(())
    }

    /// Keeps every call that needs the users waiting.
    pub(crate) async fn lock_users(&self) -> Result<UsersLock> {
        let session = self.session().await?;
        let sql = "begin; lock table users in access exclusive mode";
        session.batch_execute(sql).await?;
        Ok(UsersLock(session))
    }

    /// Waits until so many calls wait for the lock.
    pub(crate) async fn wait_for_held_calls(&self, count: i64) -> Result<()> {
        let held = "select count(*) from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
        self.sql.wait_for(held, count).await
    }
}

/// The users, locked by another session.
pub(crate) struct UsersLock(Sql);

impl UsersLock {
    pub(crate) async fn release(self) -> Result<()> {
        Ok(self.0.batch_execute("rollback").await?)
    }
}

/// A good request to create a user of this name.
pub(crate) fn request(name: &str) -> CreateUserRequest {
    CreateUserRequest {
        email: format!("{name}@example.com"),
        name: name.to_owned(),
        request_id: String::new(),
    }
}

/// A request to change a user's fields of these names to those of `user`, if that has its etag still.
pub(crate) fn update(user: User, paths: &[&str]) -> UpdateUserRequest {
    let paths = paths.iter().map(|&path| path.to_owned()).collect();
    UpdateUserRequest {
        user: Some(user),
        update_mask: Some(FieldMask { paths }),
        request_id: String::new(),
    }
}

/// A request to give a user another name, in any case.
pub(crate) fn renaming(user: &User, name: &str) -> UpdateUserRequest {
    let user = User {
        user_id: user.user_id.clone(),
        name: name.to_owned(),
        ..User::default()
    };
    update(user, &["name"])
}

/// A request to delete a user, in any case.
pub(crate) fn deletion(user_id: &str) -> DeleteUserRequest {
    DeleteUserRequest {
        user_id: user_id.to_owned(),
        ..DeleteUserRequest::default()
    }
}

/// Checks that a call was rejected with this code and this reason; returns the other details.
#[track_caller]
pub(crate) fn assert_rejected<T: Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> ErrorDetails {
    assert_rejection(&result.expect_err("it was not rejected"), code, reason)
}

/// Checks a rejection's code and reason; returns the other details.
#[track_caller]
pub(crate) fn assert_rejection(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    testkit::assert_rejection(status, user_service::NAME, code, reason)
}
