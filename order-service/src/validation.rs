//! How CreateOrder knows that a user exists: from `users_cache`, and only if it is told to, by asking
//! user-service. `docs/validation-modes.md` has what each costs.

use std::{str::FromStr, time::Duration};

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

/// Who is asked for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `users_cache` alone. Orders are taken while user-service is away.
    Local,
    /// `users_cache`, and user-service for a user that is not there.
    LocalThenRemote,
    /// user-service, every time.
    Remote,
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "local" => Ok(Self::Local),
            "local-then-remote" => Ok(Self::LocalThenRemote),
            "remote" => Ok(Self::Remote),
            _ => Err("must be local, local-then-remote or remote"),
        }
    }
}

/// A [`Mode`], with what it needs.
#[derive(Clone, Debug)]
pub enum Validation {
    /// [`Mode::Local`]
    Local,
    /// [`Mode::LocalThenRemote`]
    LocalThenRemote(RemoteUsers),
    /// [`Mode::Remote`]
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
