//! Terminal output of the demo: titles, lines, and a table of results.

use std::{
    io::{IsTerminal as _, stdout},
    time::{Duration, Instant},
};

use anyhow::Result;
use demo::System;

/// Prints the title of a part.
pub(crate) fn title(text: &str) {
    if stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

/// Prints a line below the title.
pub(crate) fn say(text: impl AsRef<str>) {
    println!("   {}", text.as_ref());
}

/// The results of the steps so far.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<StepResult>);

#[derive(Debug)]
struct StepResult {
    name: String,
    passed: bool,
    took: Duration,
    /// A short sentence for the table.
    detail: String,
}

impl Steps {
    /// Runs a step and records its result.
    pub(crate) async fn run(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<String>>,
    ) -> Result<()> {
        title(name);
        let started = Instant::now();
        let result = work.await;
        self.0.push(StepResult {
            name: name.to_owned(),
            passed: result.is_ok(),
            took: started.elapsed(),
            detail: match &result {
                Ok(detail) => detail.clone(),
                Err(err) => format!("{err:#}"),
            },
        });
        result.map(drop)
    }

    pub(crate) fn print_table(&self) {
        title("Results");
        let width = self
            .0
            .iter()
            .map(|step| step.name.chars().count())
            .max()
            .unwrap_or(0);
        for step in &self.0 {
            let result = if step.passed { "passed" } else { "FAILED" };
            let (name, detail) = (&step.name, &step.detail);
            let seconds = step.took.as_secs_f64();
            println!("   {result}  {name:width$}  {seconds:6.2} s  {detail}");
        }
    }
}

/// Prints the addresses of all parts and commands to try.
pub(crate) fn print_addresses(system: &System) {
    let names = system.stack.names();
    let (users, orders) = (&names.user_service_addr, &names.order_service_addr);
    title("Everything is still running: try it from another terminal");
    say(format!("user-service   {users}"));
    say(format!("order-service  {orders}"));
    say(format!("outbox-relay   http://{}/", names.relay_admin_addr));
    say(format!("Kafka          {}", names.brokers));
    say(format!("users          {}", names.users_database_url));
    say(format!("orders         {}", names.orders_database_url));
    println!(
        r#"
grpcurl -plaintext -d '{{"email":"grace@example.com","name":"Grace Hopper"}}' {users} user.v1.UserService/CreateUser
grpcurl -plaintext -d '{{"page_size":3}}' {orders} order.v1.OrderService/ListOrders
grpcurl -plaintext -d '{{"user_id":"01a1b2c3-d4e5-7000-8000-000000000000","amount":{{"currency_code":"EUR","units":19,"nanos":900000000}}}}' {orders} order.v1.OrderService/CreateOrder
grpcurl -plaintext {users} describe user.v1.UserService

(`make .tools/bin/grpcurl` builds grpcurl; add .tools/bin to PATH.) Ctrl-C stops everything."#
    );
}
