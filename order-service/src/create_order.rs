//! CreateOrder: waits for the user version that the caller has seen, validates the user, and writes the
//! order.

use std::time::Duration;

use proto::{Aggregate, ConsistencyToken};
use service_kit::idempotency::{MutationContext, Response};
use tokio::time::Instant;

use crate::{
    consistency::{UserWaiter, WaitLimits},
    domain::{NewOrder, Order},
    error::Error,
    store::{Store, UserCheck},
    validation::Validation,
};

/// Time reserved before the caller's deadline to write the order after a wait.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

/// Handles CreateOrder calls.
pub struct CreateOrderHandler {
    pub store: Store,
    pub user_waiter: UserWaiter,
    /// The limits of the waits for user events.
    pub limits: WaitLimits,
    pub validation: Validation,
}

/// A decoded CreateOrder call.
pub struct CreateOrderCommand<R> {
    pub new: NewOrder,
    /// The version that the caller has seen.
    pub token: Option<ConsistencyToken>,
    /// Recognizes retries, and encodes the response.
    pub mutation: MutationContext<Order, R>,
    pub deadline: Instant,
}

impl CreateOrderHandler {
    /// Validates the user and creates the order.
    ///
    /// # Errors
    /// If the user is unknown or deleted, the version of the token does not arrive in time, or as for
    /// [`Store::create_order`].
    pub async fn handle<R: Response>(&self, command: &CreateOrderCommand<R>) -> Result<R, Error> {
        let user_id = command.new.user_id;
        match &self.validation {
            Validation::Local => self.create_locally(command).await,
            Validation::LocalThenRemote(users) => {
                if self.has_token_version(command.token.as_ref()).await? {
                    match self.create(command, UserCheck::RequireCached).await {
                        Err(Error::UserUnknown(_)) => {}
                        result => return result,
                    }
                }
                match users.verify_exists(user_id, command.deadline).await {
                    Ok(()) => self.create(command, UserCheck::ConfirmedRemotely).await,
                    // Fall back to the event, which may still arrive.
                    Err(Error::UserServiceUnavailable(_)) => self.create_locally(command).await,
                    Err(err) => self.stored_response_or(command, err).await,
                }
            }
            Validation::Remote(users) => match users.verify_exists(user_id, command.deadline).await
            {
                Ok(()) => self.create(command, UserCheck::ConfirmedRemotely).await,
                Err(err) => self.stored_response_or(command, err).await,
            },
        }
    }

    /// Returns the stored response of an earlier attempt, or `err`. A retry gets the same response even
    /// if the user or user-service has changed since.
    async fn stored_response_or<R: Response>(
        &self,
        command: &CreateOrderCommand<R>,
        err: Error,
    ) -> Result<R, Error> {
        let stored = self.store.load_stored_response(command.mutation.clone());
        stored.await?.ok_or(err)
    }

    async fn create_locally<R: Response>(
        &self,
        command: &CreateOrderCommand<R>,
    ) -> Result<R, Error> {
        let until = self.wait_until(self.limits.token, command);
        if !self.wait_for_token(command.token.as_ref(), until).await? {
            // A retry may have a newer token than the first attempt.
            return self
                .stored_response_or(command, Error::ProjectionLagging)
                .await;
        }
        match self.create(command, UserCheck::RequireCached).await {
            // The event may be about to arrive: wait once, then try again.
            Err(Error::UserUnknown(user_id)) if !self.limits.unknown_user.is_zero() => {
                let until = self.wait_until(self.limits.unknown_user, command);
                if !self
                    .user_waiter
                    .wait_for_version(&self.store, user_id, 1, until)
                    .await?
                {
                    return Err(Error::UserUnknown(user_id));
                }
                self.create(command, UserCheck::RequireCached).await
            }
            result => result,
        }
    }

    /// Returns true if the user version of a token has arrived.
    async fn has_token_version(&self, token: Option<&ConsistencyToken>) -> Result<bool, Error> {
        self.wait_for_token(token, Instant::now()).await
    }

    /// Waits for the user version of a token. Returns false if it has not arrived at `until`. Tokens of
    /// orders need no wait, because this service wrote them.
    async fn wait_for_token(
        &self,
        token: Option<&ConsistencyToken>,
        until: Instant,
    ) -> Result<bool, Error> {
        match token {
            Some(ConsistencyToken {
                aggregate: Aggregate::User,
                id,
                version,
            }) => {
                self.user_waiter
                    .wait_for_version(&self.store, *id, *version, until)
                    .await
            }
            _ => Ok(true),
        }
    }

    /// Returns the end of a wait: `limit` from now, but a margin before the caller's deadline.
    fn wait_until<R>(&self, limit: Duration, command: &CreateOrderCommand<R>) -> Instant {
        let limit = Instant::now() + limit;
        let deadline = command.deadline.checked_sub(DEADLINE_MARGIN);
        deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    async fn create<R: Response>(
        &self,
        command: &CreateOrderCommand<R>,
        user_check: UserCheck,
    ) -> Result<R, Error> {
        let (new, mutation) = (command.new.clone(), command.mutation.clone());
        self.store.create_order(new, user_check, mutation).await
    }
}
