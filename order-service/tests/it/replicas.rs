//! Several replicas, in processes of their own, with one database and one consumer group.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use devstack::{Addresses, NewRecord, Process, Program, Sql, WorkDir, eventually, free_port};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use order_service::OrderService;
use proto::{
    events::{USER_UPDATED, User, header},
    order::v1::{CreateOrderRequest, order_service_client::OrderServiceClient},
};
use testkit::RunningService;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::{ORDERS_TOPIC, request, token_of, user};

const REPLICAS: usize = 3;
const PARTITIONS: i32 = 6;
const USERS: usize = 60;
/// Poison records; each is copied once.
const POISON: i64 = 30;
const CALLS_AT_ONCE: usize = 20;
const START_TIMEOUT: Duration = Duration::from_secs(30);
const EXPIRED: &str = "select count(*) from request_ids";
const DEAD_IN_TOPIC: &str = "select count(*) from dead_letters where in_topic";

struct Replica {
    process: Process,
    channel: Channel,
}

struct Replicas {
    /// The name of the topic, the group and the database.
    name: String,
    replicas: Vec<Replica>,
    sql: Sql,
    written: i64,
    accepted: usize,
    _work_dir: Arc<WorkDir>,
}

impl Replicas {
    /// Starts replicas, and waits until each has partitions.
    async fn start(test: &str) -> Result<Self> {
        let (name, servers) = (Addresses::unique_name(test), Addresses::shared());
        servers.create_topic(&name, PARTITIONS).await?;
        let database_url = RunningService::create_database::<OrderService>(&name).await?;
        let sql = Sql::connect(&database_url).await?;
        // All replicas delete these at startup.
        let expired =
            "insert into request_ids (method, request_id, fingerprint, response, created_at)
             select 'CreateOrder', gen_random_uuid(), '', '', now() - interval '25 hours'
             from generate_series(1, 5000)";
        sql.batch_execute(expired).await?;
        let work_dir = Arc::new(WorkDir::new()?);
        let executable = work_dir.stage(Path::new(env!("CARGO_BIN_EXE_order-service")))?;
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let addr = format!("127.0.0.1:{}", free_port()?);
            let program = Program::new(&format!("order-service-{number}"), &executable)
                .args(["serve"])
                .env("LISTEN_ADDR", &addr)
                .env("DATABASE_URL", &database_url)
                .env("KAFKA_BROKERS", servers.brokers())
                .env("USERS_TOPIC", &name)
                .env("ORDERS_TOPIC", ORDERS_TOPIC)
                .env("CONSUMER_GROUP", &name)
                .env("DEAD_LETTER_TOPIC", format!("{name}.dlq"));
            replicas.push(Replica {
                process: Process::start(&work_dir, program),
                channel: Channel::from_shared(format!("http://{addr}"))?.connect_lazy(),
            });
            let connect = async || {
                Endpoint::from_shared(format!("http://{addr}"))?
                    .connect()
                    .await?;
                Ok(())
            };
            let started = &replicas[number].process;
            started.wait_ready(START_TIMEOUT, connect).await?;
        }
        let group = Self {
            name,
            replicas,
            sql,
            written: 0,
            accepted: 0,
            _work_dir: work_dir,
        };
        group.wait_for_members().await?;
        Ok(group)
    }

    async fn wait_for_members(&self) -> Result<()> {
        eventually("replicas with partitions", async || {
            let members = Addresses::shared().count_assigned_members(&self.name);
            Ok((members.await? == REPLICAS).then_some(()))
        })
        .await
    }

    async fn publish_users(&mut self) -> Result<Vec<User>> {
        let users: Vec<User> = (0..USERS).map(|_| user()).collect();
        let payloads: Result<Vec<_>, _> = users.iter().map(serde_json::to_vec).collect();
        let ids = users.iter().map(|user| user.user_id);
        self.write(ids.zip(payloads?).collect()).await?;
        Ok(users)
    }

    async fn publish_poison(&mut self) -> Result<()> {
        let records = (0..POISON).map(|_| (Uuid::now_v7(), b"poison".to_vec()));
        self.write(records.collect()).await
    }

    async fn write(&mut self, records: Vec<(Uuid, Vec<u8>)>) -> Result<()> {
        self.written += records.len() as i64;
        let keys: Vec<String> = records.iter().map(|(id, _)| id.to_string()).collect();
        let records = keys.iter().zip(&records);
        let records = records.map(|(key, (_, payload))| NewRecord {
            key: Some(key.as_bytes()),
            payload: Some(payload),
            headers: &[(header::SPEC_VERSION, "1.0"), (header::TYPE, USER_UPDATED)],
            ..NewRecord::default()
        });
        let records: Vec<_> = records.collect();
        let servers = Addresses::shared();
        servers.write_records(&self.name, &records).await
    }

    /// Orders for each user at each of these replicas, with the user's token, until all are accepted.
    async fn order_everywhere(&mut self, users: &[User], replicas: &[usize]) -> Result<()> {
        let calls = replicas.iter().flat_map(|replica| {
            let channel = &self.replicas[*replica].channel;
            users.iter().map(move |user| (channel.clone(), user))
        });
        stream::iter(calls)
            .map(|(channel, user)| order(channel, user))
            .buffer_unordered(CALLS_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        self.accepted += users.len() * replicas.len();
        Ok(())
    }

    /// Checks that each record took effect once, and each accepted call created one order.
    async fn assert_applied_once(&self) -> Result<()> {
        let processed = "select sum(next_offset) from projection_offsets";
        self.sql.wait_for(processed, self.written).await?;
        let counted =
            "select sum(applied + skipped + dead_lettered)::bigint from projection_offsets";
        assert_eq!(self.sql.count(counted).await?, self.written);
        let orders = self.sql.count("select count(*) from orders").await?;
        assert_eq!(orders as usize, self.accepted);
        assert_eq!(self.sql.count("select count(*) from outbox").await?, orders);
        Ok(())
    }

    async fn stop(self) {
        for replica in self.replicas {
            replica.process.stop().await;
        }
    }
}

/// Creates an order. Retries as a client does: only UNAVAILABLE with a RetryInfo.
async fn order(channel: Channel, user: &User) -> Result<()> {
    let request = CreateOrderRequest {
        consistency_token: token_of(user),
        ..request(user.user_id)
    };
    let orders = OrderServiceClient::new(channel);
    eventually("an accepted order", async || {
        match orders.clone().create_order(request.clone()).await {
            Ok(_) => Ok(Some(())),
            Err(status) if is_retryable(&status) => Ok(None),
            Err(status) => bail!("user {}: {status}", user.user_id),
        }
    })
    .await
}

fn is_retryable(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.get_details_retry_info().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_replica_is_killed_every_other_one_accepts_every_user() -> Result<()> {
    let mut group = Replicas::start("killed").await?;
    let killed = Instant::now();
    group.replicas[0].process.kill_and_hold().await;
    let users = group.publish_users().await?;
    group.order_everywhere(&users, &[1, 2]).await?;
    let took = killed.elapsed();
    println!("accepted by every other replica {took:.1?} after the kill");
    group.replicas[0].process.release().await;
    group.wait_for_members().await?;
    let more = group.publish_users().await?;
    for users in [users, more] {
        group.order_everywhere(&users, &[0, 1, 2]).await?;
    }
    group.assert_applied_once().await?;
    group.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_replica_is_replaced_and_continues_without_repeating_anything() -> Result<()> {
    let mut group = Replicas::start("suspended").await?;
    let suspended = Instant::now();
    group.replicas[0].process.suspend();
    let users = group.publish_users().await?;
    group.order_everywhere(&users, &[1, 2]).await?;
    let took = suspended.elapsed();
    println!("accepted by every other replica {took:.1?} after the suspension");
    group.replicas[0].process.resume();
    let more = group.publish_users().await?;
    for users in [users, more] {
        group.order_everywhere(&users, &[0, 1, 2]).await?;
    }
    group.wait_for_members().await?;
    group.assert_applied_once().await?;
    group.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_background_work_of_one_database() -> Result<()> {
    let mut group = Replicas::start("shared").await?;
    group.sql.wait_for(EXPIRED, 0).await?;
    group.publish_poison().await?;
    let dead = "select count(*) from dead_letters";
    group.sql.wait_for(dead, POISON).await?;
    // Now every replica finds what no replica could copy.
    let topic = format!("{}.dlq", group.name);
    Addresses::shared().create_dead_letter_topic(&topic).await?;
    group.sql.wait_for(DEAD_IN_TOPIC, POISON).await?;
    group.assert_applied_once().await?;
    // Graceful, so that no copy is in flight.
    group.stop().await;
    let copies = Addresses::shared().read_topic(&topic).await?;
    let mut origins: Vec<_> = copies
        .iter()
        .map(|copy| (copy.header("dlq_partition"), copy.header("dlq_offset")))
        .collect();
    origins.sort_unstable();
    origins.dedup();
    assert_eq!(origins.len() as i64, POISON);
    assert_eq!(copies.len() as i64, POISON, "repeated copies");
    Ok(())
}
