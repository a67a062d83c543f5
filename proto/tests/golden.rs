//! The released payloads, byte for byte. A golden file is never edited: a new field gets a new file, and the old files
//! must still parse.

use anyhow::Result;
use proto::events::{CancelReason, Order, OrderState, User};

const USER_CREATED: &str = include_str!("golden/user_created.v1.json");
const USER_UPDATED: &str = include_str!("golden/user_updated.v1.json");
const USER_DELETED: &str = include_str!("golden/user_deleted.v1.json");
const ORDER_CREATED: &str = include_str!("golden/order_created.v1.json");
const ORDER_CANCELLED: &str = include_str!("golden/order_cancelled.v1.json");

fn user() -> Result<User> {
    Ok(User {
        user_id: "0199d0a0-0000-7000-8000-000000000001".parse()?,
        email: "ada@example.com".into(),
        name: "Ada Lovelace".into(),
        version: 1,
        deleted: false,
        create_time: "2026-01-02T03:04:05.678901Z".parse()?,
        update_time: "2026-01-02T03:04:05.678901Z".parse()?,
    })
}

fn order() -> Result<Order> {
    Ok(Order {
        order_id: "0199d0a0-0000-7000-8000-000000000002".parse()?,
        user_id: "0199d0a0-0000-7000-8000-000000000001".parse()?,
        amount: "19.90".into(),
        currency: "EUR".into(),
        state: OrderState::Created,
        cancel_reason: None,
        version: 1,
        create_time: "2026-01-02T03:04:06.123456Z".parse()?,
        update_time: "2026-01-02T03:04:06.123456Z".parse()?,
    })
}

#[test]
fn user_created_is_written_and_read_as_released() -> Result<()> {
    let written = serde_json::to_string(&user()?)?;
    assert_eq!(written, USER_CREATED.trim_end());
    assert_eq!(serde_json::from_str::<User>(USER_CREATED)?, user()?);
    Ok(())
}

#[test]
fn order_created_is_written_and_read_as_released() -> Result<()> {
    let written = serde_json::to_string(&order()?)?;
    assert_eq!(written, ORDER_CREATED.trim_end());
    assert_eq!(serde_json::from_str::<Order>(ORDER_CREATED)?, order()?);
    Ok(())
}

#[test]
fn user_updated_is_written_and_read_as_released() -> Result<()> {
    let updated = User {
        name: "Ada King".into(),
        version: 2,
        update_time: "2026-01-02T03:04:06.5Z".parse()?,
        ..user()?
    };
    assert_eq!(serde_json::to_string(&updated)?, USER_UPDATED.trim_end());
    assert_eq!(serde_json::from_str::<User>(USER_UPDATED)?, updated);
    Ok(())
}

#[test]
fn user_deleted_is_written_and_read_as_released() -> Result<()> {
    let deleted = User {
        email: String::new(),
        name: String::new(),
        version: 2,
        deleted: true,
        update_time: "2026-01-02T03:04:07.5Z".parse()?,
        ..user()?
    };
    assert_eq!(serde_json::to_string(&deleted)?, USER_DELETED.trim_end());
    assert_eq!(serde_json::from_str::<User>(USER_DELETED)?, deleted);
    Ok(())
}

#[test]
fn order_cancelled_is_written_and_read_as_released() -> Result<()> {
    let cancelled = Order {
        state: OrderState::Cancelled,
        cancel_reason: Some(CancelReason::UserDeleted),
        version: 2,
        update_time: "2026-01-02T03:04:07.5Z".parse()?,
        ..order()?
    };
    let written = serde_json::to_string(&cancelled)?;
    assert_eq!(written, ORDER_CANCELLED.trim_end());
    assert_eq!(serde_json::from_str::<Order>(ORDER_CANCELLED)?, cancelled);
    Ok(())
}

#[test]
fn a_field_of_a_later_release_is_ignored() -> Result<()> {
    let newer = USER_CREATED.replacen('{', r#"{"nickname":"Countess","#, 1);
    assert_eq!(serde_json::from_str::<User>(&newer)?, user()?);
    Ok(())
}

#[test]
fn a_payload_without_its_version_is_rejected() {
    let broken = ORDER_CREATED.replace(r#""version":1,"#, "");
    assert!(serde_json::from_str::<Order>(&broken).is_err());
}
