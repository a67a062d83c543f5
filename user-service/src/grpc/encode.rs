//! Encodes domain types as response messages.

use proto::{
    Aggregate, ConsistencyToken,
    money::v1::Money,
    user::v1::{
        CreateUserResponse, DeleteUserResponse, GetUserOrderSummaryResponse, UpdateUserResponse,
        User as ProtoUser,
    },
};
use service_kit::format_etag;

use crate::{
    domain::{OrderSummary, User},
    error::Error,
};

pub(super) fn created(user: &User) -> CreateUserResponse {
    CreateUserResponse {
        user: Some(self::user(user)),
        consistency_token: token(user),
    }
}

pub(super) fn updated(user: &User) -> UpdateUserResponse {
    UpdateUserResponse {
        user: Some(self::user(user)),
        consistency_token: token(user),
    }
}

/// Encodes DeleteUser. Without a user the response is empty: `allow_missing` was set.
pub(super) fn deleted(user: &Option<User>) -> DeleteUserResponse {
    DeleteUserResponse {
        user: user.as_ref().map(self::user),
        consistency_token: user.as_ref().map(token).unwrap_or_default(),
    }
}

pub(super) fn user(user: &User) -> ProtoUser {
    ProtoUser {
        user_id: user.user_id.to_string(),
        email: user.email.clone(),
        name: user.name.clone(),
        etag: format_etag(user.version),
        version: user.version,
        create_time: Some(proto::timestamp(user.create_time)),
        update_time: Some(proto::timestamp(user.update_time)),
        delete_time: user.delete_time.map(proto::timestamp),
    }
}

fn token(user: &User) -> String {
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: user.user_id,
        version: user.version,
    };
    token.encode()
}

pub(super) fn summaries(summaries: &[OrderSummary]) -> Result<GetUserOrderSummaryResponse, Error> {
    let mut response = GetUserOrderSummaryResponse::default();
    for summary in summaries {
        response.order_count += summary.order_count;
        response.cancelled_count += summary.cancelled_count;
        if summary.order_count > summary.cancelled_count {
            response.totals.push(encode_total(summary)?);
        }
    }
    response.as_of_time = summaries
        .iter()
        .map(|s| s.as_of_time)
        .max()
        .map(proto::timestamp);
    Ok(response)
}

/// Converts a decimal number of up to nine decimal places to units and nanos.
///
/// Units overflow at the earliest with a user's 9,224th order of the largest amount, in a currency
/// without minor units. The call then fails instead of returning a wrong total.
fn encode_total(summary: &OrderSummary) -> Result<Money, Error> {
    let (units, decimals) = summary
        .total
        .split_once('.')
        .unwrap_or((&summary.total, ""));
    let parsed = units
        .parse()
        .ok()
        .zip(format!("{decimals:0<9}").parse().ok());
    let (units, nanos) = parsed.ok_or_else(|| Error::TotalOutOfRange(summary.currency.clone()))?;
    Ok(Money {
        currency_code: summary.currency.clone(),
        units,
        nanos,
    })
}
