//! Validates that a user exists: against `users_cache`, and if configured, by calling user-service.
//! `docs/validation-modes.md` compares the modes.

use std::time::Duration;

use clap::{Args, ValueEnum};
use proto::user::v1::{GetUserRequest, user_service_client::UserServiceClient};
use tokio::time::{Instant, timeout_at};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use crate::error::Error;

/// Limits on connecting to user-service and on its response.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Args, Clone, Debug)]
pub struct ValidationOptions {
    /// Validate the user of CreateOrder with this mode
    #[arg(long, env = "VALIDATION", default_value = "local")]
    validation: ValidationMode,
    /// Call user-service at this address, as host:port; required unless VALIDATION is local
    #[arg(
        long,
        env = "USER_SERVICE_ADDR",
        required_if_eq_any = [("validation", "local-then-remote"), ("validation", "remote")],
        value_parser = parse_user_service_addr
    )]
    user_service_addr: Option<Endpoint>,
}

/// The values of `VALIDATION`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ValidationMode {
    /// Use the cache built from user events; orders are accepted while user-service is down
    Local,
    /// Use the cache, and call user-service for a user that is not in it
    LocalThenRemote,
    /// Call user-service for every order
    Remote,
}

fn parse_user_service_addr(addr: &str) -> Result<Endpoint, String> {
    Endpoint::try_from(format!("http://{addr}"))
        .ok()
        // Without a port it would default to 80.
        .filter(|endpoint| endpoint.uri().port_u16().is_some())
        .ok_or_else(|| format!("invalid address {addr:?}: must look like user-service:50051"))
}

impl From<ValidationOptions> for Validation {
    fn from(options: ValidationOptions) -> Self {
        let users = options.user_service_addr.map(RemoteUsers::new);
        match (options.validation, users) {
            (ValidationMode::Local, _) => Self::Local,
            (ValidationMode::LocalThenRemote, Some(users)) => Self::LocalThenRemote(users),
            (ValidationMode::Remote, Some(users)) => Self::Remote(users),
            (_, None) => unreachable!("clap requires the address"),
        }
    }
}

/// A validation mode with its client.
#[derive(Clone, Debug)]
pub enum Validation {
    /// Uses `users_cache` only; orders are accepted while user-service is down.
    Local,
    /// Uses `users_cache`, and calls user-service for unknown users.
    LocalThenRemote(RemoteUsers),
    /// Calls user-service for every order.
    Remote(RemoteUsers),
}

/// A client of user-service that verifies users.
#[derive(Clone, Debug)]
pub struct RemoteUsers(UserServiceClient<Channel>);

impl RemoteUsers {
    /// Creates a client of the user-service at this address; it connects on the first call.
    pub fn new(user_service: Endpoint) -> Self {
        let endpoint = user_service.connect_timeout(CONNECT_TIMEOUT);
        Self(UserServiceClient::new(endpoint.connect_lazy()))
    }

    /// Verifies that a user exists and is not deleted.
    ///
    /// # Errors
    /// If the user does not exist or was deleted, or user-service does not respond by `deadline`.
    pub async fn verify_exists(&self, user_id: Uuid, deadline: Instant) -> Result<(), Error> {
        let request = GetUserRequest {
            user_id: user_id.to_string(),
        };
        let deadline = deadline.min(Instant::now() + RESPONSE_TIMEOUT);
        let mut client = self.0.clone();
        let Ok(response) = timeout_at(deadline, client.get_user(request)).await else {
            let reason = "no response in time".to_owned();
            return Err(Error::UserServiceUnavailable(reason));
        };
        match response {
            Ok(response) => match response.into_inner().user {
                Some(user) if user.delete_time.is_none() => Ok(()),
                Some(_) => Err(Error::UserDeleted(user_id)),
                None => {
                    let reason = "response without a user".to_owned();
                    Err(Error::UserServiceUnavailable(reason))
                }
            },
            Err(status) if status.code() == Code::NotFound => Err(Error::UserUnknown(user_id)),
            Err(status) => Err(Error::UserServiceUnavailable(status.to_string())),
        }
    }
}
