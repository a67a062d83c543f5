use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use devstack::{Addresses, Audit, Servers, Sql, Stack, WorkDir, read_topic};
use proto::{
    money::v1::Money,
    order::v1::{
        CreateOrderRequest, CreateOrderResponse, order_service_client::OrderServiceClient,
    },
    user::v1::{
        CreateUserRequest, CreateUserResponse, DeleteUserRequest, DeleteUserResponse,
        GetUserOrderSummaryRequest, ListUsersRequest, user_service_client::UserServiceClient,
    },
};
use tonic::{Status, transport::Channel};

/// Limit for a state that is reached eventually; far longer than it usually takes.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The running system and its gRPC clients.
#[derive(Debug)]
pub struct System {
    /// Postgres and Kafka, unless they are shared with other tests.
    pub servers: Option<Servers>,
    pub stack: Stack,
    users: UserServiceClient<Channel>,
    orders: OrderServiceClient<Channel>,
}

impl System {
    /// Starts the servers and the programs.
    ///
    /// # Errors
    /// Fails if a server or program does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts the servers and the programs, with additional environment variables for the programs.
    ///
    /// # Errors
    /// Fails if a server or program does not start.
    pub async fn start_with(variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_on(Servers::start(&[]).await?, variables).await
    }

    /// Starts the programs on these servers, with additional environment variables for the programs.
    ///
    /// # Errors
    /// Fails if a server or program does not start.
    pub async fn start_on(servers: Servers, variables: &[(&str, &str)]) -> Result<Self> {
        let stack = Stack::start(&servers.work_dir, &servers.addresses(), "", variables).await?;
        Self::connect(Some(servers), stack)
    }

    /// Starts the programs on the servers that all tests of a run share.
    ///
    /// # Errors
    /// Fails if a server or program does not start.
    pub async fn start_on_shared_servers(test: &str) -> Result<Self> {
        Self::start_on_shared_servers_with(test, &[]).await
    }

    /// Like [`System::start_on_shared_servers`], with additional environment variables for the
    /// programs.
    ///
    /// # Errors
    /// Fails if a server or program does not start.
    pub async fn start_on_shared_servers_with(
        test: &str,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let prefix = format!("{}_", Addresses::unique_name(test));
        let work_dir = Arc::new(WorkDir::new()?);
        let stack = Stack::start(&work_dir, Addresses::shared(), &prefix, variables).await?;
        Self::connect(None, stack)
    }

    fn connect(servers: Option<Servers>, stack: Stack) -> Result<Self> {
        let channel = |addr: &str| {
            let endpoint = Channel::from_shared(format!("http://{addr}"))?;
            // A lazy channel reconnects with the next call after a service was killed.
            Ok::<_, anyhow::Error>(endpoint.timeout(Duration::from_secs(10)).connect_lazy())
        };
        let users = UserServiceClient::new(channel(&stack.names().user_service_addr)?);
        let orders = OrderServiceClient::new(channel(&stack.names().order_service_addr)?);
        Ok(Self {
            servers,
            stack,
            users,
            orders,
        })
    }

    /// Stops everything that this system started.
    pub async fn stop(self) {
        self.stack.stop().await;
        if let Some(servers) = self.servers {
            servers.stop().await;
        }
    }

    pub fn users(&self) -> UserServiceClient<Channel> {
        self.users.clone()
    }

    pub fn orders(&self) -> OrderServiceClient<Channel> {
        self.orders.clone()
    }

    pub async fn create_user(&self, email: &str, name: &str) -> Result<CreateUserResponse, Status> {
        let (email, name) = (email.to_owned(), name.to_owned());
        let request = CreateUserRequest {
            email,
            name,
            ..CreateUserRequest::default()
        };
        Ok(self.users().create_user(request).await?.into_inner())
    }

    pub async fn delete_user(&self, user_id: &str) -> Result<DeleteUserResponse, Status> {
        let request = DeleteUserRequest {
            user_id: user_id.to_owned(),
            ..DeleteUserRequest::default()
        };
        Ok(self.users().delete_user(request).await?.into_inner())
    }

    /// Places an order of 19.90 EUR. `token` is the consistency token from CreateUser, or empty.
    pub async fn create_order(
        &self,
        user_id: &str,
        token: &str,
    ) -> Result<CreateOrderResponse, Status> {
        let request = CreateOrderRequest {
            user_id: user_id.to_owned(),
            amount: Some(money("EUR", 19, 900_000_000)),
            consistency_token: token.to_owned(),
            ..CreateOrderRequest::default()
        };
        Ok(self.orders().create_order(request).await?.into_inner())
    }

    /// Compares users and orders with their records in Kafka.
    ///
    /// # Errors
    /// Fails if a database or topic cannot be read.
    pub async fn audit(&self) -> Result<(Audit, Audit)> {
        let names = self.stack.names();
        let compare = async |url: &str, sql: &str, topic: &str| {
            let rows = query(url, sql).await?;
            let rows: Vec<(String, i64)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
            Ok::<_, anyhow::Error>(Audit::new(&rows, &read_topic(&names.brokers, topic).await?))
        };
        let users = "select user_id::text, version from users";
        let orders = "select order_id::text, version from orders";
        tokio::try_join!(
            compare(&names.users_database_url, users, &names.users_topic),
            compare(&names.orders_database_url, orders, &names.orders_topic),
        )
    }

    /// Waits until every user and order has its record, and returns both audits.
    ///
    /// # Errors
    /// Fails after 60 s.
    pub async fn wait_until_published(&self) -> Result<(Audit, Audit)> {
        let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
        loop {
            let (users, orders) = self.audit().await?;
            if users.lost + orders.lost == 0 {
                return Ok((users, orders));
            }
            if tokio::time::Instant::now() > deadline {
                bail!("not published within {WAIT_TIMEOUT:?}: users {users}; orders {orders}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until the order summaries in user-service count all orders, and returns their number.
    ///
    /// # Errors
    /// Fails after 60 s, or if more orders are counted than exist.
    pub async fn wait_until_projected(&self) -> Result<i64> {
        let placed = self.count("orders").await?;
        let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
        loop {
            let counted = self.count_summarized_orders().await?;
            if counted == placed {
                return Ok(counted);
            }
            if counted > placed || tokio::time::Instant::now() > deadline {
                bail!("user-service counts {counted} orders, order-service has {placed}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    pub async fn order_ids(&self) -> Result<HashSet<String>> {
        let url = &self.stack.names().orders_database_url;
        let rows = query(url, "select order_id::text from orders").await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Counts the rows of a table of one of the services.
    pub async fn count(&self, table: &str) -> Result<i64> {
        let names = self.stack.names();
        let url = match table {
            "users" | "user_orders" => &names.users_database_url,
            _ => &names.orders_database_url,
        };
        let rows = query(url, &format!("select count(*) from {table}")).await?;
        Ok(rows.first().context("count returned no row")?.get(0))
    }

    /// Adds up the order summaries of all users, read over gRPC.
    async fn count_summarized_orders(&self) -> Result<i64> {
        let mut counted = 0;
        let mut page_token = String::new();
        loop {
            let request = ListUsersRequest {
                page_size: 1000,
                page_token,
                show_deleted: true,
            };
            let page = self.users().list_users(request).await?.into_inner();
            for user in page.users {
                let request = GetUserOrderSummaryRequest {
                    user_id: user.user_id,
                };
                let summary = self.users().get_user_order_summary(request).await?;
                counted += summary.into_inner().order_count;
            }
            if page.next_page_token.is_empty() {
                return Ok(counted);
            }
            page_token = page.next_page_token;
        }
    }
}

pub fn money(currency_code: &str, units: i64, nanos: i32) -> Money {
    Money {
        currency_code: currency_code.to_owned(),
        units,
        nanos,
    }
}

async fn query(url: &str, sql: &str) -> Result<Vec<tokio_postgres::Row>> {
    Ok(Sql::connect(url).await?.query(sql, &[]).await?)
}
