//! An order-service that runs in this process, with a database and a topic of its own, and what the
//! tests do to it.

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
use testkit::{RunningService, at_last};
use tonic::{Code, Status, transport::Channel};
use tonic_types::ErrorDetails;
use uuid::Uuid;

/// Counts of the orders, and of the events that tell of them.
pub(crate) const ORDERS: &str = "select count(*) from orders";
pub(crate) const EVENTS: &str = "select count(*) from outbox";
/// Counts of the events that tell of a cancellation.
pub(crate) const CANCELLATIONS: &str =
    "select count(*) from outbox where event_type = 'order_cancelled'";

/// The topic that the service's own events are for. They stay in the outbox: no relay runs here.
pub(crate) const ORDERS_TOPIC: &str = "orders.test";

/// For calls that wait until something arrives: so long that they can't be answered otherwise.
pub(crate) const WAIT_LONG: [&str; 3] = [
    "--token-wait-ms=60000",
    "--unknown-user-wait-ms=60000",
    "--max-deadline-ms=60000",
];

/// An order-service; its name is also that of the topic of the users that it follows.
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

    /// Starts it with further options.
    pub(crate) async fn start_with(test: &str, options: &[&str]) -> Result<Self> {
        let name = Addresses::unique_name(test);
        Addresses::shared().create_topic(&name, 3).await?;
        Self::start_on(name, options).await
    }

    /// Starts it with this topic of users, which is there.
    pub(crate) async fn start_on(name: String, options: &[&str]) -> Result<Self> {
        let database_url = RunningService::create_database::<OrderService>(&name).await?;
        Self::start_at(&name, &database_url, options).await
    }

    /// Starts another replica of it, with further options.
    pub(crate) async fn replica(&self, options: &[&str]) -> Result<Self> {
        Self::start_at(&self.name, &self.database_url, options).await
    }

    /// Ends it, and starts it anew.
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

    /// Ends it, which takes no longer than the calls in flight.
    pub(crate) async fn stop(self) -> Result<()> {
        self.0.stop().await
    }

    /// The key that signs its tokens.
    pub(crate) async fn token_key(&self) -> Result<TokenKey> {
        let pool = database::create_pool(&self.database_url.as_str().into(), 1);
        Ok(TokenKey::load(&mut *pool.get().await?).await?)
    }

    /// The topic of the users that it follows, and the name under which it does.
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

    /// Calls as a client should: repeats what is rejected with a RetryInfo, as when another call
    /// with this request id is in flight, or when too many want a connection at once.
    pub(crate) async fn create_at_last(
        &self,
        request: &CreateOrderRequest,
    ) -> Result<CreateOrderResponse, Status> {
        at_last(async || self.create(request.clone()).await).await
    }

    /// The same for a cancellation.
    pub(crate) async fn cancel_at_last(
        &self,
        request: &CancelOrderRequest,
    ) -> Result<CancelOrderResponse, Status> {
        at_last(async || self.cancel(request.clone()).await).await
    }

    pub(crate) async fn cancel(
        &self,
        request: CancelOrderRequest,
    ) -> Result<CancelOrderResponse, Status> {
        let response = self.orders().cancel_order(request).await?;
        Ok(response.into_inner())
    }

    /// An order of this user, of which nothing else matters.
    pub(crate) async fn order(&self, user: &User) -> Result<Order> {
        let created = self.create(request(user.user_id)).await?;
        created.order.context("an answer without an order")
    }

    /// Writes what user-service and the relay would; returns the event's id.
    pub(crate) async fn tell(&self, user: &User) -> Result<Uuid> {
        let payload = serde_json::to_vec(user)?;
        let event_id = Uuid::now_v7();
        self.write_event(&user.user_id.to_string(), &payload, event_id)
            .await?;
        Ok(event_id)
    }

    /// Writes a record that claims to tell of a user.
    pub(crate) async fn write(&self, key: &str, payload: &[u8]) -> Result<()> {
        self.write_event(key, payload, Uuid::now_v7()).await
    }

    /// Writes a record with an event's id, which comes again if the record does.
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

    /// Writes what is left of a deleted user's records when compaction has run.
    pub(crate) async fn write_tombstone(&self, user: &User, version: i64) -> Result<()> {
        let (key, version) = (user.user_id.to_string(), version.to_string());
        let headers = [
            (header::SPEC_VERSION, "1.0"),
            (header::TYPE, USER_DELETED),
            (header::AGGREGATE_VERSION, &*version),
        ];
        let topic = &self.name;
        Addresses::shared()
            .write_record(topic, Some(key.as_bytes()), None, &headers)
            .await
    }

    /// Builds `users_cache` anew, as the subcommand does.
    pub(crate) async fn rebuild(&self) -> Result<()> {
        let url = self.database_url.as_str().into();
        let (mut conn, mut follower) = (connect_once(&url).await?, connect_once(&url).await?);
        let projection = UsersProjection {
            orders_topic: ORDERS_TOPIC.to_owned(),
            user_updates: Arc::default(),
            order_changes: Arc::default(),
        };
        let options = RebuildOptions {
            brokers: Addresses::shared().brokers().to_owned(),
            name: self.name.clone(),
            topic: self.name.clone(),
        };
        projection::rebuild(&mut conn, &mut follower, &projection, &options).await?;
        Ok(())
    }

    /// Writes a record with these headers and no others.
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

    /// Waits until so many records of users were looked at.
    pub(crate) async fn wait_until_seen(&self, records: i64) -> Result<()> {
        let seen = "select sum(next_offset) from projection_offsets";
        self.sql.wait_for(seen, records).await
    }

    /// A user of whom the service has heard.
    pub(crate) async fn known_user(&self) -> Result<User> {
        let user = user();
        self.tell(&user).await?;
        self.wait_for_version(&user).await?;
        Ok(user)
    }

    /// Waits until this version of a user has arrived.
    pub(crate) async fn wait_for_version(&self, user: &User) -> Result<()> {
        let version = format!(
            "select max(version) from users_cache where user_id = '{}'",
            user.user_id
        );
        self.sql.wait_for(&version, user.version).await
    }

    /// Waits until a call has looked for its user in vain. From here on it waits for an event.
    pub(crate) async fn wait_for_waiting_call(&self) -> Result<()> {
        let looked = "select least(count(*), 1) from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid()
                        and query ilike 'select%from%users_cache%'";
        self.sql.wait_for(looked, 1).await
    }
}

/// The token of one who has seen this version of a user.
pub(crate) fn token_of(user: &User) -> String {
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: user.user_id,
        version: user.version,
    };
    token.encode()
}

/// A request to cancel this order, whatever has become of it.
pub(crate) fn cancellation(order: &Order) -> CancelOrderRequest {
    CancelOrderRequest {
        order_id: order.order_id.clone(),
        ..CancelOrderRequest::default()
    }
}

/// A new user, of whom nobody has heard.
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

/// Writes so many open orders of a user, past the service, in one transaction.
pub(crate) async fn insert_orders(sql: &Sql, user: &User, count: i32) -> Result<()> {
    let insert = "insert into orders (order_id, user_id, amount_minor, currency, state, version,
                      create_time, update_time)
                  select gen_random_uuid(), $1::text::uuid, 1, 'EUR', 'created', 1, now(), now()
                  from generate_series(1, $2)";
    sql.execute(insert, &[&user.user_id.to_string(), &count])
        .await?;
    Ok(())
}

/// The next version of a user.
pub(crate) fn next_version(user: &User) -> User {
    User {
        version: user.version + 1,
        deleted: false,
        ..user.clone()
    }
}

/// The version after which there is none.
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

/// A good request to place an order for this user.
pub(crate) fn request(user_id: Uuid) -> CreateOrderRequest {
    CreateOrderRequest {
        user_id: user_id.to_string(),
        amount: Some(money("EUR", 19, 900_000_000)),
        consistency_token: String::new(),
        request_id: String::new(),
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
    testkit::assert_rejection(status, order_service::NAME, code, reason)
}
