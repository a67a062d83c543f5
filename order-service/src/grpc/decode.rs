//! Requests, read into the domain. Whatever is wrong with one is told at once.

use prost::Message as _;
use proto::{
    ConsistencyToken,
    money::v1::Money,
    order::v1::{CancelOrderRequest, CreateOrderRequest, WatchOrdersRequest},
};
use service_kit::{
    CONSISTENCY_TOKEN, CallError, TokenKey, Violations, idempotency::RequestKey, token_in_metadata,
};
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use super::encode::resume_purpose;
use crate::{
    domain::{Amount, Cancellation, NewOrder},
    error::Error,
    store::Position,
};

pub(super) fn id(field: &str, text: &str) -> Result<Uuid, Error> {
    let mut violations = Violations::default();
    let id = violations.id(field, text);
    id.ok_or_else(|| CallError::Invalid(violations).into())
}

/// The request's own token counts before that of the metadata, which an interceptor adds to whatever
/// passes by.
pub(super) fn create(
    request: &CreateOrderRequest,
    metadata: &MetadataMap,
) -> Result<(NewOrder, Option<ConsistencyToken>, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let user_id = violations.id("user_id", &request.user_id);
    let amount = amount(request.amount.as_ref(), &mut violations);
    let token = match (
        request.consistency_token.as_str(),
        token_in_metadata(metadata),
    ) {
        ("", "") => Some(None),
        ("", text) => token(CONSISTENCY_TOKEN, text, &mut violations),
        (text, _) => token("consistency_token", text, &mut violations),
    };
    // What is ordered, and not how it was asked for: a caller that got no answer may well repeat with
    // a token.
    let body = CreateOrderRequest {
        user_id: user_id.map(|id| id.to_string()).unwrap_or_default(),
        amount: request.amount.clone(),
        ..CreateOrderRequest::default()
    };
    let key = violations.check(
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

fn token(field: &str, text: &str, violations: &mut Violations) -> Option<Option<ConsistencyToken>> {
    let token = ConsistencyToken::decode(text);
    let token = token.map_err(|_| "must be a token of this system, or empty");
    violations.check(field, token).map(Some)
}

fn amount(money: Option<&Money>, violations: &mut Violations) -> Option<Amount> {
    let Some(money) = money else {
        violations.add("amount", "must be given");
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

pub(super) fn cancel(
    request: &CancelOrderRequest,
) -> Result<(Cancellation, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let order_id = violations.id("order_id", &request.order_id);
    // An id may be spelled in several ways, and be the same.
    let body = CancelOrderRequest {
        order_id: order_id.map(|id| id.to_string()).unwrap_or_default(),
        etag: request.etag.clone(),
        request_id: String::new(),
    };
    let key = violations.check(
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

pub(super) fn watch(
    request: &WatchOrdersRequest,
    key: &TokenKey,
) -> Result<(Uuid, Position), Error> {
    let user_id = id("user_id", &request.user_id)?;
    let position = match request.resume_token.as_str() {
        "" => Position::beginning(),
        token => {
            let text = key.open(&resume_purpose(user_id), token);
            let text = text.and_then(|text| String::from_utf8(text).ok());
            let position = text.as_deref().and_then(Position::from_text);
            position.ok_or(Error::BadResumeToken)?
        }
    };
    Ok((user_id, position))
}
