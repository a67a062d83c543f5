//! The `user-service` program.

use std::process::ExitCode;

use user_service::UserService;

#[tokio::main]
async fn main() -> ExitCode {
    service_kit::run::<UserService>().await
}
