//! The door: decode, ask the store, encode. Nothing is decided here.

use prost::Message as _;
use proto::{
    Aggregate, ConsistencyToken,
    money::v1::Money,
    user::v1::{
        CreateUserRequest, CreateUserResponse, GetUserOrderSummaryRequest,
        GetUserOrderSummaryResponse, GetUserRequest, GetUserResponse, ListUsersRequest,
        ListUsersResponse, User as ProtoUser, user_service_server::UserService,
    },
};
use service_kit::{
    CallError, PageToken, Violations, cut_page,
    idempotency::{Answer, RequestKey, WriteContext},
    page_size, to_completion, traceparent,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    domain::{Email, Name, NewUser, OrderSummary, User},
    error::Error,
    store::Store,
};

/// The implementation of `user.v1.UserService`.
pub struct Users {
    store: Store,
}

impl Users {
    /// Answers from this store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl UserService for Users {
    async fn create_user(
        &self,
        request: Request<CreateUserRequest>,
    ) -> Result<Response<CreateUserResponse>, Status> {
        let traceparent = traceparent(request.metadata());
        let (new, request) = decode_create(request.get_ref())?;
        let (store, context) = (
            self.store.clone(),
            WriteContext {
                request,
                traceparent,
            },
        );
        let writing = async move {
            let respond = |user: &User| create_response(user).encode_to_vec();
            store.create_user(new, context, respond).await
        };
        let response = match to_completion(writing).await? {
            Answer::Done(user) => create_response(&user),
            Answer::Repeated(response) => CreateUserResponse::decode(&*response)
                .map_err(|err| Error::from(CallError::bug(err)))?,
        };
        Ok(Response::new(response))
    }

    async fn get_user(
        &self,
        request: Request<GetUserRequest>,
    ) -> Result<Response<GetUserResponse>, Status> {
        let user = self
            .store
            .user(decode_user_id(&request.get_ref().user_id)?)
            .await?;
        Ok(Response::new(GetUserResponse {
            user: Some(encode(&user)),
        }))
    }

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        let ListUsersRequest {
            page_size: asked,
            page_token,
            show_deleted,
        } = request.into_inner();
        let query = format!("users show_deleted={show_deleted}");
        let after = PageToken::decode(&page_token, &query).map_err(Error::from)?;
        let size = page_size(asked);
        // One more than the page takes tells whether there is a page behind this one.
        let mut users = self
            .store
            .users(after.map(|token| token.0), size + 1, show_deleted)
            .await?;
        let next_page_token = cut_page(&mut users, size, &query, |user| user.user_id);
        let users = users.iter().map(encode).collect();
        Ok(Response::new(ListUsersResponse {
            users,
            next_page_token,
        }))
    }

    async fn get_user_order_summary(
        &self,
        request: Request<GetUserOrderSummaryRequest>,
    ) -> Result<Response<GetUserOrderSummaryResponse>, Status> {
        let user_id = decode_user_id(&request.get_ref().user_id)?;
        let summaries = self.store.order_summaries(user_id).await?;
        Ok(Response::new(encode_summaries(&summaries)?))
    }
}

fn decode_create(request: &CreateUserRequest) -> Result<(NewUser, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let email = violations.check("email", Email::parse(&request.email));
    let name = violations.check("name", Name::parse(&request.name));
    let body = CreateUserRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let key = violations.check(
        "request_id",
        RequestKey::parse("CreateUser", &request.request_id, &body.encode_to_vec()),
    );
    match (email, name, key) {
        (Some(email), Some(name), Some(key)) => Ok((NewUser { email, name }, key)),
        _ => Err(CallError::Invalid(violations).into()),
    }
}

fn decode_user_id(text: &str) -> Result<Uuid, Error> {
    let mut violations = Violations::default();
    violations
        .id("user_id", text)
        .ok_or_else(|| CallError::Invalid(violations).into())
}

fn create_response(user: &User) -> CreateUserResponse {
    let (aggregate, id, version) = (Aggregate::User, user.user_id, user.version);
    let consistency_token = ConsistencyToken {
        aggregate,
        id,
        version,
    }
    .encode();
    CreateUserResponse {
        user: Some(encode(user)),
        consistency_token,
    }
}

fn encode(user: &User) -> ProtoUser {
    ProtoUser {
        user_id: user.user_id.to_string(),
        email: user.email.clone(),
        name: user.name.clone(),
        etag: format!("v{}", user.version),
        version: user.version,
        create_time: Some(proto::timestamp(user.create_time)),
        update_time: Some(proto::timestamp(user.update_time)),
        delete_time: user.delete_time.map(proto::timestamp),
    }
}

fn encode_summaries(summaries: &[OrderSummary]) -> Result<GetUserOrderSummaryResponse, Error> {
    let mut response = GetUserOrderSummaryResponse::default();
    for summary in summaries {
        response.order_count += summary.order_count;
        response.cancelled_count += summary.cancelled_count;
        response.totals.push(encode_total(summary)?);
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
fn encode_total(summary: &OrderSummary) -> Result<Money, Error> {
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
