//! Opens connections to brokers: TCP, then TLS and SASL if configured.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use tls::{TlsFiles, Verification};

use crate::{
    Error, Options,
    connection::{Connection, unavailable, with_hint, with_timeout, with_tls_hint},
    sasl::authenticate,
};

/// The part of a SASL session's lifetime after which the connection is replaced. The rest is for requests in flight.
const USED_LIFETIME_PERCENT: u32 = 80;

/// Connects to `host:port`, with TLS and SASL as configured. Each of the at most five waits, for TCP, TLS, a token and messages of SASL,
/// is limited by `options.timeout`.
///
/// # Errors
/// If the broker does not respond in time, a file can't be read, or TLS or SASL fails.
pub async fn dial(address: &str, options: &Options) -> Result<Connection, Error> {
    let timeout = options.timeout;
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let stream = with_timeout(timeout, address, connecting).await?;
    let mut connection = match &options.security.tls {
        None => {
            let (reader, writer) = stream.into_split();
            Connection::new(address, options, reader, writer)
        }
        Some(files) => {
            let (reader, writer) = encrypt(stream, files, address, options).await?;
            Connection::new(address, options, reader, writer)
        }
    };
    if let Some(sasl) = &options.security.sasl {
        let now = Instant::now();
        let expires_at = authenticate(&mut connection, sasl, options).await?;
        connection.stale_at = expires_at.map(|end| now + (end - now) * USED_LIFETIME_PERCENT / 100);
    }
    connection.set_authenticated();
    Ok(connection)
}

/// Starts TLS. The files are read now.
async fn encrypt(
    stream: TcpStream,
    files: &TlsFiles,
    address: &str,
    options: &Options,
) -> Result<(impl AsyncRead + use<>, impl AsyncWrite + use<>), Error> {
    let config = files.load(Verification::Name);
    let config = config.map_err(|err| Error::Unavailable(err.to_string()))?;
    let (host, _) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(host).map_err(|err| unavailable(address, err))?;
    let connecting = async {
        // Boxed because the handshake's future is much larger than the futures that await it.
        let connecting = Box::pin(TlsConnector::from(Arc::new(config)).connect(name, stream));
        connecting.await.map_err(|err| {
            if err.kind() == io::ErrorKind::UnexpectedEof {
                return with_hint(err, options.hints.remove_tls);
            }
            with_tls_hint(err, options.hints)
        })
    };
    Ok(tokio::io::split(
        with_timeout(options.timeout, address, connecting).await?,
    ))
}
