//! gRPC handlers: decode the request, call the store, encode the response.

mod decode;
mod encode;

use std::pin::Pin;

use futures_util::{Stream, stream};
use proto::order::v1::{
    CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse,
    GetOrderRequest, GetOrderResponse, ListOrdersRequest, ListOrdersResponse, WatchOrdersRequest,
    WatchOrdersResponse, order_service_server::OrderService,
};
use service_kit::{
    Deadline, Paging, idempotency::MutationContext, requested_deadline, with_token_metadata,
};
use tonic::{Request, Response, Status};

use crate::{
    create_order::{CreateOrderCommand, CreateOrderHandler},
    error::Error,
    store::Store,
    watch::Watches,
};

/// The implementation of `order.v1.OrderService`.
pub struct Orders {
    store: Store,
    handler: CreateOrderHandler,
    watches: Watches,
}

impl Orders {
    pub fn new(handler: CreateOrderHandler, watches: Watches) -> Self {
        Self {
            store: handler.store.clone(),
            handler,
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
        let Deadline(deadline) = Deadline::of(&request);
        let (new, token, key) = decode::create_request(request.get_ref(), request.metadata())?;
        let command = CreateOrderCommand {
            new,
            token,
            mutation: MutationContext::new(key, request.metadata(), encode::created),
            deadline,
        };
        let response = self.handler.handle(&command).await?;
        Ok(with_token_metadata(response, |response| {
            &response.consistency_token
        }))
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let order_id = decode::parse_id("order_id", &request.get_ref().order_id)?;
        let order = Some(encode::order(&self.store.load_order(order_id).await?));
        Ok(Response::new(GetOrderResponse { order }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let request = request.into_inner();
        let (user_id, page_size) = decode::list_request(&request)?;
        let list = format!("orders user_id={user_id:?}");
        let key = self.store.token_key().await?;
        let paging =
            Paging::parse(key, list, page_size, &request.page_token).map_err(Error::from)?;
        let mut orders = self
            .store
            .list_orders(user_id, paging.after(), paging.limit())
            .await?;
        let next_page_token = paging.truncate_to_page(&mut orders, |order| order.order_id);
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
        let (cancellation, key) = decode::cancel_request(request.get_ref())?;
        let mutation = MutationContext::new(key, request.metadata(), encode::cancelled);
        let response = self.store.cancel_order(cancellation, mutation).await?;
        Ok(with_token_metadata(response, |response| {
            &response.consistency_token
        }))
    }

    type WatchOrdersStream =
        Pin<Box<dyn Stream<Item = Result<WatchOrdersResponse, Status>> + Send>>;

    async fn watch_orders(
        &self,
        request: Request<WatchOrdersRequest>,
    ) -> Result<Response<Self::WatchOrdersStream>, Status> {
        let deadline = requested_deadline(request.metadata());
        let key = self.store.token_key().await?.clone();
        let (user_id, position) = decode::watch_request(request.get_ref(), &key)?;
        let watch = self.watches.open(user_id, position, deadline)?;
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
