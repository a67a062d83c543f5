//! What an order is. These types can't hold a bad value: whoever has one need not check it again.

mod amount;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use self::amount::{Amount, BadAmount};

/// An order to be placed.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// Who orders.
    pub user_id: Uuid,
    /// For how much.
    pub amount: Amount,
}

/// Which order to cancel.
#[derive(Clone, Debug)]
pub struct Cancellation {
    /// Which order.
    pub order_id: Uuid,
    /// What the caller has seen of it last; empty if that does not matter.
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

/// What has become of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Placed.
    Created,
    /// Called off, for good.
    Cancelled(CancelReason),
}

/// Why an order was called off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// A caller asked for it.
    Requested,
    /// The user was deleted.
    UserDeleted,
}

/// What this service has heard of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedUser {
    /// The newest version that has arrived.
    pub version: i64,
    /// Whether the user is gone.
    pub deleted: bool,
}

impl From<(i64, bool)> for CachedUser {
    fn from((version, deleted): (i64, bool)) -> Self {
        Self { version, deleted }
    }
}
