//! Answers, as messages.

use proto::{
    Aggregate, ConsistencyToken,
    money::v1::Money,
    user::v1::{
        CreateUserResponse, DeleteUserResponse, GetUserOrderSummaryResponse, UpdateUserResponse,
        User as ProtoUser,
    },
};
use service_kit::etag;

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

/// None where there was no such user, and that was as well.
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
        etag: etag(user.version),
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
            response.totals.push(total(summary)?);
        }
    }
    response.as_of_time = summaries
        .iter()
        .map(|s| s.as_of_time)
        .max()
        .map(proto::timestamp);
    Ok(response)
}

/// A decimal number of up to nine places, as the database writes it, as units and billionths.
///
/// The units overflow with the 9,224th order of a user over the largest amount there is, in a
/// currency without smaller units, and not before. No wrong number is told then.
fn total(summary: &OrderSummary) -> Result<Money, Error> {
    let (units, places) = summary
        .total
        .split_once('.')
        .unwrap_or((&summary.total, ""));
    let parsed = units.parse().ok().zip(format!("{places:0<9}").parse().ok());
    let (units, nanos) = parsed.ok_or_else(|| Error::TotalOutOfRange(summary.currency.clone()))?;
    Ok(Money {
        currency_code: summary.currency.clone(),
        units,
        nanos,
    })
}
