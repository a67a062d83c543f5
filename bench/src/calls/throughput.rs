//! Measures how many orders and users can be created per second by callers that wait for each response, compared with
//! pgbench, which does the same work in one statement on the same database.

use std::{
    fmt::Write as _,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use demo::System;
use devstack::{Sql, WorkDir, postgres_program, step};
use hdrhistogram::Histogram;
use lab::{Machine, cpu_s, family_cpu_s, peak_rss_mib};
use proto::{
    order::v1::{CreateOrderRequest, order_service_client::OrderServiceClient},
    user::v1::{CreateUserRequest, user_service_client::UserServiceClient},
};
use serde::Serialize;
use tokio::{process::Command, time::Instant};
use tonic::transport::Channel;

use super::{CallsOptions, Spread, histogram};
use crate::drain;

/// Concurrent calls.
const CONCURRENCY: [usize; 4] = [1, 16, 64, 256];
/// Limit of pgbench clients. Each has its own connection, and more of them do not commit more.
const MAX_PGBENCH_CLIENTS: usize = 64;
/// Calls that share a connection to a service.
const CALLS_PER_CONNECTION: usize = 64;
/// Number of users in [`Users::Many`].
const USERS: usize = 100;
/// Warm-up before each measurement.
const WARM_UP: Duration = Duration::from_secs(1);
const CREATE_ORDER: &str = include_str!("create_order.sql");
const CREATE_USER: &str = include_str!("create_user.sql");

/// The users that calls are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Users {
    /// Many users.
    Many,
    /// One user.
    Hot,
}

/// A variant of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    users: Users,
    request_id: bool,
}

const ORDER_VARIANTS: [Variant; 4] = [
    Variant {
        users: Users::Many,
        request_id: false,
    },
    Variant {
        users: Users::Many,
        request_id: true,
    },
    Variant {
        users: Users::Hot,
        request_id: false,
    },
    Variant {
        users: Users::Hot,
        request_id: true,
    },
];
/// Each call creates a user of its own.
const USER_VARIANTS: [Variant; 2] = [
    Variant {
        users: Users::Many,
        request_id: false,
    },
    Variant {
        users: Users::Many,
        request_id: true,
    },
];

/// The figures of one variant at one concurrency.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    concurrency: usize,
    users: Users,
    request_id: bool,
    calls_per_s: f64,
    calls_per_s_min: f64,
    calls_per_s_max: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// pgbench right before, with the same number of clients up to 64.
    pgbench_per_s: f64,
    /// The median ratio of a run to the pgbench run before it.
    ratio: f64,
    cpu_s: CpuSeconds,
}

/// CPU-seconds during a measurement, by process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct CpuSeconds {
    user_service: f64,
    order_service: f64,
    outbox_relay: f64,
    postgres: f64,
    kafka: f64,
    load_generator: f64,
}

/// The report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Throughput {
    machine: Machine,
    pub(super) create_order: Vec<Figures>,
    pub(super) create_user: Vec<Figures>,
    /// Peak memory of each service.
    order_service_peak_rss_mib: f64,
    user_service_peak_rss_mib: f64,
}

/// One run of one variant.
struct Run {
    per_s: f64,
    latency: Histogram<u64>,
    pgbench_per_s: f64,
    cpu_s: CpuSeconds,
}

pub(super) async fn measure(options: &CallsOptions) -> Result<Throughput> {
    let system = System::start().await?;
    let lab = Lab::new(&system, options).await?;
    let throughput = lab.measure(options).await;
    system.stop().await;
    throughput
}

/// The running system and the callers' connections.
struct Lab<'a> {
    system: &'a System,
    user_ids: Arc<[String]>,
    orders: Vec<OrderServiceClient<Channel>>,
    users: Vec<UserServiceClient<Channel>>,
    duration: Duration,
    /// The next number for a unique e-mail address.
    emails: Arc<AtomicU64>,
    work_dir: WorkDir,
}

impl<'a> Lab<'a> {
    async fn new(system: &'a System, options: &CallsOptions) -> Result<Self> {
        let mut user_ids = Vec::with_capacity(USERS);
        for number in 0..USERS {
            let created = system
                .create_user(&format!("user{number}@example.com"), "Ada Lovelace")
                .await?;
            let user_id = created.user.context("a user")?.user_id;
            // Waits until order-service knows the user.
            system
                .create_order(&user_id, &created.consistency_token)
                .await?;
            user_ids.push(user_id);
        }
        let names = system.stack.names();
        let sql = Sql::connect(&names.orders_database_url).await?;
        sql.batch_execute(
            "create table bench_users (n int primary key, user_id uuid not null);
             insert into bench_users
             select row_number() over (order by user_id), user_id from users_cache",
        )
        .await?;
        let connections = CONCURRENCY[CONCURRENCY.len() - 1] / CALLS_PER_CONNECTION;
        let channels = |addr: &str| -> Result<Vec<Channel>> {
            let endpoint = Channel::from_shared(format!("http://{addr}"))?;
            Ok((0..connections).map(|_| endpoint.connect_lazy()).collect())
        };
        Ok(Self {
            system,
            user_ids: user_ids.into(),
            orders: (channels(&names.order_service_addr)?.into_iter())
                .map(OrderServiceClient::new)
                .collect(),
            users: (channels(&names.user_service_addr)?.into_iter())
                .map(UserServiceClient::new)
                .collect(),
            duration: Duration::from_secs(options.seconds),
            emails: Arc::default(),
            work_dir: WorkDir::new()?,
        })
    }

    async fn measure(&self, options: &CallsOptions) -> Result<Throughput> {
        let (mut create_order, mut create_user) = (Vec::new(), Vec::new());
        for concurrency in CONCURRENCY {
            for variant in ORDER_VARIANTS {
                let create = |caller| self.order_call(caller, variant);
                let url = &self.system.stack.names().orders_database_url;
                let users = if variant.users == Users::Hot {
                    1
                } else {
                    USERS
                };
                let reference = Reference {
                    url,
                    sql: CREATE_ORDER,
                    users,
                };
                let what = "CreateOrder";
                create_order.push(
                    self.compare(
                        what,
                        concurrency,
                        variant,
                        options.runs,
                        &create,
                        &reference,
                    )
                    .await?,
                );
            }
            for variant in USER_VARIANTS {
                let create = |caller| self.user_call(caller, variant);
                let url = &self.system.stack.names().users_database_url;
                let reference = Reference {
                    url,
                    sql: CREATE_USER,
                    users: USERS,
                };
                let what = "CreateUser";
                create_user.push(
                    self.compare(
                        what,
                        concurrency,
                        variant,
                        options.runs,
                        &create,
                        &reference,
                    )
                    .await?,
                );
            }
        }
        let stack = &self.system.stack;
        let sql = Sql::connect(&stack.names().orders_database_url).await?;
        Ok(Throughput {
            machine: Machine::describe(&sql).await?,
            create_order,
            create_user,
            order_service_peak_rss_mib: peak_rss_mib(
                stack.order_service.pid().context("service has exited")?,
            )?,
            user_service_peak_rss_mib: peak_rss_mib(
                stack.user_service.pid().context("service has exited")?,
            )?,
        })
    }

    /// Runs pgbench and calls alternately.
    async fn compare<C: Call>(
        &self,
        what: &str,
        concurrency: usize,
        variant: Variant,
        runs: u32,
        call: &(impl Fn(usize) -> C + Sync),
        reference: &Reference<'_>,
    ) -> Result<Figures> {
        let label = format!(
            "{what}, concurrency {concurrency}{}{}",
            if variant.users == Users::Hot {
                ", one user"
            } else {
                ""
            },
            if variant.request_id {
                ", request_id"
            } else {
                ""
            },
        );
        let comparing = async {
            let mut measured = Vec::new();
            for _ in 0..runs {
                let clients = concurrency.min(MAX_PGBENCH_CLIENTS);
                let pgbench_per_s = self.pgbench(reference, clients).await?;
                self.call_for(WARM_UP, concurrency, call).await?;
                let before = self.cpu()?;
                let latency = self.call_for(self.duration, concurrency, call).await?;
                let cpu_s = self.cpu()?.since(before);
                let per_s = latency.len() as f64 / self.duration.as_secs_f64();
                measured.push(Run {
                    per_s,
                    latency,
                    pgbench_per_s,
                    cpu_s,
                });
            }
            Figures::of(concurrency, variant, &measured)
        };
        step(&label, comparing).await
    }

    /// Runs this number of callers, each one call after another. Returns the latencies in microseconds.
    async fn call_for<C: Call>(
        &self,
        duration: Duration,
        concurrency: usize,
        call: &(impl Fn(usize) -> C + Sync),
    ) -> Result<Histogram<u64>> {
        let end = Instant::now() + duration;
        let callers = (0..concurrency).map(|caller| {
            let mut call = call(caller);
            tokio::spawn(async move {
                let mut latency = histogram()?;
                while Instant::now() < end {
                    let started = Instant::now();
                    call.call().await?;
                    latency.saturating_record(started.elapsed().as_micros() as u64);
                }
                anyhow::Ok(latency)
            })
        });
        let mut all = histogram()?;
        for caller in callers.collect::<Vec<_>>() {
            all.add(caller.await??)?;
        }
        Ok(all)
    }

    /// Runs pgbench with this number of clients on one thread. Returns its transactions per second.
    async fn pgbench(&self, reference: &Reference<'_>, clients: usize) -> Result<f64> {
        let script = self.work_dir.write("pgbench.sql", reference.sql)?;
        let seconds = self.duration.as_secs().max(1);
        let output = Command::new(postgres_program("pgbench")?)
            .args(["--no-vacuum", "--protocol=prepared", "--jobs=1"])
            .args([format!("--client={clients}"), format!("--time={seconds}")])
            .args([format!("--define=users={}", reference.users)])
            .arg(format!("--file={}", script.display()))
            .arg(reference.url)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let limit = 2 * self.duration + Duration::from_secs(60);
        let output = tokio::time::timeout(limit, output).await??;
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "pgbench failed: {stderr}");
        parse_tps(&stdout).with_context(|| format!("no tps in the output of pgbench: {stdout}"))
    }

    fn order_call(&self, caller: usize, variant: Variant) -> OrderCall {
        OrderCall {
            client: self.orders[caller % self.orders.len()].clone(),
            user_ids: Arc::clone(&self.user_ids),
            next: caller * 37,
            variant,
        }
    }

    fn user_call(&self, caller: usize, variant: Variant) -> UserCall {
        UserCall {
            client: self.users[caller % self.users.len()].clone(),
            emails: Arc::clone(&self.emails),
            variant,
        }
    }

    fn cpu(&self) -> Result<CpuSeconds> {
        let stack = &self.system.stack;
        let servers = self
            .system
            .servers
            .as_ref()
            .context("the servers are shared")?;
        let pid = |pid: Option<u32>| pid.context("a process has exited");
        Ok(CpuSeconds {
            user_service: cpu_s(pid(stack.user_service.pid())?)?,
            order_service: cpu_s(pid(stack.order_service.pid())?)?,
            outbox_relay: cpu_s(pid(stack.outbox_relay.pid())?)?,
            postgres: family_cpu_s(pid(servers.postgres.process.pid())?)?,
            kafka: cpu_s(pid(servers.kafka.process.pid())?)?,
            load_generator: cpu_s(std::process::id())?,
        })
    }
}

/// The pgbench statement that does the same work as a call.
struct Reference<'a> {
    url: &'a str,
    sql: &'a str,
    /// Number of users to choose from.
    users: usize,
}

/// A caller.
trait Call: Send + 'static {
    fn call(&mut self) -> impl Future<Output = Result<()>> + Send;
}

struct OrderCall {
    client: OrderServiceClient<Channel>,
    user_ids: Arc<[String]>,
    next: usize,
    variant: Variant,
}

impl Call for OrderCall {
    async fn call(&mut self) -> Result<()> {
        self.next += 1;
        let user = match self.variant.users {
            Users::Many => self.next % self.user_ids.len(),
            Users::Hot => 0,
        };
        let request = CreateOrderRequest {
            user_id: self.user_ids[user].clone(),
            amount: Some(demo::money("EUR", 19, 900_000_000)),
            request_id: self.variant.new_request_id(),
            ..CreateOrderRequest::default()
        };
        self.client.create_order(request).await?;
        Ok(())
    }
}

struct UserCall {
    client: UserServiceClient<Channel>,
    emails: Arc<AtomicU64>,
    variant: Variant,
}

impl Call for UserCall {
    async fn call(&mut self) -> Result<()> {
        let number = self.emails.fetch_add(1, Ordering::Relaxed);
        let request = CreateUserRequest {
            email: format!("new{number}@example.com"),
            name: "Ada Lovelace".to_owned(),
            request_id: self.variant.new_request_id(),
        };
        self.client.create_user(request).await?;
        Ok(())
    }
}

impl Variant {
    fn new_request_id(self) -> String {
        match self.request_id {
            true => uuid::Uuid::new_v4().to_string(),
            false => String::new(),
        }
    }
}

impl CpuSeconds {
    fn since(self, earlier: Self) -> Self {
        Self {
            user_service: self.user_service - earlier.user_service,
            order_service: self.order_service - earlier.order_service,
            outbox_relay: self.outbox_relay - earlier.outbox_relay,
            postgres: self.postgres - earlier.postgres,
            kafka: self.kafka - earlier.kafka,
            load_generator: self.load_generator - earlier.load_generator,
        }
    }
}

impl Figures {
    fn of(concurrency: usize, variant: Variant, runs: &[Run]) -> Result<Self> {
        let rate = drain::Spread::of(runs, |run| run.per_s)?;
        let mut latency = histogram()?;
        for run in runs {
            latency.add(&run.latency)?;
        }
        let spread = Spread::of(&latency);
        let median_of = |figure: fn(&CpuSeconds) -> f64| {
            drain::Spread::of(runs, |run| figure(&run.cpu_s)).map(|spread| spread.median)
        };
        Ok(Self {
            concurrency,
            users: variant.users,
            request_id: variant.request_id,
            calls_per_s: rate.median,
            calls_per_s_min: rate.min,
            calls_per_s_max: rate.max,
            p50_ms: spread.p50_ms,
            p99_ms: spread.p99_ms,
            pgbench_per_s: drain::Spread::of(runs, |run| run.pgbench_per_s)?.median,
            ratio: drain::Spread::of(runs, |run| run.per_s / run.pgbench_per_s)?.median,
            cpu_s: CpuSeconds {
                user_service: median_of(|cpu| cpu.user_service)?,
                order_service: median_of(|cpu| cpu.order_service)?,
                outbox_relay: median_of(|cpu| cpu.outbox_relay)?,
                postgres: median_of(|cpu| cpu.postgres)?,
                kafka: median_of(|cpu| cpu.kafka)?,
                load_generator: median_of(|cpu| cpu.load_generator)?,
            },
        })
    }
}

impl Throughput {
    /// Formats the report as Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "| call | concurrency | users | request_id | calls/s | p50, ms | p99 | pgbench/s | ratio | CPU-seconds: service | Postgres | load |\n\
             |---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for (call, all) in [
            ("CreateOrder", &self.create_order),
            ("CreateUser", &self.create_user),
        ] {
            for figures in all {
                let cpu_s = &figures.cpu_s;
                let service_cpu_s = match call {
                    "CreateOrder" => cpu_s.order_service,
                    _ => cpu_s.user_service,
                };
                let _ = writeln!(
                    text,
                    "| {call} | {} | {} | {} | {:.0} | {:.1} | {:.1} | {:.0} | {:.2} | {service_cpu_s:.1} | {:.1} | {:.1} |",
                    figures.concurrency,
                    if figures.users == Users::Hot {
                        "one"
                    } else {
                        "many"
                    },
                    if figures.request_id { "yes" } else { "no" },
                    figures.calls_per_s,
                    figures.p50_ms,
                    figures.p99_ms,
                    figures.pgbench_per_s,
                    figures.ratio,
                    cpu_s.postgres,
                    cpu_s.load_generator,
                );
            }
        }
        let _ = writeln!(
            text,
            "\npeak RSS, MiB: order-service {:.0}, user-service {:.0}",
            self.order_service_peak_rss_mib, self.user_service_peak_rss_mib
        );
        text
    }
}

/// Parses the transactions per second from the output of pgbench.
fn parse_tps(report: &str) -> Option<f64> {
    let line = report
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))?;
    line.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tps_is_parsed_from_pgbench_output() {
        let report = "number of failed transactions: 0 (0.000%)\nlatency average = 0.8 ms\n\
                      tps = 1180.123456 (without initial connection time)\n";
        assert_eq!(parse_tps(report), Some(1_180.123_456));
        assert_eq!(parse_tps("tps = -"), None);
    }
}
