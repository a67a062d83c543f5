//! How the demo speaks: titles, lines, and a table of what happened at the end.

use std::{
    io::{IsTerminal as _, stdout},
    time::{Duration, Instant},
};

use anyhow::Result;
use demo::System;

/// The headline of a part.
pub(crate) fn title(text: &str) {
    if stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

/// A line below it.
pub(crate) fn say(text: impl AsRef<str>) {
    println!("   {}", text.as_ref());
}

/// What was done, whether it held, and how long it took.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<(String, bool, Duration, String)>);

impl Steps {
    /// Does a step and notes what came of it: a short sentence for the table.
    pub(crate) async fn step(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<String>>,
    ) -> Result<()> {
        title(name);
        let started = Instant::now();
        let result = work.await;
        let outcome = match &result {
            Ok(outcome) => outcome.clone(),
            Err(err) => format!("{err:#}"),
        };
        self.0
            .push((name.to_owned(), result.is_ok(), started.elapsed(), outcome));
        result.map(drop)
    }

    /// Prints the table.
    pub(crate) fn table(&self) {
        title("What happened");
        let width = self
            .0
            .iter()
            .map(|(name, ..)| name.chars().count())
            .max()
            .unwrap_or(0);
        for (name, held, took, outcome) in &self.0 {
            let mark = if *held { "held  " } else { "FAILED" };
            let seconds = took.as_secs_f64();
            println!("   {mark}  {name:width$}  {seconds:6.2} s  {outcome}");
        }
        say("(`make demo` without ONCE=1 stays up; `make up` runs the system in the background.)");
    }
}

/// Where everything is, and what to try there.
pub(crate) fn invite(system: &System) {
    let names = system.stack.names();
    let (users, orders) = (&names.user_service_addr, &names.order_service_addr);
    title("It is all still up: try it from another terminal");
    say(format!("user-service   {users}"));
    say(format!("order-service  {orders}"));
    say(format!(
        "outbox-relay   http://{}/status",
        names.relay_admin_addr
    ));
    say(format!("Kafka          {}", names.brokers));
    say(format!("users          {}", names.users_database_url));
    say(format!("orders         {}", names.orders_database_url));
    println!(
        r#"
grpcurl -plaintext -d '{{"email":"grace@example.com","name":"Grace Hopper"}}' {users} user.v1.UserService/CreateUser
grpcurl -plaintext -d '{{"page_size":3}}' {orders} order.v1.OrderService/ListOrders
grpcurl -plaintext -d '{{"user_id":"01a1b2c3-d4e5-7000-8000-000000000000","amount":{{"currency_code":"EUR","units":19,"nanos":900000000}}}}' {orders} order.v1.OrderService/CreateOrder
grpcurl -plaintext {users} describe user.v1.UserService

(`make tools` installs grpcurl into .tools/bin.) Ctrl-C ends everything."#
    );
}
