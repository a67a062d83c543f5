use std::collections::HashMap;

use kafka_protocol::{
    messages::{ApiKey, MetadataResponse},
    protocol::Request,
};

use crate::{
    Connection, Error, Options, Throttled, TopicMetadata,
    dial::dial,
    metadata::{parse_topics, request},
};

/// The oldest version with the features used here, and the oldest with topic ids.
const METADATA_VERSIONS: [i16; 2] = [9, 10];
/// The limit on brokers from the metadata that a new connection is tried with.
const MAX_KNOWN_BROKERS: usize = 10;

/// A client of a cluster. It keeps a connection to one broker, and one to each partition leader that it sent requests
/// to. The next call replaces a connection that failed or that the broker closed.
///
/// A method waits at most [`Options::timeout`] for each response, after a throttle time that the last one announced. If it has to connect, it waits at most eight times as
/// long for each broker it tries: for TCP, TLS, a token or three messages of SASL, ApiVersions and Metadata. All methods are
/// cancel-safe.
pub struct Cluster {
    bootstrap: Vec<String>,
    pub(crate) options: Options,
    connection: Connection,
    /// The addresses of the brokers from the last metadata, by id.
    addresses: HashMap<i32, String>,
    /// Connections to partition leaders, by broker id.
    pub(crate) leaders: HashMap<i32, Connection>,
}

impl Cluster {
    /// Connects to the first of these brokers that responds: `host:port`, separated by commas.
    ///
    /// # Errors
    /// The error of the last broker, if none responds.
    pub async fn connect(brokers: &str, options: Options) -> Result<Self, Error> {
        let bootstrap: Vec<String> = (brokers.split(','))
            .map(|address| address.trim().to_owned())
            .collect();
        let (connection, metadata) = connect_to_any(&bootstrap, &options).await?;
        Ok(Self {
            bootstrap,
            options,
            connection,
            addresses: addresses(&metadata),
            leaders: HashMap::new(),
        })
    }

    /// The parameters of its connections.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The address of the broker that [`call`](Self::call) sends requests to.
    pub fn connected_to(&self) -> &str {
        &self.connection.address
    }

    /// The number of brokers in the last metadata.
    pub fn broker_count(&self) -> usize {
        self.addresses.len()
    }

    /// Returns the address of a broker from the last metadata.
    ///
    /// # Errors
    /// If the broker is not in it.
    pub fn address(&self, broker: i32) -> Result<&str, Error> {
        let address = self.addresses.get(&broker).map(String::as_str);
        address.ok_or_else(|| Error::Unavailable(format!("broker {broker} is not in the metadata")))
    }

    /// Describes a topic.
    ///
    /// # Errors
    /// [`UnknownTopic`](Error::UnknownTopic), and those of [`topics`](Self::topics).
    pub async fn topic(&mut self, name: &str) -> Result<TopicMetadata, Error> {
        let found = self.topics(&[name]).await?.remove(name);
        found.ok_or_else(|| Error::UnknownTopic(name.to_owned()))
    }

    /// Describes topics. Missing ones are left out of the result.
    ///
    /// # Errors
    /// [`TopicDenied`](Error::TopicDenied), [`InvalidTopic`](Error::InvalidTopic), or
    /// [`Unavailable`](Error::Unavailable).
    pub async fn topics(
        &mut self,
        names: &[&str],
    ) -> Result<HashMap<String, TopicMetadata>, Error> {
        self.ensure_connected().await?;
        let metadata = fetch_metadata(&mut self.connection, names, &self.options).await?;
        self.set_addresses(&metadata);
        parse_topics(metadata, names, &self.connection.address)
    }

    /// Sends a request to any broker and waits for the response.
    ///
    /// # Errors
    /// If no broker responds.
    pub async fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<R::Response, Error>
    where
        R::Response: Throttled,
    {
        self.ensure_connected().await?;
        let timeout = self.options.timeout;
        self.connection.call(request, version, timeout).await
    }

    /// Replaces the connection if it has failed: with the same broker, one of the bootstrap brokers, or one in the last
    /// metadata.
    async fn ensure_connected(&mut self) -> Result<(), Error> {
        if self.connection.is_open().await {
            return Ok(());
        }
        let mut candidates = vec![self.connection.address.clone()];
        let known = self.addresses.values().take(MAX_KNOWN_BROKERS);
        for address in self.bootstrap.iter().chain(known) {
            if !candidates.contains(address) {
                candidates.push(address.clone());
            }
        }
        let (connection, metadata) = connect_to_any(&candidates, &self.options).await?;
        self.connection = connection;
        self.set_addresses(&metadata);
        Ok(())
    }

    /// Remembers the addresses of the brokers, and closes connections to removed ones.
    fn set_addresses(&mut self, metadata: &MetadataResponse) {
        self.addresses = addresses(metadata);
        let addresses = &self.addresses;
        self.leaders.retain(|id, _| addresses.contains_key(id));
    }
}

async fn connect_to_any(
    candidates: &[String],
    options: &Options,
) -> Result<(Connection, MetadataResponse), Error> {
    let mut last = Error::Unavailable("no brokers are configured".into());
    for address in candidates {
        match connect_to(address, options).await {
            Ok(connected) => return Ok(connected),
            Err(err) => last = err,
        }
    }
    Err(last)
}

async fn connect_to(
    address: &str,
    options: &Options,
) -> Result<(Connection, MetadataResponse), Error> {
    let mut connection = dial(address, options).await?;
    connection.negotiate_versions(options).await?;
    let metadata = fetch_metadata(&mut connection, &[], options).await?;
    Ok((connection, metadata))
}

async fn fetch_metadata(
    connection: &mut Connection,
    topics: &[&str],
    options: &Options,
) -> Result<MetadataResponse, Error> {
    let [oldest, with_ids] = METADATA_VERSIONS;
    let version = match connection.versions.supports(ApiKey::Metadata, with_ids) {
        true => with_ids,
        false => oldest,
    };
    connection.require(ApiKey::Metadata, version)?;
    let request = request(topics);
    connection.call(&request, version, options.timeout).await
}

fn addresses(metadata: &MetadataResponse) -> HashMap<i32, String> {
    let brokers = metadata.brokers.iter();
    brokers
        .map(|broker| (broker.node_id.0, format!("{}:{}", broker.host, broker.port)))
        .collect()
}
