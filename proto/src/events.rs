//! The events: topics, types and payloads.
//!
//! A payload has the full state of the aggregate, so a compacted topic is a complete copy. Within `v1` fields are added,
//! but never removed or retyped. Consumers ignore unknown fields.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The topic of [`User`] events, keyed by `user_id`, compacted.
pub const USERS_TOPIC: &str = "users.v1";
/// The topic of [`Order`] events, keyed by `order_id`, compacted.
pub const ORDERS_TOPIC: &str = "orders.v1";

/// The event type of a created user; its payload is a [`User`].
pub const USER_CREATED: &str = "user_created";
/// The event type of an updated user; its payload is a [`User`].
pub const USER_UPDATED: &str = "user_updated";
/// The event type of a deleted user; its payload is a [`User`] without email and name. A tombstone follows it, so that
/// compaction removes the user.
pub const USER_DELETED: &str = "user_deleted";

/// The event type of a created order; its payload is an [`Order`].
pub const ORDER_CREATED: &str = "order_created";
/// The event type of a cancelled order; its payload is an [`Order`].
pub const ORDER_CANCELLED: &str = "order_cancelled";

/// All event types of [`USERS_TOPIC`]. Consumers skip unknown types, which a later version may add.
pub const USER_TYPES: [&str; 3] = [USER_CREATED, USER_UPDATED, USER_DELETED];
/// All event types of [`ORDERS_TOPIC`].
pub const ORDER_TYPES: [&str; 2] = [ORDER_CREATED, ORDER_CANCELLED];

/// The names of the headers of a record: CloudEvents 1.0 in Kafka's binary content mode.
pub mod header {
    /// The version of CloudEvents, 1.0.
    pub const SPEC_VERSION: &str = "ce_specversion";
    /// The event type, such as [`super::USER_CREATED`].
    pub const TYPE: &str = "ce_type";
    /// The UUID of the event, the same in every copy. Use it for deduplication.
    pub const ID: &str = "ce_id";
    /// The time when the event was written.
    pub const TIME: &str = "ce_time";
    /// The version of the aggregate after the event, a decimal number.
    pub const AGGREGATE_VERSION: &str = "ce_aggregateversion";
    /// The `ce_id` of the event that caused this one. Absent if no event did.
    pub const CAUSATION_ID: &str = "ce_causationid";
    /// The length of the chain of causing events, a decimal number. Present only with a [`CAUSATION_ID`].
    pub const CAUSATION_DEPTH: &str = "ce_causationdepth";
}

/// The state of a user after an event: the payload of every event in [`USERS_TOPIC`].
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct User {
    /// The id of the user, also the key of the record.
    pub user_id: Uuid,
    /// The email address with its case preserved; empty if the user is deleted.
    pub email: String,
    /// The name; empty if the user is deleted.
    pub name: String,
    /// 1 for a new user, incremented by every change.
    pub version: i64,
    /// True for a deleted user. Consumers keep a deleted user, so that an outdated record cannot restore it.
    pub deleted: bool,
    /// The time when the user was created.
    pub create_time: DateTime<Utc>,
    /// The time when this version was written.
    pub update_time: DateTime<Utc>,
}

/// The state of an order after an event: the payload of every event in [`ORDERS_TOPIC`].
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Order {
    /// The id of the order, also the key of the record.
    pub order_id: Uuid,
    /// The id of the user.
    pub user_id: Uuid,
    /// A decimal number with the digits of the currency, such as "19.90". A string, because many languages parse a JSON
    /// number as a float. At most 10^15 of the currency's smallest units.
    pub amount: String,
    /// The ISO 4217 code of the currency.
    pub currency: String,
    /// The state of the order.
    pub state: OrderState,
    /// The reason why the order was cancelled. Present only if it is cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_reason: Option<CancelReason>,
    /// 1 for a new order, incremented by every change.
    pub version: i64,
    /// The time when the order was created.
    pub create_time: DateTime<Utc>,
    /// The time when this version was written.
    pub update_time: DateTime<Utc>,
}

/// The state of an order.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Created.
    Created,
    /// Cancelled permanently.
    Cancelled,
}

/// The reason why an order was cancelled.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// A caller cancelled it.
    Requested,
    /// The user was deleted.
    UserDeleted,
}
