use std::net::SocketAddr;

use anyhow::{Context as _, Error, Result};
use clap::{Args, Parser};
use devstack::{Addresses, Sql, WAIT_TIMEOUT};
use service_kit::{Application, database::migrate};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// The command line of `serve`; later options override earlier ones.
#[derive(Parser)]
#[command(args_override_self = true)]
struct Serve<Options: Args> {
    #[command(flatten)]
    options: Options,
}

/// A service running in the test's process, with a session on its database.
pub struct RunningService {
    /// The name of its consumer group and of the topic that it consumes.
    pub name: String,
    pub database_url: String,
    pub sql: Sql,
    pub addr: SocketAddr,
    /// Stops the service.
    pub shutdown: CancellationToken,
    options: Vec<String>,
    channel: Channel,
    running: JoinHandle<Result<()>>,
}

impl RunningService {
    /// Creates and migrates a database for the service, and returns its URL.
    ///
    /// # Errors
    /// If Postgres returns an error.
    pub async fn create_database<A: Application>(name: &str) -> Result<String> {
        let url = Addresses::shared().create_database(name).await?;
        let migrated = migrate(A::NAME, &url.as_str().into(), A::migrations()).await;
        migrated.map_err(Error::from_boxed)?;
        Ok(url)
    }

    /// Starts the service on this database, with `name` as its consumer group.
    ///
    /// # Errors
    /// If the service fails to start.
    pub async fn start<A: Application>(
        name: &str,
        database_url: &str,
        options: &[&str],
    ) -> Result<Self> {
        let usual = [
            [A::NAME, "--listen-addr=127.0.0.1:0"],
            ["--database-url", database_url],
            ["--kafka-brokers", Addresses::shared().brokers()],
            ["--consumer-group", name],
        ];
        let arguments = usual.as_flattened().iter().chain(options);
        let Serve { options: parsed } = Serve::<A::Options>::try_parse_from(arguments)?;
        let service = Box::pin(A::bind(parsed)).await?;
        let (addr, shutdown) = (service.local_addr(), CancellationToken::new());
        let running = service.run(shutdown.clone());
        let running = tokio::spawn(async { running.await.map_err(Error::from_boxed) });
        Ok(Self {
            name: name.to_owned(),
            database_url: database_url.to_owned(),
            sql: Sql::connect(database_url).await?,
            addr,
            shutdown,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            channel: Channel::from_shared(format!("http://{addr}"))?.connect_lazy(),
            running,
        })
    }

    /// Stops the service and starts it on the same database.
    ///
    /// # Errors
    /// If the service fails to stop or to start.
    pub async fn restart<A: Application>(self) -> Result<Self> {
        let (name, database_url) = (self.name.clone(), self.database_url.clone());
        let options = self.options.clone();
        self.stop().await?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Self::start::<A>(&name, &database_url, &options).await
    }

    /// Stops the service after the calls in flight.
    ///
    /// # Errors
    /// If the service does not stop, or returns an error.
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits until the service has stopped.
    ///
    /// # Errors
    /// If the service does not stop, or returns an error.
    pub async fn ended(self) -> Result<()> {
        let ended = tokio::time::timeout(WAIT_TIMEOUT, self.running).await;
        ended.context("the service did not stop")??
    }

    /// Returns whether the service has stopped.
    pub fn has_ended(&self) -> bool {
        self.running.is_finished()
    }

    /// Returns the shared connection.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns an endpoint for a separate connection.
    ///
    /// # Errors
    /// Never; the address is valid.
    pub fn endpoint(&self) -> Result<Endpoint> {
        Ok(Channel::from_shared(format!("http://{}", self.addr))?)
    }

    /// Opens another session on the database, for a long transaction.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn session(&self) -> Result<Sql> {
        Sql::connect(&self.database_url).await
    }
}
