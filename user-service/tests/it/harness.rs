//! A user-service in this process, with its own database and topic, and helpers of the tests.

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
pub(crate) use testkit::retry_call;
use tonic::{Code, Status, transport::Channel};
use tonic_types::ErrorDetails;
use user_service::UserService;

/// Counts users and their events.
pub(crate) const USERS: &str = "select count(*) from users";
pub(crate) const EVENTS: &str = "select count(*) from outbox";

/// The topic of the service's own events. They stay in the outbox, because no relay runs here.
pub(crate) const USERS_TOPIC: &str = "users.test";

/// Options for many concurrent calls. Opening a connection is slow in a debug build: on a busy machine
/// more connections would time out repeatedly, and calls would miss their deadline.
pub(crate) const CROWDED: &[&str] = &["--database-pool-size=4", "--max-deadline-ms=60000"];

/// A user-service; its name is also the name of its orders topic.
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
    /// The transaction that wrote it.
    pub(crate) xid: String,
    /// `None` for a tombstone.
    pub(crate) state: Option<events::User>,
}

impl TestService {
    pub(crate) async fn start(test: &str) -> Result<Self> {
        Self::start_with(test, &[]).await
    }

    /// Starts a service with further options.
    pub(crate) async fn start_with(test: &str, options: &[&str]) -> Result<Self> {
        let name = Addresses::unique_name(test);
        Addresses::shared().create_topic(&name, 3).await?;
        Self::start_on(name, options).await
    }

    /// Starts a service with an existing orders topic.
    pub(crate) async fn start_on(name: String, options: &[&str]) -> Result<Self> {
        let database_url = RunningService::create_database::<UserService>(&name).await?;
        Self::start_at(name, &database_url, options).await
    }

    /// Starts a service on an existing database.
    pub(crate) async fn start_at(
        name: String,
        database_url: &str,
        options: &[&str],
    ) -> Result<Self> {
        let topics = ["--users-topic", USERS_TOPIC, "--orders-topic", &name];
        let options = [&topics, options].concat();
        let running = RunningService::start::<UserService>(&name, database_url, &options);
        Ok(Self(running.await?))
    }

    /// Stops the service and starts another one on the same database.
    pub(crate) async fn restart(self) -> Result<Self> {
        Ok(Self(self.0.restart::<UserService>().await?))
    }

    /// Stops the service; waits only for calls in flight.
    pub(crate) async fn stop(self) -> Result<()> {
        self.0.stop().await
    }

    /// Waits until the service has stopped.
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

    /// Creates a user with retries; see [`retry_call`].
    pub(crate) async fn create_at_last(
        &self,
        request: &CreateUserRequest,
    ) -> Result<CreateUserResponse, Status> {
        retry_call(async || self.create(request.clone()).await).await
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

    /// Creates an arbitrary user with this name.
    pub(crate) async fn user(&self, name: &str) -> Result<User> {
        let created = self.create(request(name)).await?;
        created.user.context("a response without a user")
    }

    /// Deletes a user at any version.
    pub(crate) async fn delete(&self, user: &User) -> Result<User> {
        let deleted = self.delete_with(deletion(&user.user_id)).await?;
        deleted.user.context("a response without a user")
    }

    /// Returns the outbox rows of a user, by `seq`.
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

    /// Returns the process ids of the service's database sessions.
    pub(crate) async fn sessions(&self) -> Result<Vec<i32>> {
        let sql = "select pid from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()
                     and backend_type = 'client backend'";
        let rows = self.sql.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Makes new sessions read-only and terminates the existing ones, as a failover to a standby does.
    pub(crate) async fn make_read_only(&self) -> Result<()> {
        self.restart_sessions_with("set default_transaction_read_only = on")
            .await
    }

    /// Makes the database writable again.
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

    /// Locks the users table, so that calls that need it wait.
    pub(crate) async fn lock_users(&self) -> Result<UsersLock> {
        let session = self.session().await?;
        let sql = "begin; lock table users in access exclusive mode";
        session.batch_execute(sql).await?;
        Ok(UsersLock(session))
    }

    /// Waits until `count` calls wait for the lock.
    pub(crate) async fn wait_for_held_calls(&self, count: i64) -> Result<()> {
        let held = "select count(*) from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
        self.sql.wait_for(held, count).await
    }
}

/// The lock of another session on the users table.
pub(crate) struct UsersLock(Sql);

impl UsersLock {
    pub(crate) async fn release(self) -> Result<()> {
        Ok(self.0.batch_execute("rollback").await?)
    }
}

/// Creates a valid request for a user with this name.
pub(crate) fn request(name: &str) -> CreateUserRequest {
    CreateUserRequest {
        email: format!("{name}@example.com"),
        name: name.to_owned(),
        request_id: String::new(),
    }
}

/// Creates a request to set these fields to the values of `user`, with its etag.
pub(crate) fn update(user: User, paths: &[&str]) -> UpdateUserRequest {
    let paths = paths.iter().map(|&path| path.to_owned()).collect();
    UpdateUserRequest {
        user: Some(user),
        update_mask: Some(FieldMask { paths }),
        request_id: String::new(),
    }
}

/// Creates a request to rename a user at any version.
pub(crate) fn renaming(user: &User, name: &str) -> UpdateUserRequest {
    let user = User {
        user_id: user.user_id.clone(),
        name: name.to_owned(),
        ..User::default()
    };
    update(user, &["name"])
}

/// Creates a request to delete a user at any version.
pub(crate) fn deletion(user_id: &str) -> DeleteUserRequest {
    DeleteUserRequest {
        user_id: user_id.to_owned(),
        ..DeleteUserRequest::default()
    }
}

/// Checks that a call was rejected with this code and reason; returns the other details.
#[track_caller]
pub(crate) fn assert_rejected<T: Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> ErrorDetails {
    assert_rejection(&result.expect_err("the call was accepted"), code, reason)
}

/// Checks the code and reason of a rejection; returns the other details.
#[track_caller]
pub(crate) fn assert_rejection(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    testkit::assert_rejection(status, user_service::NAME, code, reason)
}
