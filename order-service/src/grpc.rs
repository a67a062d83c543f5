//! The door: decode, ask the store, encode. Nothing is decided here.

mod decode;
mod encode;

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use prost::Message as _;
use proto::order::v1::{
    CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse,
    GetOrderRequest, GetOrderResponse, ListOrdersRequest, ListOrdersResponse, WatchOrdersRequest,
    WatchOrdersResponse, order_service_server::OrderService,
};
use service_kit::{
    Deadline, Paging, asked_deadline, idempotency::WriteContext, to_completion, traceparent,
    with_token,
};
use tonic::{Request, Response, Status};

use crate::{
    error::Error,
    placing::{Placement, Placing},
    store::Store,
    wakers::Wakers,
    watch::Watches,
};

/// The implementation of `order.v1.OrderService`.
pub struct Orders {
    store: Store,
    placing: Placing,
    watches: Watches,
    changes: Arc<Wakers>,
}

impl Orders {
    /// Answers from this store.
    pub fn new(placing: Placing, watches: Watches) -> Self {
        Self {
            store: placing.store.clone(),
            changes: Arc::clone(&placing.changes),
            placing,
            watches,
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
        let Deadline(deadline) = Deadline::of(&request);
        let (new, token, key) = decode::create(request.get_ref(), request.metadata())?;
        let placement = Placement {
            new,
            token,
            context: WriteContext {
                request: key,
                traceparent,
            },
            respond: |order| encode::created(order).encode_to_vec(),
            deadline,
        };
        let answer = self.placing.place(&placement).await?;
        let answer = answer.into_message(encode::created).map_err(Error::from)?;
        let token = answer.consistency_token.clone();
        Ok(with_token(answer, &token))
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let order_id = decode::id("order_id", &request.get_ref().order_id)?;
        let order = Some(encode::order(&self.store.order(order_id).await?));
        Ok(Response::new(GetOrderResponse { order }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let ListOrdersRequest {
            user_id,
            page_size,
            page_token,
        } = request.into_inner();
        let user_id = match user_id.as_str() {
            "" => None,
            text => Some(decode::id("user_id", text)?),
        };
        let list = format!("orders user_id={user_id:?}");
        let key = self.store.token_key().await?;
        let paging = Paging::new(key, list, page_size, &page_token).map_err(Error::from)?;
        let mut orders = self
            .store
            .orders(user_id, paging.after(), paging.limit())
            .await?;
        let next_page_token = paging.cut(&mut orders, |order| order.order_id);
        let orders = orders.iter().map(encode::order).collect();
        Ok(Response::new(ListOrdersResponse {
            orders,
            next_page_token,
        }))
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let traceparent = traceparent(request.metadata());
        let (cancellation, request) = decode::cancel(request.get_ref())?;
        let context = WriteContext {
            request,
            traceparent,
        };
        let (store, changes) = (self.store.clone(), Arc::clone(&self.changes));
        let writing = async move {
            let respond = |order: &_| encode::cancelled(order).encode_to_vec();
            let answer = store.cancel_order(cancellation, context, respond).await?;
            if let service_kit::idempotency::Answer::Done(order) = &answer {
                changes.wake(order.user_id);
            }
            Ok::<_, Error>(answer)
        };
        let answer = to_completion(writing).await?;
        let answer = answer
            .into_message(encode::cancelled)
            .map_err(Error::from)?;
        let token = answer.consistency_token.clone();
        Ok(with_token(answer, &token))
    }

    type WatchOrdersStream =
        Pin<Box<dyn Stream<Item = Result<WatchOrdersResponse, Status>> + Send>>;

    async fn watch_orders(
        &self,
        request: Request<WatchOrdersRequest>,
    ) -> Result<Response<Self::WatchOrdersStream>, Status> {
        let deadline = asked_deadline(request.metadata());
        let key = self.store.token_key().await?.clone();
        let (user_id, position) = decode::watch(request.get_ref(), &key)?;
        let watch = self.watches.start(user_id, position, deadline)?;
        let stream = stream::unfold((watch, key), move |(mut watch, key)| async move {
            let change = watch.next().await?;
            let message = change
                .map(|change| encode::change(&change, user_id, &key))
                .map_err(Status::from);
            Some((message, (watch, key)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
