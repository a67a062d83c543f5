//! The `order-service` program.

use std::process::ExitCode;

use order_service::OrderService;

#[tokio::main]
async fn main() -> ExitCode {
    service_kit::run::<OrderService>().await
}
