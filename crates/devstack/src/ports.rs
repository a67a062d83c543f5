use std::{
    io::{self, ErrorKind},
    net::TcpListener,
    ops::Range,
};

use uuid::Uuid;

/// Below the ephemeral port range (from 32768 on Linux): an outgoing connection could take one of those ports before the
/// server binds it.
const PORTS: Range<u16> = 15_000..32_000;
const ATTEMPTS: usize = 100;

/// Returns a random free loopback port. Concurrent callers are unlikely to get the same one.
///
/// # Errors
/// If all attempted ports are in use.
pub fn free_port() -> io::Result<u16> {
    for _ in 0..ATTEMPTS {
        let random = u16::try_from(Uuid::new_v4().as_u128() % PORTS.len() as u128).unwrap_or(0);
        let port = PORTS.start + random;
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        ErrorKind::AddrInUse,
        format!("no free port among {ATTEMPTS} random ports in {PORTS:?}"),
    ))
}
