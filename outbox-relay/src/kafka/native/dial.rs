//! The way to a broker: TCP, TLS, and the login, each where it is asked for.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{
    connection::{Connection, explained, unavailable, with_way_out, within},
    login::log_in,
};
use crate::{
    config::KafkaConfig,
    kafka::SinkError,
    tls::{TlsFiles, Verification},
};

/// A login is used for so many hundredths of its lifetime. The rest is for what is on its way by then.
const USED_PERCENT: u32 = 80;

/// Connects to `host:port`, speaks TLS and logs in, as `kafka` says.
pub(super) async fn dial(address: &str, kafka: &KafkaConfig) -> Result<Connection, SinkError> {
    let timeout = kafka.delivery_timeout;
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let stream = within(timeout, address, connecting).await?;
    let mut connection = match &kafka.security.tls {
        None => {
            let (reader, writer) = stream.into_split();
            Connection::new(address, reader, writer)
        }
        Some(files) => {
            let (reader, writer) = encrypt(stream, files, address, timeout).await?;
            Connection::new(address, reader, writer)
        }
    };
    if let Some(sasl) = &kafka.security.sasl {
        let now = Instant::now();
        let ends_at = log_in(&mut connection, sasl, timeout).await?;
        connection.stale_at = ends_at.map(|end| now + (end - now) * USED_PERCENT / 100);
    }
    connection.logged_in();
    Ok(connection)
}

/// Speaks TLS from here on, with the files as they are now.
async fn encrypt(
    stream: TcpStream,
    files: &TlsFiles,
    address: &str,
    timeout: Duration,
) -> Result<(impl AsyncRead + use<>, impl AsyncWrite + use<>), SinkError> {
    let config = files.load(Verification::Name);
    let config = config.map_err(|err| SinkError::Unavailable(err.to_string()))?;
    let (host, _) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(host).map_err(|err| unavailable(address, err))?;
    let connecting = async {
        // On the heap, because a handshake needs more room than everything that waits for it.
        let connecting = Box::pin(TlsConnector::from(Arc::new(config)).connect(name, stream));
        connecting.await.map_err(|err| {
            if err.kind() == io::ErrorKind::UnexpectedEof {
                return with_way_out(err, "does this port speak TLS? If not, remove [kafka.tls]");
            }
            explained(err)
        })
    };
    Ok(tokio::io::split(
        within(timeout, address, connecting).await?,
    ))
}
