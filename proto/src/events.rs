//! The events: topics, types and payloads. A payload is the aggregate's full state, so that a compacted topic is a
//! complete copy. Within `v1` a field is added, never removed or retyped; readers ignore what they don't know.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The topic of [`User`] events, keyed by `user_id`, compacted.
pub const USERS_TOPIC: &str = "users.v1";
/// The topic of [`Order`] events, keyed by `order_id`, compacted.
pub const ORDERS_TOPIC: &str = "orders.v1";

/// The type of the event that a new user causes; its payload is a [`User`].
pub const USER_CREATED: &str = "user_created";
/// The type of the event that a changed user causes; its payload is a [`User`].
pub const USER_UPDATED: &str = "user_updated";
/// The type of the event that a deleted user causes; its payload is a [`User`] without e-mail and name. A tombstone
/// follows it, so that compaction forgets the user.
pub const USER_DELETED: &str = "user_deleted";

/// The type of the event that a new order causes; its payload is an [`Order`].
pub const ORDER_CREATED: &str = "order_created";
/// The type of the event that a cancelled order causes; its payload is an [`Order`].
pub const ORDER_CANCELLED: &str = "order_cancelled";

/// Every type of [`USERS_TOPIC`]. Readers pass over others: a later version may have them.
pub const USER_TYPES: [&str; 3] = [USER_CREATED, USER_UPDATED, USER_DELETED];
/// Every type of [`ORDERS_TOPIC`].
pub const ORDER_TYPES: [&str; 2] = [ORDER_CREATED, ORDER_CANCELLED];

/// The names of the headers of a record: CloudEvents 1.0 in Kafka's binary mode.
pub mod header {
    /// The version of CloudEvents, 1.0.
    pub const SPEC_VERSION: &str = "ce_specversion";
    /// What happened, as [`super::USER_CREATED`].
    pub const TYPE: &str = "ce_type";
    /// The UUID of the event, the same in every copy of it: the key to deduplicate by.
    pub const ID: &str = "ce_id";
    /// When the event was written.
    pub const TIME: &str = "ce_time";
    /// The aggregate's version after the event, a decimal number.
    pub const AGGREGATE_VERSION: &str = "ce_aggregateversion";
    /// The `ce_id` of the event that caused this one, where one did.
    pub const CAUSATION_ID: &str = "ce_causationid";
    /// How many events led to this one, a decimal number; there only with a [`CAUSATION_ID`].
    pub const CAUSATION_DEPTH: &str = "ce_causationdepth";
}

/// A user as it was right after an event: the payload of every event in [`USERS_TOPIC`].
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct User {
    /// The key of the record, too.
    pub user_id: Uuid,
    /// As the user wrote it; empty once the user is deleted.
    pub email: String,
    /// The user's name; empty once the user is deleted.
    pub name: String,
    /// 1 for a new user, one more with every change.
    pub version: i64,
    /// Whether the user is gone; a deleted user stays as a record, so that no stale one can bring it back.
    pub deleted: bool,
    /// When the user was created.
    pub create_time: DateTime<Utc>,
    /// When this version was written.
    pub update_time: DateTime<Utc>,
}

/// An order as it was right after an event: the payload of every event in [`ORDERS_TOPIC`].
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Order {
    /// The key of the record, too.
    pub order_id: Uuid,
    /// Who ordered.
    pub user_id: Uuid,
    /// A decimal number with the currency's digits, as "19.90": a JSON number would become a float in many languages.
    /// At most 10^15 of the currency's smallest units.
    pub amount: String,
    /// The ISO 4217 code.
    pub currency: String,
    /// What has become of the order.
    pub state: OrderState,
    /// Why it was cancelled; there only if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_reason: Option<CancelReason>,
    /// 1 for a new order, one more with every change.
    pub version: i64,
    /// When the order was placed.
    pub create_time: DateTime<Utc>,
    /// When this version was written.
    pub update_time: DateTime<Utc>,
}

/// What has become of an order.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Placed.
    Created,
    /// Called off, for good.
    Cancelled,
}

/// Why an order was cancelled.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// A caller asked for it.
    Requested,
    /// The user was deleted.
    UserDeleted,
}
