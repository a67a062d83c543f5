//! Poison records of orders: each kind is dead-lettered unchanged, and the next order is counted.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::{Addresses, NewRecord};
use proto::events::{ORDER_CREATED, Order, header};
use testkit::{Header, PoisonRecord, median};
use uuid::Uuid;

use crate::{harness::TestService, summaries::order};

const SPEC: Header = (header::SPEC_VERSION, "1.0");
const CREATED: Header = (header::TYPE, ORDER_CREATED);

/// The maximum number of records in a batch.
const MANY: usize = 1_000;
/// The amount that the constraint of these tests rejects.
const REJECTED_AMOUNT: &str = "13.00";

fn kinds() -> Result<Vec<PoisonRecord>> {
    let good = new_order("19.90")?;
    let key = || Some(good.order_id.to_string().into_bytes());
    let payload = || serde_json::to_vec(&good);
    let of_amount = |amount: &str| {
        let amount = amount.to_owned();
        serde_json::to_vec(&Order {
            amount,
            ..good.clone()
        })
    };
    let kind = PoisonRecord::new;
    let usual = [SPEC, CREATED];
    let random: Vec<u8> = (0..99_u8).map(|n| n.wrapping_mul(151) ^ 0xa5).collect();
    let in_no_state = String::from_utf8(payload()?)?.replace("created\"", "lost\"");
    Ok(vec![
        kind("random bytes", Some("payload"), key(), Some(random), &usual),
        kind("no headers", Some("header"), key(), Some(payload()?), &[]),
        kind("no type", Some("header"), key(), Some(payload()?), &[SPEC]),
        kind(
            "another major version",
            Some("version"),
            key(),
            Some(payload()?),
            &[(header::SPEC_VERSION, "2.0"), CREATED],
        ),
        kind("no key", Some("key"), None, Some(payload()?), &usual),
        kind(
            "a key that is not text",
            Some("key"),
            Some(b"\xff\x00".to_vec()),
            Some(payload()?),
            &usual,
        ),
        kind(
            "the key of another order",
            Some("key"),
            Some(Uuid::now_v7().to_string().into_bytes()),
            Some(payload()?),
            &usual,
        ),
        kind(
            "an unknown state",
            Some("payload"),
            key(),
            Some(in_no_state.into_bytes()),
            &usual,
        ),
        kind(
            "an invalid amount",
            Some("payload"),
            key(),
            Some(of_amount("NaN")?),
            &usual,
        ),
        kind(
            "a value that its column can't hold",
            Some("value"),
            key(),
            Some(of_amount("12345.00")?),
            &usual,
        ),
        kind(
            "a value that a constraint rejects",
            Some("constraint"),
            key(),
            Some(of_amount(REJECTED_AMOUNT)?),
            &usual,
        ),
        kind(
            "an unknown type",
            None,
            key(),
            Some(b"\xff".to_vec()),
            &[SPEC, (header::TYPE, "order_praised")],
        ),
        kind("a tombstone", None, key(), None, &usual),
        kind("a tombstone without a key", None, None, None, &usual),
        kind("a tombstone without headers", None, key(), None, &[]),
        kind(
            "a tombstone with a key that is not text",
            None,
            Some(b"\xff\x00".to_vec()),
            None,
            &[],
        ),
        kind(
            "an empty value",
            Some("payload"),
            key(),
            Some(Vec::new()),
            &usual,
        ),
    ])
}

fn new_order(amount: &str) -> Result<Order> {
    order(&Uuid::nil().to_string(), amount, "EUR")
}

/// Starts a service with a topic of one partition that accepts records without a key, and a dead letter
/// topic.
async fn start() -> Result<(TestService, String)> {
    let (name, servers) = (Addresses::unique_name("kinds"), Addresses::shared());
    let dead_letters = format!("{name}.dlq");
    servers.create_dead_letter_topic(&name).await?;
    servers.create_dead_letter_topic(&dead_letters).await?;
    let options = ["--dead-letter-topic", &dead_letters];
    let service = TestService::start_on(name, &options).await?;
    let narrow = "alter table user_orders alter column amount type numeric(6, 2);
        alter table user_orders add constraint user_orders_lucky check (amount <> 13)";
    service.sql.batch_execute(narrow).await?;
    Ok((service, dead_letters))
}

/// Writes records and then a new order; returns the time until that order is applied.
async fn time_to_apply(service: &TestService, before: &[NewRecord<'_>]) -> Result<Duration> {
    let order = new_order("19.90")?;
    let (key, payload) = (order.order_id.to_string(), serde_json::to_vec(&order)?);
    let last = NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(&payload),
        headers: &[SPEC, CREATED],
        ..NewRecord::default()
    };
    let applied = format!("select count(*) from user_orders where order_id = '{key}'");
    testkit::time_to_apply(service, before, last, &applied).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_dead_lettered_unchanged_and_the_next_order_applied() -> Result<()> {
    let (service, dead_letters) = start().await?;
    let kinds = kinds()?;
    time_to_apply(&service, &[]).await?;
    let first = service
        .sql
        .count("select sum(next_offset) from projection_offsets")
        .await?;
    let (mut behind, mut alone) = (Vec::new(), Vec::new());
    for kind in &kinds {
        alone.push(time_to_apply(&service, &[]).await?);
        behind.push(time_to_apply(&service, &[kind.record()]).await?);
    }
    println!("time until an order is applied:");
    for ((kind, behind), alone) in kinds.iter().zip(&behind).zip(&alone) {
        println!("{behind:.0?} after {}, {alone:.0?} alone", kind.what);
    }
    println!(
        "medians: {:.0?} after a poison record, {:.0?} alone",
        median(behind),
        median(alone)
    );
    let poison = || kinds.iter().filter_map(|kind| Some((kind, kind.class?)));
    let counts = "select applied, skipped, dead_lettered from projection_offsets";
    let counts = service.sql.query_one(counts, &[]).await?;
    let counts: (i64, i64, i64) = (counts.get(0), counts.get(1), counts.get(2));
    let (all, dead_lettered) = (kinds.len() as i64, poison().count() as i64);
    assert_eq!(
        counts,
        (first + 2 * all, all - dead_lettered, dead_lettered)
    );

    let copied = "select count(*) from dead_letters where in_topic";
    service.sql.wait_for(copied, dead_lettered).await?;
    let copies = Addresses::shared().read_topic(&dead_letters).await?;
    assert_eq!(copies.len(), poison().count());
    for (index, kind) in kinds.iter().enumerate() {
        let offset = first + 3 * index as i64 + 1;
        let of_offset = offset.to_string();
        let copy = copies
            .iter()
            .find(|copy| copy.header("dlq_offset") == Some(&of_offset));
        if let Some(class) = kind.class {
            let copy = copy.with_context(|| format!("no copy of {}", kind.what))?;
            let checked = kind
                .assert_dead_lettered(&service.sql, class, offset, copy)
                .await;
            checked.context(kind.what)?;
        }
    }
    let rejected_by = "select count(*) from dead_letters where error = 'user_orders_lucky'";
    assert_eq!(service.sql.count(rejected_by).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_record_among_many_is_dead_lettered_alone() -> Result<()> {
    let (service, _) = start().await?;
    time_to_apply(&service, &[]).await?;
    let orders: Result<Vec<_>> = (0..MANY).map(|_| new_order("19.90")).collect();
    let mut orders = orders?;
    let alone = time_to_apply_all(&service, &orders).await?;
    orders
        .iter_mut()
        .for_each(|order| order.order_id = Uuid::now_v7());
    orders[MANY / 2].amount = REJECTED_AMOUNT.into();
    let behind = time_to_apply_all(&service, &orders).await?;
    println!(
        "time until an order is applied after {MANY} others: {alone:.0?}, with a poison record {behind:.0?}"
    );
    let applied = service
        .sql
        .count("select count(*) from user_orders")
        .await?;
    assert_eq!(applied as usize, 1 + (MANY + 1) + (MANY - 1 + 1));
    let rejected_by = "select count(*) from dead_letters where error = 'user_orders_lucky'";
    assert_eq!(service.sql.count(rejected_by).await?, 1);
    service.stop().await
}

async fn time_to_apply_all(service: &TestService, orders: &[Order]) -> Result<Duration> {
    let payloads: Result<Vec<_>> = (orders.iter())
        .map(|order| Ok((order.order_id.to_string(), serde_json::to_vec(order)?)))
        .collect();
    let payloads = payloads?;
    let records = payloads.iter().map(|(key, payload)| NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(payload),
        headers: &[SPEC, CREATED],
        ..NewRecord::default()
    });
    time_to_apply(service, &records.collect::<Vec<_>>()).await
}
