//! Decodes requests into domain types. Reports all invalid fields at once.

use prost::Message as _;
use proto::{
    ConsistencyToken,
    money::v1::Money,
    order::v1::{CancelOrderRequest, CreateOrderRequest, ListOrdersRequest, WatchOrdersRequest},
};
use service_kit::{
    CONSISTENCY_TOKEN, CallError, PageSize, TokenKey, Violations, consistency_token,
    idempotency::RequestKey,
};
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use super::encode::resume_purpose;
use crate::{
    domain::{Amount, Cancellation, NewOrder},
    error::Error,
    store::Position,
};

pub(super) fn parse_id(field: &str, text: &str) -> Result<Uuid, Error> {
    let mut violations = Violations::default();
    let id = violations.parse_uuid(field, text);
    id.ok_or_else(|| CallError::Invalid(violations).into())
}

/// Decodes CreateOrder. A token in the request takes precedence over one in the metadata, which an
/// interceptor adds to every call.
pub(super) fn create_request(
    request: &CreateOrderRequest,
    metadata: &MetadataMap,
) -> Result<(NewOrder, Option<ConsistencyToken>, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let user_id = violations.parse_uuid("user_id", &request.user_id);
    let amount = decode_amount(request.amount.as_ref(), &mut violations);
    let token = match (
        request.consistency_token.as_str(),
        consistency_token(metadata),
    ) {
        ("", "") => Some(None),
        ("", text) => decode_token(CONSISTENCY_TOKEN, text, &mut violations),
        (text, _) => decode_token("consistency_token", text, &mut violations),
    };
    // Without the token: a retry may pass a token that the first attempt did not have.
    let body = CreateOrderRequest {
        user_id: user_id.map(|id| id.to_string()).unwrap_or_default(),
        amount: request.amount.clone(),
        ..CreateOrderRequest::default()
    };
    let key = violations.collect(
        "request_id",
        RequestKey::parse("CreateOrder", &request.request_id, &body.encode_to_vec()),
    );
    match (user_id, amount, token, key) {
        (Some(user_id), Some(amount), Some(token), Some(key)) => {
            Ok((NewOrder { user_id, amount }, token, key))
        }
        _ => Err(CallError::Invalid(violations).into()),
    }
}

fn decode_token(
    field: &str,
    text: &str,
    violations: &mut Violations,
) -> Option<Option<ConsistencyToken>> {
    let token = ConsistencyToken::decode(text);
    let token = token.map_err(|_| "must be a consistency token from a response, or empty");
    violations.collect(field, token).map(Some)
}

fn decode_amount(money: Option<&Money>, violations: &mut Violations) -> Option<Amount> {
    let Some(money) = money else {
        violations.add("amount", "is required");
        return None;
    };
    match Amount::from_units(&money.currency_code, money.units, money.nanos) {
        Ok(amount) => Some(amount),
        Err(bad) => {
            if let Some(reason) = bad.currency_code {
                violations.add("amount.currency_code", reason);
            }
            if let Some(reason) = bad.units {
                violations.add("amount.units", reason);
            }
            if let Some(reason) = bad.nanos {
                violations.add("amount.nanos", reason);
            }
            None
        }
    }
}

/// Decodes ListOrders; the user is `None` for the orders of all users.
pub(super) fn list_request(request: &ListOrdersRequest) -> Result<(Option<Uuid>, PageSize), Error> {
    let mut violations = Violations::default();
    let user_id = match request.user_id.as_str() {
        "" => Some(None),
        text => violations.parse_uuid("user_id", text).map(Some),
    };
    let page_size = violations.collect("page_size", PageSize::parse(request.page_size));
    match (user_id, page_size) {
        (Some(user_id), Some(page_size)) => Ok((user_id, page_size)),
        _ => Err(CallError::Invalid(violations).into()),
    }
}

pub(super) fn cancel_request(
    request: &CancelOrderRequest,
) -> Result<(Cancellation, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let order_id = violations.parse_uuid("order_id", &request.order_id);
    // Normalize the id, because a UUID has several spellings.
    let body = CancelOrderRequest {
        order_id: order_id.map(|id| id.to_string()).unwrap_or_default(),
        etag: request.etag.clone(),
        request_id: String::new(),
    };
    let key = violations.collect(
        "request_id",
        RequestKey::parse("CancelOrder", &request.request_id, &body.encode_to_vec()),
    );
    match (order_id, key) {
        (Some(order_id), Some(key)) => {
            let etag = request.etag.clone();
            Ok((Cancellation { order_id, etag }, key))
        }
        _ => Err(CallError::Invalid(violations).into()),
    }
}

pub(super) fn watch_request(
    request: &WatchOrdersRequest,
    key: &TokenKey,
) -> Result<(Uuid, Position), Error> {
    let user_id = parse_id("user_id", &request.user_id)?;
    let position = match request.resume_token.as_str() {
        "" => Position::beginning(),
        token => {
            let text = key.verify(&resume_purpose(user_id), token);
            let text = text.and_then(|text| String::from_utf8(text).ok());
            let position = text.as_deref().and_then(Position::parse);
            position.ok_or(Error::InvalidResumeToken)?
        }
    };
    Ok((user_id, position))
}
