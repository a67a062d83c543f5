//! A typical consumer: one statement per record, and the offset in Kafka.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use devstack::Sql;
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
};

const POLL_TIMEOUT: Duration = Duration::from_secs(1);
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Applies this number of records. Returns the records per second since the first one.
pub(super) async fn consume(brokers: &str, topic: &str, url: &str, records: u64) -> Result<f64> {
    let sql = Sql::connect(url).await?;
    sql.batch_execute(
        "create table users_cache (user_id uuid primary key, email text, name text, version bigint)",
    )
    .await?;
    let apply = sql
        .prepare(
            "insert into users_cache values (($1::text)::uuid, $2, $3, $4)
             on conflict (user_id) do update set email = excluded.email, name = excluded.name,
                 version = excluded.version
             where excluded.version > users_cache.version",
        )
        .await?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", url.rsplit('/').next().unwrap_or("plain"))
        .set("auto.offset.reset", "earliest")
        .create()?;
    consumer.subscribe(&[topic])?;
    let subscribed = Instant::now();
    let mut started = None;
    for _ in 0..records {
        // A poll can return nothing although records are pending.
        let message = loop {
            match consumer.poll(POLL_TIMEOUT) {
                Some(message) => break message?,
                None => ensure!(
                    subscribed.elapsed() < WAIT_TIMEOUT,
                    "no record within {WAIT_TIMEOUT:?}"
                ),
            }
        };
        started.get_or_insert_with(Instant::now);
        let user: serde_json::Value =
            serde_json::from_slice(message.payload().unwrap_or_default())?;
        let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
        let (id, email, name) = (text("user_id"), text("email"), text("name"));
        let version = user["version"].as_i64().unwrap_or_default();
        sql.execute(&apply, &[&id, &email, &name, &version]).await?;
    }
    let took = started.context("no records")?.elapsed();
    Ok(records as f64 / took.as_secs_f64())
}
