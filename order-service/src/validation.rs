//! How CreateOrder knows that a user exists: from `users_cache`, and only if it is told to, by asking
//! user-service. `docs/validation-modes.md` has what each costs.

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

/// How long user-service may take to be reached, and to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How CreateOrder knows that a user exists.
#[derive(Args, Clone, Debug)]
pub struct ValidationOptions {
    /// Whom CreateOrder asks for a user
    #[arg(long, env = "VALIDATION", default_value = "local")]
    validation: Mode,
    /// Where user-service is, as host:port; needed for validation that is not local
    #[arg(
        long,
        env = "USER_SERVICE_ADDR",
        required_if_eq_any = [("validation", "local-then-remote"), ("validation", "remote")],
        value_parser = user_service
    )]
    user_service_addr: Option<Endpoint>,
}

/// Who is asked for a user.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// What was heard of users; orders are taken while user-service is away
    Local,
    /// The same, and user-service for a user of whom nothing was heard
    LocalThenRemote,
    /// user-service, every time
    Remote,
}

fn user_service(addr: &str) -> Result<Endpoint, String> {
    Endpoint::try_from(format!("http://{addr}"))
        .ok()
        // Without a port it would be that of web pages.
        .filter(|endpoint| endpoint.uri().port_u16().is_some())
        .ok_or_else(|| format!("{addr:?} isn't an address like user-service:50051"))
}

impl From<ValidationOptions> for Validation {
    fn from(options: ValidationOptions) -> Self {
        let users = options.user_service_addr.map(RemoteUsers::new);
        match (options.validation, users) {
            (Mode::Local, _) => Self::Local,
            (Mode::LocalThenRemote, Some(users)) => Self::LocalThenRemote(users),
            (Mode::Remote, Some(users)) => Self::Remote(users),
            (_, None) => unreachable!("clap requires the address"),
        }
    }
}

/// Who is asked for a user, with what that needs.
#[derive(Clone, Debug)]
pub enum Validation {
    /// `users_cache` alone. Orders are taken while user-service is away.
    Local,
    /// `users_cache`, and user-service for a user that is not there.
    LocalThenRemote(RemoteUsers),
    /// user-service, every time.
    Remote(RemoteUsers),
}

/// The users, as user-service tells of them.
#[derive(Clone, Debug)]
pub struct RemoteUsers(UserServiceClient<Channel>);

impl RemoteUsers {
    /// Asks the user-service at this address, over one connection that is opened when it is needed.
    pub fn new(user_service: Endpoint) -> Self {
        let endpoint = user_service.connect_timeout(CONNECT_TIMEOUT);
        Self(UserServiceClient::new(endpoint.connect_lazy()))
    }

    /// Whether there is such a user, now.
    ///
    /// # Errors
    /// If there is none, it was deleted, or user-service does not answer by `deadline`.
    pub async fn check(&self, user_id: Uuid, deadline: Instant) -> Result<(), Error> {
        let request = GetUserRequest {
            user_id: user_id.to_string(),
        };
        let deadline = deadline.min(Instant::now() + ANSWER_TIMEOUT);
        let mut client = self.0.clone();
        let Ok(answer) = timeout_at(deadline, client.get_user(request)).await else {
            let silence = "no answer in time".to_owned();
            return Err(Error::UserServiceUnavailable(silence));
        };
        match answer {
            Ok(answer) => match answer.into_inner().user {
                Some(user) if user.delete_time.is_none() => Ok(()),
                _ => Err(Error::UserDeleted(user_id)),
            },
            Err(status) if status.code() == Code::NotFound => Err(Error::UserUnknown(user_id)),
            Err(status) => Err(Error::UserServiceUnavailable(status.to_string())),
        }
    }
}
