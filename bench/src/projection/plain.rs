//! A consumer as it is usually written: a statement a record, and Kafka keeps the offset.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use devstack::Sql;
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
};

const POLL_TIMEOUT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(120);

/// Applies so many records; returns how many a second, from the first on.
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
    let asked = Instant::now();
    let mut started = None;
    for _ in 0..records {
        // A poll also ends, with nothing, for what it does beside.
        let message = loop {
            match consumer.poll(POLL_TIMEOUT) {
                Some(message) => break message?,
                None => ensure!(asked.elapsed() < PATIENCE, "no records"),
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
