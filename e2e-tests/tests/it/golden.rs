//! Every released payload is still applied by every consumer of its topic.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use demo::System;
use devstack::{Addresses, Sql};
use proto::events::{ORDER_TYPES, USER_TYPES, header};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/tests/golden");

/// A released payload.
pub(crate) struct Golden {
    pub(crate) file: String,
    /// The event type.
    pub(crate) event_type: String,
    /// The payload, byte for byte.
    pub(crate) text: String,
    pub(crate) payload: Value,
}

impl Golden {
    /// Reads all payloads, by file name.
    pub(crate) fn all() -> Result<BTreeMap<String, Self>> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(FOLDER)? {
            let path = entry?.path();
            let file = path.file_name().and_then(|name| name.to_str());
            let file = file.context("a name in UTF-8")?.to_owned();
            let (event_type, _) = file.split_once('.').context("TYPE.RELEASE.json")?;
            let text = fs::read_to_string(&path)?;
            let golden = Self {
                file: file.clone(),
                event_type: event_type.to_owned(),
                payload: serde_json::from_str(&text).context(file.clone())?,
                text,
            };
            all.insert(file, golden);
        }
        Ok(all)
    }

    pub(crate) fn version(&self) -> Result<i64> {
        self.payload["version"].as_i64().context("a version")
    }

    /// Returns the text of a field.
    pub(crate) fn field(&self, name: &str) -> Result<&str> {
        let text = self.payload[name].as_str();
        text.with_context(|| format!("{} has no {name}", self.file))
    }

    /// Writes a record with only the headers of the first release.
    pub(crate) async fn write(&self, topic: &str, key: &str, text: &str) -> Result<()> {
        let (id, version) = (
            uuid::Uuid::now_v7().to_string(),
            self.version()?.to_string(),
        );
        let headers = [
            (header::SPEC_VERSION, "1.0"),
            (header::ID, &id),
            ("ce_source", "/of-the-first-release"),
            (header::TYPE, &self.event_type),
            (header::TIME, "2026-01-02T03:04:05.678901Z"),
            (header::AGGREGATE_VERSION, &version),
            ("content-type", "application/json"),
        ];
        Addresses::shared()
            .write_record(topic, Some(key.as_bytes()), Some(text.as_bytes()), &headers)
            .await
    }
}

/// Applies a user event in order-service to empty tables, and checks the result.
async fn replay_user(system: &System, orders: &Sql, golden: &Golden) -> Result<()> {
    orders.batch_execute("delete from users_cache").await?;
    let user_id = golden.field("user_id")?;
    let topic = &system.stack.names().users_topic;
    golden.write(topic, user_id, &golden.text).await?;
    let user = "select to_jsonb(users_cache)::text from users_cache";
    orders
        .wait_for("select count(*) from users_cache", 1)
        .await?;
    let found: Value = serde_json::from_str(orders.query_one(user, &[]).await?.get(0))?;
    let mut expected = golden.payload.clone();
    let fields = expected.as_object_mut().context("an object")?;
    fields.retain(|name, _| found.get(name).is_some());
    if golden.payload["deleted"] == true {
        (expected["email"], expected["name"]) = (Value::Null, Value::Null);
    }
    assert_eq!(found, expected, "{}", golden.file);
    Ok(())
}

/// Applies an order event in user-service to empty tables, and checks the result.
async fn replay_order(system: &System, users: &Sql, golden: &Golden) -> Result<()> {
    let nothing = "delete from user_orders; delete from user_order_summaries";
    users.batch_execute(nothing).await?;
    let (order_id, user_id) = (golden.field("order_id")?, golden.field("user_id")?);
    let topic = &system.stack.names().orders_topic;
    golden.write(topic, order_id, &golden.text).await?;
    let is_cancelled = golden.field("state")? == "cancelled";
    let (amount, currency) = (golden.field("amount")?, golden.field("currency")?);
    let (version, time) = (golden.version()?, golden.field("update_time")?);
    let order = format!(
        "select count(*) from user_orders
         where order_id = '{order_id}' and user_id = '{user_id}' and amount = {amount}
           and currency = '{currency}' and cancelled = {is_cancelled} and version = {version}
           and update_time = '{time}'"
    );
    users
        .wait_for("select count(*) from user_orders", 1)
        .await?;
    assert_eq!(users.count(&order).await?, 1, "{}", golden.file);
    let summary = format!(
        "select count(*) from user_order_summaries
         where user_id = '{user_id}' and currency = '{currency}' and order_count = 1
           and cancelled_count = {} and total = {}",
        i32::from(is_cancelled),
        if is_cancelled { "0" } else { amount },
    );
    assert_eq!(users.count(&summary).await?, 1, "{}", golden.file);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_released_payload_is_applied_by_every_consumer_of_its_topic() -> Result<()> {
    let system = System::start_on_shared_servers("golden").await?;
    let names = system.stack.names();
    let users = Sql::connect(&names.users_database_url).await?;
    let orders = Sql::connect(&names.orders_database_url).await?;
    let all = Golden::all()?;
    for golden in all.values() {
        match &*golden.event_type {
            of if USER_TYPES.contains(&of) => replay_user(&system, &orders, golden).await?,
            of if ORDER_TYPES.contains(&of) => replay_order(&system, &users, golden).await?,
            _ => anyhow::bail!(
                "{}: no consumer is known for its type; add one here",
                golden.file
            ),
        }
    }
    // Each type has at least one released payload.
    for event_type in USER_TYPES.iter().chain(&ORDER_TYPES) {
        let is_of_type = |golden: &Golden| golden.event_type == *event_type;
        assert!(
            all.values().any(is_of_type),
            "no golden file of {event_type}"
        );
    }
    let dead_letters = "select count(*) from dead_letters";
    assert_eq!(
        users.count(dead_letters).await? + orders.count(dead_letters).await?,
        0
    );
    system.stop().await;
    Ok(())
}
