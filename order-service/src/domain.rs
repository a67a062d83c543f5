//! Domain types. They are validated on construction and can't hold an invalid value.

mod amount;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use self::amount::{Amount, InvalidAmount};

/// An order to create.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// The user who orders.
    pub user_id: Uuid,
    /// The amount of the order.
    pub amount: Amount,
}

/// A request to cancel an order.
#[derive(Clone, Debug)]
pub struct Cancellation {
    /// The order to cancel.
    pub order_id: Uuid,
    /// The etag that the caller expects; empty to match any version.
    pub etag: String,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Order {
    pub order_id: Uuid,
    pub user_id: Uuid,
    pub amount: Amount,
    pub state: State,
    pub version: i64,
    pub create_time: DateTime<Utc>,
    pub update_time: DateTime<Utc>,
}

/// The state of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Open.
    Created,
    /// Cancelled; a final state.
    Cancelled(CancelReason),
}

/// The reason of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// A caller cancelled the order.
    Requested,
    /// The user was deleted.
    UserDeleted,
}

/// A user as in `users_cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedUser {
    /// The latest version that was applied.
    pub version: i64,
    /// True if the user was deleted.
    pub deleted: bool,
}

impl From<(i64, bool)> for CachedUser {
    fn from((version, deleted): (i64, bool)) -> Self {
        Self { version, deleted }
    }
}
