//! Producers and consumers of several releases on the same topics.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use demo::System;
use devstack::{Addresses, Record, Sql, read_topic};
use proto::{
    events::{self, header},
    user::v1::{UpdateUserRequest, User},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::golden::Golden;

const ROUNDS: usize = 8;
/// Users per round: from the older producer, the newer producer, and the services.
const WRITERS: usize = 3;

/// A consumer as of the release of `v1`. It must not change, and must not use current code.
mod first_release {
    use serde::Deserialize;

    pub(super) const USER_TYPES: [&str; 3] = ["user_created", "user_updated", "user_deleted"];
    pub(super) const ORDER_TYPES: [&str; 2] = ["order_created", "order_cancelled"];

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    pub(super) struct User {
        pub(super) user_id: uuid::Uuid,
        pub(super) email: String,
        pub(super) name: String,
        pub(super) version: i64,
        pub(super) deleted: bool,
        pub(super) create_time: chrono::DateTime<chrono::Utc>,
        pub(super) update_time: chrono::DateTime<chrono::Utc>,
    }

    /// Without `cancel_reason`, which is newer.
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    pub(super) struct Order {
        pub(super) order_id: uuid::Uuid,
        pub(super) user_id: uuid::Uuid,
        pub(super) amount: String,
        pub(super) currency: String,
        pub(super) state: OrderState,
        pub(super) version: i64,
        pub(super) create_time: chrono::DateTime<chrono::Utc>,
        pub(super) update_time: chrono::DateTime<chrono::Utc>,
    }

    #[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
    #[serde(rename_all = "snake_case")]
    pub(super) enum OrderState {
        Created,
        Cancelled,
    }
}

/// The result of the first release's consumer: the latest payload of each key, and the skipped types.
struct Consumed<T> {
    states: BTreeMap<String, T>,
    skipped_types: BTreeSet<String>,
}

fn read_latest<T: serde::de::DeserializeOwned>(
    records: &[Record],
    types: &[&str],
    version: impl Fn(&T) -> i64,
) -> Result<Consumed<T>> {
    let mut consumed = Consumed {
        states: BTreeMap::<String, T>::new(),
        skipped_types: BTreeSet::new(),
    };
    for record in records {
        ensure!(record.header("ce_specversion") == Some("1.0"), "{record:?}");
        let event_type = record.header("ce_type").context("a type")?;
        let (true, Some(payload)) = (types.contains(&event_type), &record.payload) else {
            consumed.skipped_types.insert(event_type.to_owned());
            continue;
        };
        let state: T = serde_json::from_slice(payload).with_context(|| format!("{record:?}"))?;
        ensure!(version(&state) == record.version(), "{record:?}");
        let known = consumed.states.get(&record.key);
        if known.is_none_or(|known| version(known) < version(&state)) {
            consumed.states.insert(record.key.clone(), state);
        }
    }
    Ok(consumed)
}

/// Writes a record of a later release, with additional fields and a header, as `v1` allows.
async fn write_newer(topic: &str, event_type: &str, key: &str, mut payload: Value) -> Result<()> {
    let version = payload["version"].to_string();
    let fields = payload.as_object_mut().context("an object")?;
    fields.insert("nickname".into(), json!("Countess"));
    fields.insert("tags".into(), json!(["a", {"b": null}]));
    let id = Uuid::now_v7().to_string();
    let headers = [
        ("ce_dataschema", "https://example.com/of-a-later-release"),
        (header::SPEC_VERSION, "1.0"),
        (header::ID, &id),
        (header::TYPE, event_type),
        (header::AGGREGATE_VERSION, &version),
    ];
    Addresses::shared()
        .write_record(
            topic,
            Some(key.as_bytes()),
            Some(&serde_json::to_vec(&payload)?),
            &headers,
        )
        .await
}

/// Writes a user and an order as the first release did; returns their ids.
async fn write_older(system: &System) -> Result<[String; 2]> {
    let names = system.stack.names();
    let all = Golden::all()?;
    let [user, order] = ["user_created.v1.json", "order_created.v1.json"].map(|file| &all[file]);
    let (user_id, order_id) = (Uuid::now_v7().to_string(), Uuid::now_v7().to_string());
    // Byte for byte, except for the ids, which have the same length.
    let text = user.text.replace(user.field("user_id")?, &user_id);
    user.write(&names.users_topic, &user_id, &text).await?;
    let text = order.text.replace(user.field("user_id")?, &user_id);
    let text = text.replace(order.field("order_id")?, &order_id);
    order.write(&names.orders_topic, &order_id, &text).await?;
    Ok([user_id, order_id])
}

/// Writes a user and an order of a later release, and an event of an unknown type.
async fn write_later(system: &System) -> Result<[String; 2]> {
    let names = system.stack.names();
    let (user_id, order_id) = (Uuid::now_v7(), Uuid::now_v7());
    let time = "2026-01-02T03:04:05.678901Z".parse()?;
    let user = events::User {
        user_id,
        email: "later@example.com".into(),
        name: "Later".into(),
        version: 1,
        deleted: false,
        create_time: time,
        update_time: time,
    };
    let order = events::Order {
        order_id,
        user_id,
        amount: "5.00".into(),
        currency: "EUR".into(),
        state: events::OrderState::Created,
        cancel_reason: None,
        version: 1,
        create_time: time,
        update_time: time,
    };
    let (user, order) = (serde_json::to_value(user)?, serde_json::to_value(order)?);
    let (user_id, order_id) = (user_id.to_string(), order_id.to_string());
    let (users, orders) = (&names.users_topic, &names.orders_topic);
    write_newer(users, events::USER_CREATED, &user_id, user).await?;
    write_newer(orders, events::ORDER_CREATED, &order_id, order).await?;
    let unlike = json!({"version": 2, "user_id": 7, "amount": {"units": 5}});
    write_newer(users, "user_promoted", &user_id, unlike.clone()).await?;
    write_newer(orders, "order_shipped", &order_id, unlike).await?;
    Ok([user_id, order_id])
}

/// Creates and updates a user with an order through the services, and deletes every second user.
async fn call_services(system: &System, round: usize) -> Result<[String; 2]> {
    let email = format!("today{round}@example.com");
    let created = system.create_user(&email, "Today").await?;
    let user_id = created.user.context("a user")?.user_id;
    let token = &created.consistency_token;
    let order = system.create_order(&user_id, token).await?;
    let user = User {
        user_id: user_id.clone(),
        name: "Tomorrow".into(),
        ..User::default()
    };
    let update = UpdateUserRequest {
        user: Some(user),
        ..UpdateUserRequest::default()
    };
    system.users().update_user(update).await?;
    if round % 2 == 1 {
        system.delete_user(&user_id).await?;
    }
    Ok([user_id, order.order.context("an order")?.order_id])
}

/// Checks that a projection has the same latest versions as the consumer of the first release.
async fn assert_agreed(
    sql: &Sql,
    query: &str,
    consumed: impl Iterator<Item = (String, i64, bool)>,
) -> Result<()> {
    let rows = sql.query(query, &[]).await?;
    let followed: BTreeSet<(String, i64, bool)> = (rows.iter())
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(followed, consumed.collect());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn different_releases_on_the_same_topics_are_compatible() -> Result<()> {
    let system = System::start_on_shared_servers("evolution").await?;
    let names = system.stack.names();
    let users = Sql::connect(&names.users_database_url).await?;
    let orders = Sql::connect(&names.orders_database_url).await?;
    let mut foreign = Vec::new();
    for round in 0..ROUNDS {
        foreign.push(write_older(&system).await?[0].clone());
        call_services(&system, round).await?;
        foreign.push(write_later(&system).await?[0].clone());
    }

    // Current consumers apply known types, skip unknown ones, and dead-letter nothing.
    let all = (WRITERS * ROUNDS) as i64;
    let known = "select count(*) from users_cache";
    orders.wait_for(known, all).await?;
    let gone = "select count(*) from users_cache where deleted";
    orders.wait_for(gone, ROUNDS as i64 / 2).await?;
    let followed = "select count(*) from user_orders";
    users.wait_for(followed, all).await?;
    let cancelled = "select count(*) from user_orders where cancelled";
    users.wait_for(cancelled, ROUNDS as i64 / 2).await?;
    for sql in [&users, &orders] {
        let skipped = "select sum(skipped) from projection_offsets";
        sql.wait_for(skipped, ROUNDS as i64).await?;
        assert_eq!(sql.count("select count(*) from dead_letters").await?, 0);
    }
    // Users from other releases can order.
    for user_id in &foreign {
        system.create_order(user_id, "").await?;
    }
    users.wait_for(followed, all + foreign.len() as i64).await?;

    // The consumer of the first release has the same state.
    let records = read_topic(&names.brokers, &names.users_topic).await?;
    let types = &first_release::USER_TYPES;
    let consumed = read_latest(&records, types, |user: &first_release::User| user.version)?;
    assert!(consumed.skipped_types.contains("user_promoted"));
    let consumed = consumed.states.into_iter();
    let states = consumed.map(|(key, user)| {
        assert_eq!(key, user.user_id.to_string());
        (
            format!("{key} {} {}", user.email, user.name),
            user.version,
            user.deleted,
        )
    });
    let query = "select concat(user_id, ' ', email, ' ', name), version, deleted from users_cache";
    assert_agreed(&orders, query, states).await?;
    let records = read_topic(&names.brokers, &names.orders_topic).await?;
    let types = &first_release::ORDER_TYPES;
    let consumed = read_latest(&records, types, |order: &first_release::Order| {
        order.version
    })?;
    assert_eq!(
        consumed.skipped_types,
        BTreeSet::from(["order_shipped".to_owned()])
    );
    let states = consumed.states.into_iter().map(|(key, order)| {
        assert_eq!(key, order.order_id.to_string());
        let text = format!(
            "{key} {} {} {}",
            order.user_id, order.amount, order.currency
        );
        let is_cancelled = order.state == first_release::OrderState::Cancelled;
        (text, order.version, is_cancelled)
    });
    let query = "select concat(order_id, ' ', user_id, ' ', amount::numeric(38, 2), ' ', currency),
            version, cancelled
        from user_orders";
    assert_agreed(&users, query, states).await?;
    system.stop().await;
    Ok(())
}
