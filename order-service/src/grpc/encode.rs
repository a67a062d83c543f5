//! Encodes domain types as response messages.

use proto::{
    Aggregate, ConsistencyToken,
    money::v1::Money,
    order::v1::{
        CancelOrderResponse, CancelReason as ProtoCancelReason, CreateOrderResponse,
        Order as ProtoOrder, OrderState, WatchOrdersResponse,
    },
};
use service_kit::{TokenKey, format_etag};
use uuid::Uuid;

use crate::{
    domain::{CancelReason, Order, State},
    watch::Change,
};

pub(super) fn created(order: &Order) -> CreateOrderResponse {
    CreateOrderResponse {
        order: Some(self::order(order)),
        consistency_token: token(order),
    }
}

pub(super) fn cancelled(order: &Order) -> CancelOrderResponse {
    CancelOrderResponse {
        order: Some(self::order(order)),
        consistency_token: token(order),
    }
}

pub(super) fn change(
    (order, position): &Change,
    user_id: Uuid,
    key: &TokenKey,
) -> WatchOrdersResponse {
    WatchOrdersResponse {
        order: Some(self::order(order)),
        resume_token: key.sign(&resume_purpose(user_id), position.to_text().as_bytes()),
    }
}

/// Returns the signing purpose of a user's resume tokens.
pub(super) fn resume_purpose(user_id: Uuid) -> String {
    format!("watch user_id={user_id}")
}

pub(super) fn order(order: &Order) -> ProtoOrder {
    let (units, nanos) = order.amount.to_units();
    let currency_code = order.amount.currency_code().to_owned();
    let (state, cancel_reason) = match order.state {
        State::Created => (OrderState::Created, ProtoCancelReason::Unspecified),
        State::Cancelled(CancelReason::Requested) => {
            (OrderState::Cancelled, ProtoCancelReason::Requested)
        }
        State::Cancelled(CancelReason::UserDeleted) => {
            (OrderState::Cancelled, ProtoCancelReason::UserDeleted)
        }
    };
    ProtoOrder {
        order_id: order.order_id.to_string(),
        user_id: order.user_id.to_string(),
        amount: Some(Money {
            currency_code,
            units,
            nanos,
        }),
        state: state.into(),
        cancel_reason: cancel_reason.into(),
        etag: format_etag(order.version),
        version: order.version,
        create_time: Some(proto::timestamp(order.create_time)),
        update_time: Some(proto::timestamp(order.update_time)),
    }
}

fn token(order: &Order) -> String {
    let token = ConsistencyToken {
        aggregate: Aggregate::Order,
        id: order.order_id,
        version: order.version,
    };
    token.encode()
}
