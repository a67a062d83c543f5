use std::net::SocketAddr;

use anyhow::{Context as _, Error, Result};
use clap::{Args, Parser};
use devstack::{Addresses, PATIENCE, Sql};
use service_kit::{Application, database::migrate};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// The command line of `serve`; what is given later wins.
#[derive(Parser)]
#[command(args_override_self = true)]
struct Serve<Options: Args> {
    #[command(flatten)]
    options: Options,
}

/// A service that runs in this process, and the session that looks into its database.
pub struct RunningService {
    /// Of the topic that it follows, and of its group.
    pub name: String,
    /// Where its database is.
    pub database_url: String,
    /// A session with it.
    pub sql: Sql,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Ends it.
    pub shutdown: CancellationToken,
    options: Vec<String>,
    channel: Channel,
    running: JoinHandle<Result<()>>,
}

impl RunningService {
    /// Makes a database for the service, and returns its URL.
    ///
    /// # Errors
    /// If Postgres does not.
    pub async fn create_database<A: Application>(name: &str) -> Result<String> {
        let url = Addresses::shared().create_database(name).await?;
        let migrated = migrate(&url.as_str().into(), A::migrations()).await;
        migrated.map_err(Error::from_boxed)?;
        Ok(url)
    }

    /// Starts the service on this database; `name` becomes the name of its group.
    ///
    /// # Errors
    /// If it does not start.
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

    /// Ends it, and starts it again on the same database.
    ///
    /// # Errors
    /// If it does not end, or does not start.
    pub async fn restart<A: Application>(self) -> Result<Self> {
        let (name, database_url) = (self.name.clone(), self.database_url.clone());
        let options = self.options.clone();
        self.stop().await?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Self::start::<A>(&name, &database_url, &options).await
    }

    /// Ends it, which takes no longer than the calls in flight.
    ///
    /// # Errors
    /// If it does not end, or with an error.
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// If it does not end, or with an error.
    pub async fn ended(self) -> Result<()> {
        let ended = tokio::time::timeout(PATIENCE, self.running).await;
        ended.context("it does not end")??
    }

    /// Whether it has ended; its process would be gone, and all calls with it.
    pub fn has_ended(&self) -> bool {
        self.running.is_finished()
    }

    /// A connection that all calls of the test share.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A connection of one's own.
    ///
    /// # Errors
    /// None: the address is one.
    pub fn endpoint(&self) -> Result<Endpoint> {
        Ok(Channel::from_shared(format!("http://{}", self.addr))?)
    }

    /// Another session with its database, for a transaction that stays open for a while.
    ///
    /// # Errors
    /// If it can't be opened.
    pub async fn session(&self) -> Result<Sql> {
        Sql::connect(&self.database_url).await
    }
}
