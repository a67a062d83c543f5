use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    ports::free_port,
    processes::{Process, Program},
    progress::step,
    servers::Addresses,
    work_dir::WorkDir,
};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Must not change: another count would move keys to other partitions.
const PARTITIONS: i32 = 6;

/// The system without its servers: both services and the relay, on free ports, with their own databases and topics.
#[derive(Debug)]
pub struct Stack {
    pub user_service: Process,
    pub order_service: Process,
    pub outbox_relay: Process,
    names: Names,
    work_dir: Arc<WorkDir>,
}

/// The addresses, databases and topics of a [`Stack`].
#[derive(Clone, Debug)]
pub struct Names {
    pub user_service_addr: String,
    pub order_service_addr: String,
    pub relay_admin_addr: String,
    pub brokers: String,
    pub users_database_url: String,
    pub orders_database_url: String,
    pub users_topic: String,
    pub orders_topic: String,
}

impl Stack {
    /// Starts all programs and waits until they are healthy. `prefix` is prepended to the names of databases and topics, so
    /// that several stacks can share servers. `variables` are set for all programs.
    ///
    /// # Errors
    /// If a program is not built, or is not healthy in time.
    pub async fn start(
        work_dir: &Arc<WorkDir>,
        servers: &Addresses,
        prefix: &str,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let names = Names::create(servers, prefix).await?;
        let bin = Executables::stage(work_dir)?;
        let with_variables = |program: Program| {
            let set = |program: Program, (name, value): &(&str, &str)| program.env(name, value);
            variables.iter().fold(program, set)
        };
        let migrate = |service: &str, url: &str| {
            let program = Program::new(&format!("{service}-migrate"), bin.of(service));
            with_variables(program)
                .args(["migrate"])
                .env("DATABASE_URL", url)
        };
        let (users, orders) = (&names.users_database_url, &names.orders_database_url);
        step("migrating both databases", async {
            migrate("user-service", users).run_once(work_dir).await?;
            migrate("order-service", orders).run_once(work_dir).await
        })
        .await?;

        let serve = |service: &str, addr: &str, url: &str| {
            let program = Program::new(service, bin.of(service))
                .args(["serve"])
                .env("LISTEN_ADDR", addr)
                .env("DATABASE_URL", url)
                .env("KAFKA_BROKERS", &names.brokers)
                .env("USERS_TOPIC", &names.users_topic)
                .env("ORDERS_TOPIC", &names.orders_topic)
                // The services' default, so their commands need no option.
                .env(
                    "CONSUMER_GROUP",
                    format!("{prefix}{}_group", service.replace('-', "_")),
                )
                .env("DEAD_LETTER_TOPIC", names.dead_letter_topic(service))
                .env("INSTANCE_ID", "1")
                // Used only if VALIDATION enables it.
                .env("USER_SERVICE_ADDR", &names.user_service_addr);
            // Last, so that they override the others.
            with_variables(program)
        };
        let stack = Self {
            user_service: Process::start(
                work_dir,
                serve("user-service", &names.user_service_addr, users),
            ),
            order_service: Process::start(
                work_dir,
                serve("order-service", &names.order_service_addr, orders),
            ),
            outbox_relay: Process::start(work_dir, with_variables(names.relay(work_dir, &bin)?)),
            names,
            work_dir: Arc::clone(work_dir),
        };
        step(
            "starting user-service, order-service and outbox-relay",
            stack.wait_healthy(&bin),
        )
        .await?;
        Ok(stack)
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Returns the variables of `endpoints.env`, except those of the servers.
    pub fn endpoints(&self) -> Vec<(&'static str, String)> {
        let pid = |process: &Process| process.pid().map(|pid| pid.to_string()).unwrap_or_default();
        let names = self.names.clone();
        vec![
            ("USER_SERVICE_ADDR", names.user_service_addr),
            ("ORDER_SERVICE_ADDR", names.order_service_addr),
            ("RELAY_ADMIN_ADDR", names.relay_admin_addr),
            ("KAFKA_BROKERS", names.brokers),
            ("USERS_DATABASE_URL", names.users_database_url),
            ("ORDERS_DATABASE_URL", names.orders_database_url),
            ("USER_SERVICE_PID", pid(&self.user_service)),
            ("ORDER_SERVICE_PID", pid(&self.order_service)),
            ("OUTBOX_RELAY_PID", pid(&self.outbox_relay)),
        ]
    }

    /// Stops all programs gracefully.
    pub async fn stop(self) {
        tokio::join!(
            self.user_service.stop(),
            self.order_service.stop(),
            self.outbox_relay.stop(),
        );
    }

    async fn wait_healthy(&self, bin: &Executables) -> Result<()> {
        let healthcheck = |process: &str, addr: &str| {
            Program::new(&format!("{process}-healthcheck"), bin.of(process))
                .args(["healthcheck"])
                .env("LISTEN_ADDR", addr)
                .env(
                    "OUTBOX_RELAY_CONFIG",
                    self.work_dir.path().join(RELAY_CONFIG).display(),
                )
        };
        let wait = async |process: &Process, name: &str, addr: &str| {
            let program = healthcheck(name, addr);
            process
                .wait_ready(START_TIMEOUT, async || {
                    program.run_once(&self.work_dir).await
                })
                .await
        };
        let Names {
            user_service_addr,
            order_service_addr,
            ..
        } = &self.names;
        tokio::try_join!(
            wait(&self.user_service, "user-service", user_service_addr),
            wait(&self.order_service, "order-service", order_service_addr),
            wait(&self.outbox_relay, "outbox-relay", ""),
        )?;
        Ok(())
    }
}

const RELAY_CONFIG: &str = "outbox-relay.toml";

impl Names {
    /// Creates the databases and topics, and finds free ports.
    async fn create(servers: &Addresses, prefix: &str) -> Result<Self> {
        let addr = || free_port().map(|port| format!("127.0.0.1:{port}"));
        let (users_topic, orders_topic) =
            (format!("{prefix}users.v1"), format!("{prefix}orders.v1"));
        step("creating topics and databases", async {
            for topic in [&users_topic, &orders_topic] {
                servers.create_topic(topic, PARTITIONS).await?;
            }
            let names = Self {
                user_service_addr: addr()?,
                order_service_addr: addr()?,
                relay_admin_addr: addr()?,
                brokers: servers.brokers().to_owned(),
                users_database_url: servers.create_database(&format!("{prefix}users")).await?,
                orders_database_url: servers.create_database(&format!("{prefix}orders")).await?,
                users_topic: users_topic.clone(),
                orders_topic: orders_topic.clone(),
            };
            for service in ["user-service", "order-service"] {
                let topic = names.dead_letter_topic(service);
                servers.create_dead_letter_topic(&topic).await?;
            }
            Ok::<_, anyhow::Error>(names)
        })
        .await
    }

    /// Returns the dead-letter topic of a service.
    pub fn dead_letter_topic(&self, service: &str) -> String {
        let followed = match service {
            "user-service" => &self.orders_topic,
            _ => &self.users_topic,
        };
        format!("{followed}.dlq.{service}")
    }

    fn relay(&self, work_dir: &WorkDir, bin: &Executables) -> Result<Program> {
        // Secrets are passed as environment variables, as in compose.yaml.
        let config = format!(
            "admin_addr = \"{}\"\n[kafka]\nbrokers = \"{}\"\n\
             [[source]]\nname = \"users\"\nce_source = \"/user-service\"\n\
             [[source]]\nname = \"orders\"\nce_source = \"/order-service\"\n",
            self.relay_admin_addr, self.brokers,
        );
        let config = work_dir.write(RELAY_CONFIG, &config)?;
        Ok(Program::new("outbox-relay", bin.of("outbox-relay"))
            .args(["run"])
            .env("OUTBOX_RELAY_CONFIG", config.display())
            .env("OUTBOX_RELAY_USERS_DATABASE_URL", &self.users_database_url)
            .env(
                "OUTBOX_RELAY_ORDERS_DATABASE_URL",
                &self.orders_database_url,
            ))
    }
}

/// The directory of the programs, copied to where the unprivileged user can run them.
struct Executables(PathBuf);

impl Executables {
    fn stage(work_dir: &WorkDir) -> Result<Self> {
        let built = built_programs()?;
        let mut folder = None;
        for program in ["user-service", "order-service", "outbox-relay"] {
            folder = work_dir
                .stage(&built.join(program))?
                .parent()
                .map(Path::to_owned);
        }
        Ok(Self(folder.context("an executable has a directory")?))
    }

    fn of(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }
}

/// Returns cargo's output directory, from the path of the current executable.
///
/// # Errors
/// If that path is unknown.
pub fn built_programs() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let folder = own.parent().context("an executable has a directory")?;
    // Tests and examples are in a subdirectory.
    let folder = match folder.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => folder
            .parent()
            .context("deps and examples have a parent directory")?,
        _ => folder,
    };
    Ok(folder.to_owned())
}
