//! What CreateOrder does: it waits for what the caller has seen, and places the order if there is
//! such a user.

use std::time::Duration;

use proto::{Aggregate, ConsistencyToken};
use service_kit::idempotency::{Mutation, Response};
use tokio::time::Instant;

use crate::{
    consistency::{WaitLimits, Waiters},
    domain::{NewOrder, Order},
    error::Error,
    store::{KnownBy, Store},
    validation::Validation,
};

/// What is kept of a caller's deadline to write the order after the wait.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

/// Places orders.
pub struct Placing {
    /// Where they go.
    pub store: Store,
    /// Waits for users.
    pub waiters: Waiters,
    /// For how long.
    pub limits: WaitLimits,
    /// How a user is known to exist.
    pub validation: Validation,
}

/// A request to place an order.
pub struct Placement<R> {
    /// What is ordered.
    pub new: NewOrder,
    /// What the caller has seen.
    pub token: Option<ConsistencyToken>,
    /// Tells a repeat, and makes the response.
    pub mutation: Mutation<Order, R>,
    /// When the caller gives up.
    pub deadline: Instant,
}

impl Placing {
    /// Places an order.
    ///
    /// # Errors
    /// If there is no such user as far as is known, what the caller has seen does not arrive in
    /// time, or as of [`Store::create_order`].
    pub async fn place<R: Response>(&self, placement: &Placement<R>) -> Result<R, Error> {
        let user_id = placement.new.user_id;
        match &self.validation {
            Validation::Local => self.place_locally(placement).await,
            Validation::LocalThenRemote(users) => {
                if self
                    .has_arrived(placement.token.as_ref(), Instant::now())
                    .await?
                {
                    match self.write(placement, KnownBy::Cache).await {
                        Err(Error::UserUnknown(_)) => {}
                        result => return result,
                    }
                }
                match users.check(user_id, placement.deadline).await {
                    Ok(()) => self.write(placement, KnownBy::UserService).await,
                    // Then the event is what is left to hope for.
                    Err(Error::UserServiceUnavailable(_)) => self.place_locally(placement).await,
                    Err(err) => self.repeat_or_reject(placement, err).await,
                }
            }
            Validation::Remote(users) => match users.check(user_id, placement.deadline).await {
                Ok(()) => self.write(placement, KnownBy::UserService).await,
                Err(err) => self.repeat_or_reject(placement, err).await,
            },
        }
    }

    /// The answer that the same request got before: it stays what it was, whatever has become of the
    /// user or of user-service.
    async fn repeat_or_reject<R: Response>(
        &self,
        placement: &Placement<R>,
        err: Error,
    ) -> Result<R, Error> {
        let earlier = self.store.earlier_response(placement.mutation.clone());
        earlier.await?.ok_or(err)
    }

    async fn place_locally<R: Response>(&self, placement: &Placement<R>) -> Result<R, Error> {
        let until = self.wait_until(self.limits.token, placement);
        if !self.has_arrived(placement.token.as_ref(), until).await? {
            // A repeat may have a newer token than the first try had.
            return self
                .repeat_or_reject(placement, Error::ProjectionLagging)
                .await;
        }
        match self.write(placement, KnownBy::Cache).await {
            // The event may be on its way: one short wait, then one more try.
            Err(Error::UserUnknown(user_id)) if !self.limits.unknown_user.is_zero() => {
                let until = self.wait_until(self.limits.unknown_user, placement);
                if !self
                    .waiters
                    .wait_for(&self.store, user_id, 1, until)
                    .await?
                {
                    return Err(Error::UserUnknown(user_id));
                }
                self.write(placement, KnownBy::Cache).await
            }
            result => result,
        }
    }

    /// Whether what a token names is here by then. What this service wrote itself needs no wait.
    async fn has_arrived(
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
                self.waiters
                    .wait_for(&self.store, *id, *version, until)
                    .await
            }
            _ => Ok(true),
        }
    }

    /// The limit, or the caller's deadline less a margin, whichever is earlier.
    fn wait_until<R>(&self, limit: Duration, placement: &Placement<R>) -> Instant {
        let limit = Instant::now() + limit;
        let deadline = placement.deadline.checked_sub(DEADLINE_MARGIN);
        deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    async fn write<R: Response>(
        &self,
        placement: &Placement<R>,
        known_by: KnownBy,
    ) -> Result<R, Error> {
        let (new, mutation) = (placement.new.clone(), placement.mutation.clone());
        self.store.create_order(new, known_by, mutation).await
    }
}
