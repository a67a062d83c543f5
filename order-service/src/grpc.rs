//! The door: decode, wait for what the caller has seen, ask the store, encode.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use proto::{
    Aggregate, ConsistencyToken,
    money::v1::Money,
    order::v1::{
        CreateOrderRequest, CreateOrderResponse, GetOrderRequest, GetOrderResponse,
        ListOrdersRequest, ListOrdersResponse, Order as ProtoOrder, OrderState,
        order_service_server::OrderService,
    },
};
use service_kit::{
    CallError, Deadline, PageToken, Violations, cut_page,
    idempotency::{Answer, RequestKey, WriteContext},
    page_size, to_completion, traceparent,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{
    consistency::{WaitLimits, Waiters},
    domain::{Amount, NewOrder, Order, State},
    error::Error,
    store::Store,
};

/// What is kept of a caller's deadline to write the order after the wait.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

/// The implementation of `order.v1.OrderService`.
pub struct Orders {
    store: Store,
    waiters: Arc<Waiters>,
    limits: WaitLimits,
}

/// A request to place an order, decoded.
struct CreateOrder {
    new: NewOrder,
    token: Option<ConsistencyToken>,
    request: Option<RequestKey>,
}

impl Orders {
    /// Answers from this store.
    pub fn new(store: Store, waiters: Arc<Waiters>, limits: WaitLimits) -> Self {
        Self {
            store,
            waiters,
            limits,
        }
    }

    /// Waits for the user's version that a token names. What this service wrote itself needs no
    /// wait.
    async fn wait_for_token(
        &self,
        token: &ConsistencyToken,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let deadline = earlier(Instant::now() + self.limits.token, deadline);
        match token.aggregate {
            Aggregate::Order => Ok(()),
            Aggregate::User => {
                let waited = self
                    .waiters
                    .wait_for(&self.store, token.id, token.version, deadline)
                    .await?;
                if waited {
                    Ok(())
                } else {
                    Err(Error::ProjectionLagging)
                }
            }
        }
    }

    async fn write(&self, new: &NewOrder, context: &WriteContext) -> Result<Answer<Order>, Error> {
        let (store, new, context) = (self.store.clone(), new.clone(), context.clone());
        let respond = |order: &Order| create_response(order).encode_to_vec();
        to_completion(async move { store.create_order(new, context, respond).await }).await
    }

    async fn create(
        &self,
        create: CreateOrder,
        traceparent: Option<String>,
        deadline: Option<Instant>,
    ) -> Result<Answer<Order>, Error> {
        let CreateOrder {
            new,
            token,
            request,
        } = create;
        if let Some(token) = &token {
            self.wait_for_token(token, deadline).await?;
        }
        let context = WriteContext {
            request,
            traceparent,
        };
        match self.write(&new, &context).await {
            // The event may be on its way: one short wait, then one more try.
            Err(Error::UserUnknown(user_id)) if !self.limits.unknown_user.is_zero() => {
                let deadline = earlier(Instant::now() + self.limits.unknown_user, deadline);
                if !self
                    .waiters
                    .wait_for(&self.store, user_id, 1, deadline)
                    .await?
                {
                    return Err(Error::UserUnknown(user_id));
                }
                self.write(&new, &context).await
            }
            result => result,
        }
    }
}

#[tonic::async_trait]
impl OrderService for Orders {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let traceparent = traceparent(request.metadata());
        let deadline = request
            .extensions()
            .get::<Deadline>()
            .map(|deadline| deadline.0);
        let create = decode_create(request.get_ref())?;
        let response = match self.create(create, traceparent, deadline).await? {
            Answer::Done(order) => create_response(&order),
            Answer::Repeated(response) => CreateOrderResponse::decode(&*response)
                .map_err(|err| Error::from(CallError::bug(err)))?,
        };
        Ok(Response::new(response))
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let mut violations = Violations::default();
        let order_id = violations
            .id("order_id", &request.get_ref().order_id)
            .ok_or_else(|| Error::from(CallError::Invalid(violations)))?;
        let order = self.store.order(order_id).await?;
        Ok(Response::new(GetOrderResponse {
            order: Some(encode(&order)),
        }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let ListOrdersRequest {
            user_id,
            page_size: asked,
            page_token,
        } = request.into_inner();
        let mut violations = Violations::default();
        let user_id = match user_id.as_str() {
            "" => None,
            text => Some(
                violations
                    .id("user_id", text)
                    .ok_or_else(|| Error::from(CallError::Invalid(violations)))?,
            ),
        };
        let query = format!("orders user_id={user_id:?}");
        let after = PageToken::decode(&page_token, &query).map_err(Error::from)?;
        let size = page_size(asked);
        // One more than the page takes tells whether there is a page behind this one.
        let mut orders = self
            .store
            .orders(user_id, after.map(|token| token.0), size + 1)
            .await?;
        let next_page_token = cut_page(&mut orders, size, &query, |order| order.order_id);
        let orders = orders.iter().map(encode).collect();
        Ok(Response::new(ListOrdersResponse {
            orders,
            next_page_token,
        }))
    }
}

/// The limit, or the caller's deadline less a margin, whichever is earlier.
fn earlier(limit: Instant, deadline: Option<Instant>) -> Instant {
    let deadline = deadline.and_then(|deadline| deadline.checked_sub(DEADLINE_MARGIN));
    deadline.map_or(limit, |deadline| deadline.min(limit))
}

fn decode_create(request: &CreateOrderRequest) -> Result<CreateOrder, Error> {
    let mut violations = Violations::default();
    let user_id = violations.id("user_id", &request.user_id);
    let amount = decode_amount(request.amount.as_ref(), &mut violations);
    let token = match request.consistency_token.as_str() {
        "" => Some(None),
        text => violations
            .check(
                "consistency_token",
                ConsistencyToken::decode(text)
                    .map_err(|_| "must be a token of this system, or empty"),
            )
            .map(Some),
    };
    // What is ordered, and not how it was asked for: a caller that got no answer may well repeat with
    // a token.
    let body = CreateOrderRequest {
        user_id: user_id.map(|id| id.to_string()).unwrap_or_default(),
        amount: request.amount.clone(),
        ..CreateOrderRequest::default()
    };
    let request = violations.check(
        "request_id",
        RequestKey::parse("CreateOrder", &request.request_id, &body.encode_to_vec()),
    );
    match (user_id, amount, token, request) {
        (Some(user_id), Some(amount), Some(token), Some(request)) => Ok(CreateOrder {
            new: NewOrder { user_id, amount },
            token,
            request,
        }),
        _ => Err(CallError::Invalid(violations).into()),
    }
}

fn decode_amount(money: Option<&Money>, violations: &mut Violations) -> Option<Amount> {
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

fn create_response(order: &Order) -> CreateOrderResponse {
    let (aggregate, id, version) = (Aggregate::Order, order.order_id, order.version);
    let consistency_token = ConsistencyToken {
        aggregate,
        id,
        version,
    }
    .encode();
    CreateOrderResponse {
        order: Some(encode(order)),
        consistency_token,
    }
}

fn encode(order: &Order) -> ProtoOrder {
    let (units, nanos) = order.amount.to_units();
    let currency_code = order.amount.currency_code().to_owned();
    let state = match order.state {
        State::Created => OrderState::Created,
        State::Cancelled => OrderState::Cancelled,
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
        cancel_reason: 0,
        etag: format!("v{}", order.version),
        version: order.version,
        create_time: Some(proto::timestamp(order.create_time)),
        update_time: Some(proto::timestamp(order.update_time)),
    }
}
