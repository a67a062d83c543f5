//! An order-service that runs in this process, with a database and a topic of its own, and what the
//! tests do to it.

use std::fmt::Debug;

use anyhow::{Context as _, Error, Result};
use clap::Parser;
use devstack::{Addresses, PATIENCE, Sql, eventually};
use order_service::{MIGRATIONS, OrderService, config::ServeOptions};
use program::Problems;
use proto::{
    events::{User, header},
    money::v1::Money,
    order::v1::{
        CreateOrderRequest, CreateOrderResponse, Order, order_service_client::OrderServiceClient,
    },
};
use service_kit::database::migrate;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

/// Counts of the orders, and of the events that tell of them.
pub(crate) const ORDERS: &str = "select count(*) from orders";
pub(crate) const EVENTS: &str = "select count(*) from outbox";

/// The topic that the service's own events are for. They stay in the outbox: no relay runs here.
pub(crate) const ORDERS_TOPIC: &str = "orders.test";

/// For calls that wait until something arrives: so long that they can't be answered otherwise.
pub(crate) const WAIT_LONG: [&str; 3] = [
    "--token-wait-ms=60000",
    "--unknown-user-wait-ms=60000",
    "--max-deadline-ms=60000",
];

/// The command line of `serve`; what is given later wins.
#[derive(Parser)]
#[command(args_override_self = true)]
struct Serve {
    #[command(flatten)]
    options: ServeOptions,
}

/// An order-service, and the session that looks into its database.
pub(crate) struct TestService {
    pub(crate) sql: Sql,
    /// The topic of the users that it follows.
    users_topic: String,
    channel: Channel,
    shutdown: CancellationToken,
    running: JoinHandle<Result<()>>,
}

impl TestService {
    pub(crate) async fn start(test: &str) -> Result<Self> {
        Self::start_with(test, &[]).await
    }

    /// Starts it with further options.
    pub(crate) async fn start_with(test: &str, options: &[&str]) -> Result<Self> {
        let (name, servers) = (Addresses::unique_name(test), Addresses::shared());
        servers.create_topic(&name, 3).await?;
        let database_url = servers.create_database(&name).await?;
        migrate(&database_url.as_str().into(), &MIGRATIONS)
            .await
            .map_err(Error::from_boxed)?;
        let usual = [
            ["order-service", "--listen-addr=127.0.0.1:0"],
            ["--database-url", &database_url],
            ["--kafka-brokers", servers.brokers()],
            ["--orders-topic", ORDERS_TOPIC],
            ["--users-topic", &name],
            ["--consumer-group", &name],
        ];
        let arguments = usual.as_flattened().iter().chain(options);
        let mut problems = Problems::default();
        let options = Serve::try_parse_from(arguments)?.options;
        let config = options.check(&mut problems);
        let config = problems.into_result(config)?;
        let service = OrderService::bind(config).await?;
        let (addr, shutdown) = (service.local_addr(), CancellationToken::new());
        let running = service.run(shutdown.clone());
        Ok(Self {
            sql: Sql::connect(&database_url).await?,
            users_topic: name,
            channel: Channel::from_shared(format!("http://{addr}"))?.connect_lazy(),
            running: tokio::spawn(async { running.await.map_err(Error::from_boxed) }),
            shutdown,
        })
    }

    /// Ends it, which takes no longer than the calls in flight.
    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .context("it does not end")??
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
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

    /// Calls as a client should: repeats what is refused with a RetryInfo, as when another call
    /// with this request id is in flight, or when too many want a connection at once.
    pub(crate) async fn create_at_last(
        &self,
        request: &CreateOrderRequest,
    ) -> Result<CreateOrderResponse, Status> {
        let answer = async || match self.create(request.clone()).await {
            Err(status) if status.get_details_retry_info().is_some() => Ok(None),
            result => Ok(Some(result)),
        };
        let answer = eventually("an answer", answer).await;
        answer.unwrap_or_else(|err| Err(Status::unknown(err.to_string())))
    }

    /// An order of this user, of which nothing else matters.
    pub(crate) async fn order(&self, user: &User) -> Result<Order> {
        let created = self.create(request(user.user_id)).await?;
        created.order.context("an answer without an order")
    }

    /// Writes what user-service and the relay would.
    pub(crate) async fn tell(&self, user: &User) -> Result<()> {
        let payload = serde_json::to_vec(user)?;
        self.write(&user.user_id.to_string(), &payload).await
    }

    /// Writes a record that claims to tell of a user.
    pub(crate) async fn write(&self, key: &str, payload: &[u8]) -> Result<()> {
        let headers = [(header::TYPE, "user_changed")];
        Addresses::shared()
            .write_record(
                &self.users_topic,
                Some(key.as_bytes()),
                Some(payload),
                &headers,
            )
            .await
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

/// The next version of a user, changed or deleted.
pub(crate) fn next_version(user: &User, deleted: bool) -> User {
    User {
        version: user.version + 1,
        deleted,
        ..user.clone()
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

/// Checks that a call was refused with this code and this reason; returns the other details.
#[track_caller]
pub(crate) fn assert_refused<T: Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> ErrorDetails {
    assert_refusal(&result.expect_err("it was not refused"), code, reason)
}

/// Checks a refusal's code and reason; returns the other details.
#[track_caller]
pub(crate) fn assert_refusal(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    assert_eq!((status.code(), info.reason.as_str()), (code, reason));
    assert_eq!(info.domain, order_service::NAME);
    details
}
