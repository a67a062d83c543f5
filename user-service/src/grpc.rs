//! gRPC handlers: decode the request, call the store, encode the response.

mod decode;
mod encode;

use proto::user::v1::{
    BatchGetUsersRequest, BatchGetUsersResponse, CreateUserRequest, CreateUserResponse,
    DeleteUserRequest, DeleteUserResponse, GetUserOrderSummaryRequest, GetUserOrderSummaryResponse,
    GetUserRequest, GetUserResponse, ListUsersRequest, ListUsersResponse, UpdateUserRequest,
    UpdateUserResponse, user_service_server::UserService,
};
use service_kit::{Paging, idempotency::MutationContext, with_token_metadata};
use tonic::{Request, Response, Status};

use crate::{
    error::Error,
    store::{DeletedUsers, Store},
};

/// The implementation of `user.v1.UserService`.
pub struct Users {
    store: Store,
}

impl Users {
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
        let (new, key) = decode::create_request(request.get_ref())?;
        let mutation = MutationContext::new(key, request.metadata(), encode::created);
        let response = self.store.create_user(new, mutation).await?;
        Ok(with_token_metadata(response, |response| {
            &response.consistency_token
        }))
    }

    async fn get_user(
        &self,
        request: Request<GetUserRequest>,
    ) -> Result<Response<GetUserResponse>, Status> {
        let user_id = decode::parse_user_id(&request.get_ref().user_id)?;
        let user = Some(encode::user(&self.store.load_user(user_id).await?));
        Ok(Response::new(GetUserResponse { user }))
    }

    async fn batch_get_users(
        &self,
        request: Request<BatchGetUsersRequest>,
    ) -> Result<Response<BatchGetUsersResponse>, Status> {
        let user_ids = decode::parse_user_ids(&request.get_ref().user_ids)?;
        let users = self.store.load_users_by_id(&user_ids).await?;
        let users = users.iter().map(encode::user).collect();
        Ok(Response::new(BatchGetUsersResponse { users }))
    }

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        let ListUsersRequest {
            page_size,
            page_token,
            show_deleted,
        } = request.into_inner();
        let page_size = decode::parse_page_size(page_size)?;
        let deleted = if show_deleted {
            DeletedUsers::Included
        } else {
            DeletedUsers::Excluded
        };
        let list = format!("users show_deleted={show_deleted}");
        let key = self.store.token_key().await?;
        let paging = Paging::parse(key, list, page_size, &page_token).map_err(Error::from)?;
        let mut users = self
            .store
            .list_users(paging.after(), paging.limit(), deleted)
            .await?;
        let next_page_token = paging.truncate_to_page(&mut users, |user| user.user_id);
        let users = users.iter().map(encode::user).collect();
        Ok(Response::new(ListUsersResponse {
            users,
            next_page_token,
        }))
    }

    async fn update_user(
        &self,
        request: Request<UpdateUserRequest>,
    ) -> Result<Response<UpdateUserResponse>, Status> {
        let (change, key) = decode::update_request(request.get_ref())?;
        let mutation = MutationContext::new(key, request.metadata(), encode::updated);
        let response = self.store.update_user(change, mutation).await?;
        Ok(with_token_metadata(response, |response| {
            &response.consistency_token
        }))
    }

    async fn delete_user(
        &self,
        request: Request<DeleteUserRequest>,
    ) -> Result<Response<DeleteUserResponse>, Status> {
        let (deletion, key) = decode::delete_request(request.get_ref())?;
        let mutation = MutationContext::new(key, request.metadata(), encode::deleted);
        let response = self.store.delete_user(deletion, mutation).await?;
        Ok(with_token_metadata(response, |response| {
            &response.consistency_token
        }))
    }

    async fn get_user_order_summary(
        &self,
        request: Request<GetUserOrderSummaryRequest>,
    ) -> Result<Response<GetUserOrderSummaryResponse>, Status> {
        let user_id = decode::parse_user_id(&request.get_ref().user_id)?;
        let summaries = self.store.load_order_summaries(user_id).await?;
        Ok(Response::new(encode::summaries(&summaries)?))
    }
}
