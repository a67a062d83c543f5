//! Domain types. They are validated on construction and can't hold an invalid value.

mod amount;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use self::amount::{Amount, InvalidAmount};

#[derive(Clone, Debug)]
pub struct NewOrder {
    pub user_id: Uuid,
    pub amount: Amount,
}

/// A request to cancel an order.
#[derive(Clone, Debug)]
pub struct Cancellation {
    pub order_id: Uuid,
    /// The etag that the caller expects; empty to match any version.
    pub etag: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub order_id: Uuid,
    pub user_id: Uuid,
    pub amount: Amount,
    pub state: State,
    pub version: i64,
    pub create_time: DateTime<Utc>,
    pub update_time: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Open.
    Created,
    /// Cancelled; a final state.
    Cancelled(CancelReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// A caller cancelled the order.
    Requested,
    UserDeleted,
}

/// A user as in `users_cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedUser {
    /// The latest version that was applied.
    pub version: i64,
    pub deleted: bool,
}

impl From<(i64, bool)> for CachedUser {
    fn from((version, deleted): (i64, bool)) -> Self {
        Self { version, deleted }
    }
}
