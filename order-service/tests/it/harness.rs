//! An order-service in this process, with its own database and topic, and helpers of the tests.

use std::{fmt::Debug, ops::Deref, sync::Arc};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Sql};
use order_service::{OrderService, users_projection::UsersProjection};
use projection::RebuildOptions;
use proto::{
    Aggregate, ConsistencyToken,
    events::{USER_DELETED, USER_UPDATED, User, header},
    money::v1::Money,
    order::v1::{
        CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse, Order,
        order_service_client::OrderServiceClient,
    },
};
use service_kit::{
    TokenKey,
    database::{self, connect_once},
};
use testkit::{RunningService, retry_call};
use tonic::{Code, Status, transport::Channel};
use tonic_types::ErrorDetails;
use uuid::Uuid;

/// Counts orders and their events.
pub(crate) const ORDERS: &str = "select count(*) from orders";
pub(crate) const EVENTS: &str = "select count(*) from outbox";
/// Counts cancellation events.
pub(crate) const CANCELLATIONS: &str =
    "select count(*) from outbox where event_type = 'order_cancelled'";

/// The topic of the service's own events. They stay in the outbox, because no relay runs here.
pub(crate) const ORDERS_TOPIC: &str = "orders.test";

/// Waits long enough that a call can only complete by an arriving event.
pub(crate) const WAIT_LONG: [&str; 3] = [
    "--token-wait-ms=60000",
    "--unknown-user-wait-ms=60000",
    "--max-deadline-ms=60000",
];

/// An order-service; its name is also the name of its users topic.
pub(crate) struct TestService(RunningService);

impl Deref for TestService {
    type Target = RunningService;

    fn deref(&self) -> &RunningService {
        &self.0
    }
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

    /// Starts a service with an existing users topic.
    pub(crate) async fn start_on(name: String, options: &[&str]) -> Result<Self> {
        let database_url = RunningService::create_database::<OrderService>(&name).await?;
        Self::start_at(&name, &database_url, options).await
    }

    /// Starts another replica with further options.
    pub(crate) async fn replica(&self, options: &[&str]) -> Result<Self> {
        Self::start_at(&self.name, &self.database_url, options).await
    }

    /// Stops the service and starts it again.
    pub(crate) async fn restart(self) -> Result<Self> {
        let (name, database_url) = (self.name.clone(), self.database_url.clone());
        self.stop().await?;
        Self::start_at(&name, &database_url, &[]).await
    }

    async fn start_at(name: &str, database_url: &str, options: &[&str]) -> Result<Self> {
        let topics = ["--orders-topic", ORDERS_TOPIC, "--users-topic", name];
        let options = [&topics, options].concat();
        let running = RunningService::start::<OrderService>(name, database_url, &options);
        Ok(Self(running.await?))
    }

    /// Stops the service; waits only for calls in flight.
    pub(crate) async fn stop(self) -> Result<()> {
        self.0.stop().await
    }

    /// Loads the key that signs its tokens.
    pub(crate) async fn token_key(&self) -> Result<TokenKey> {
        let pool =
            database::create_pool(order_service::NAME, &self.database_url.as_str().into(), 1);
        Ok(TokenKey::load(&mut *pool.get().await?).await?)
    }

    /// Returns the users topic, which is also the consumer group.
    pub(crate) fn topic(&self) -> &str {
        &self.name
    }

    pub(crate) fn database_url(&self) -> &str {
        &self.database_url
    }

    pub(crate) fn orders(&self) -> OrderServiceClient<Channel> {
        OrderServiceClient::new(self.channel())
    }

    pub(crate) async fn create(
        &self,
        request: CreateOrderRequest,
    ) -> Result<CreateOrderResponse, Status> {
        let response = self.orders().create_order(request).await?;
        Ok(response.into_inner())
    }

    /// Retries rejections with a RetryInfo as a client should, for example while another call with this
    /// request id is in flight.
    pub(crate) async fn create_at_last(
        &self,
        request: &CreateOrderRequest,
    ) -> Result<CreateOrderResponse, Status> {
        retry_call(async || self.create(request.clone()).await).await
    }

    /// Does the same for a cancellation.
    pub(crate) async fn cancel_at_last(
        &self,
        request: &CancelOrderRequest,
    ) -> Result<CancelOrderResponse, Status> {
        retry_call(async || self.cancel(request.clone()).await).await
    }

    pub(crate) async fn cancel(
        &self,
        request: CancelOrderRequest,
    ) -> Result<CancelOrderResponse, Status> {
        let response = self.orders().cancel_order(request).await?;
        Ok(response.into_inner())
    }

    /// Creates an arbitrary order of this user.
    pub(crate) async fn order(&self, user: &User) -> Result<Order> {
        let created = self.create(request(user.user_id)).await?;
        created.order.context("a response without an order")
    }

    /// Writes a user event as user-service and the relay do; returns the event's id.
    pub(crate) async fn publish_user(&self, user: &User) -> Result<Uuid> {
        let payload = serde_json::to_vec(user)?;
        let event_id = Uuid::now_v7();
        self.write_event(&user.user_id.to_string(), &payload, event_id)
            .await?;
        Ok(event_id)
    }

    /// Writes a record with the headers of a user event.
    pub(crate) async fn write(&self, key: &str, payload: &[u8]) -> Result<()> {
        self.write_event(key, payload, Uuid::now_v7()).await
    }

    /// Writes a record with a given event id.
    pub(crate) async fn write_event(
        &self,
        key: &str,
        payload: &[u8],
        event_id: Uuid,
    ) -> Result<()> {
        let event_id = event_id.to_string();
        let headers = [
            (header::SPEC_VERSION, "1.0"),
            (header::TYPE, USER_UPDATED),
            (header::ID, &*event_id),
        ];
        self.write_with(key, payload, &headers).await
    }

    /// Writes the tombstone of a deleted user, which is all that compaction keeps.
    pub(crate) async fn write_tombstone(&self, user: &User, version: i64) -> Result<()> {
        let (key, version) = (user.user_id.to_string(), version.to_string());
        let headers = [
            (header::SPEC_VERSION, "1.0"),
            (header::TYPE, USER_DELETED),
            (header::AGGREGATE_VERSION, &*version),
        ];
        self.write_null(&key, &headers).await
    }

    /// Writes a record with a null value.
    pub(crate) async fn write_null(&self, key: &str, headers: &[(&str, &str)]) -> Result<()> {
        let topic = &self.name;
        Addresses::shared()
            .write_record(topic, Some(key.as_bytes()), None, headers)
            .await
    }

    /// Rebuilds `users_cache`, as `projection rebuild` does.
    pub(crate) async fn rebuild(&self) -> Result<()> {
        let url = self.database_url.as_str().into();
        let (mut conn, mut follower) = (
            connect_once(order_service::NAME, &url).await?,
            connect_once(order_service::NAME, &url).await?,
        );
        let projection = UsersProjection {
            orders_topic: ORDERS_TOPIC.to_owned(),
            user_subscribers: Arc::default(),
            order_subscribers: Arc::default(),
        };
        let options = RebuildOptions {
            brokers: Addresses::shared().brokers().to_owned(),
            name: self.name.clone(),
            topic: self.name.clone(),
        };
        projection::rebuild(&mut conn, &mut follower, &projection, &options).await?;
        Ok(())
    }

    /// Writes a record with only these headers.
    pub(crate) async fn write_with(
        &self,
        key: &str,
        payload: &[u8],
        headers: &[(&str, &str)],
    ) -> Result<()> {
        let (topic, key) = (&self.name, Some(key.as_bytes()));
        Addresses::shared()
            .write_record(topic, key, Some(payload), headers)
            .await
    }

    /// Waits until this number of user records is processed.
    pub(crate) async fn wait_until_processed(&self, records: i64) -> Result<()> {
        let seen = "select sum(next_offset) from projection_offsets";
        self.sql.wait_for(seen, records).await
    }

    /// Publishes a new user and waits until the service knows it.
    pub(crate) async fn known_user(&self) -> Result<User> {
        let user = user();
        self.publish_user(&user).await?;
        self.wait_for_version(&user).await?;
        Ok(user)
    }

    /// Waits until this version of a user is applied.
    pub(crate) async fn wait_for_version(&self, user: &User) -> Result<()> {
        let version = format!(
            "select max(version) from users_cache where user_id = '{}'",
            user.user_id
        );
        self.sql.wait_for(&version, user.version).await
    }

    /// Waits until a call has not found its user and waits for an event.
    pub(crate) async fn wait_for_waiting_call(&self) -> Result<()> {
        let looked = "select least(count(*), 1) from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid()
                        and query ilike 'select%from%users_cache%'";
        self.sql.wait_for(looked, 1).await
    }
}

/// Returns the consistency token of a user version.
pub(crate) fn token_of(user: &User) -> String {
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: user.user_id,
        version: user.version,
    };
    token.encode()
}

/// Creates a request to cancel this order at any version.
pub(crate) fn cancellation(order: &Order) -> CancelOrderRequest {
    CancelOrderRequest {
        order_id: order.order_id.clone(),
        ..CancelOrderRequest::default()
    }
}

/// Creates a new, unpublished user.
pub(crate) fn user() -> User {
    let now = chrono::Utc::now();
    User {
        user_id: Uuid::now_v7(),
        email: "ada@example.com".into(),
        name: "Ada".into(),
        version: 1,
        deleted: false,
        create_time: now,
        update_time: now,
    }
}

/// Inserts open orders of a user directly, in one transaction.
pub(crate) async fn insert_orders(sql: &Sql, user: &User, count: i32) -> Result<()> {
    let insert = "insert into orders (order_id, user_id, amount_minor, currency, state, version,
                      create_time, update_time)
                  select gen_random_uuid(), $1::text::uuid, 1, 'EUR', 'created', 1, now(), now()
                  from generate_series(1, $2)";
    sql.execute(insert, &[&user.user_id.to_string(), &count])
        .await?;
    Ok(())
}

/// Returns the next version of a user.
pub(crate) fn next_version(user: &User) -> User {
    User {
        version: user.version + 1,
        deleted: false,
        ..user.clone()
    }
}

/// Returns the deleted version of a user.
pub(crate) fn deleted_version(user: &User) -> User {
    User {
        deleted: true,
        ..next_version(user)
    }
}

pub(crate) fn money(currency_code: &str, units: i64, nanos: i32) -> Money {
    Money {
        currency_code: currency_code.to_owned(),
        units,
        nanos,
    }
}

/// Creates a valid request for an order of this user.
pub(crate) fn request(user_id: Uuid) -> CreateOrderRequest {
    CreateOrderRequest {
        user_id: user_id.to_string(),
        amount: Some(money("EUR", 19, 900_000_000)),
        consistency_token: String::new(),
        request_id: String::new(),
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
    testkit::assert_rejection(status, order_service::NAME, code, reason)
}
