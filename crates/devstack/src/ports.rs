use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::TcpListener,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

/// Below the ephemeral port range (from 32768 on Linux): an outgoing connection could take one of those ports before the
/// server binds it.
const PORTS: Range<u16> = 15_000..32_000;
const ATTEMPTS: usize = 100;

/// The ports that this process has returned. A server binds its port only after seconds.
static RETURNED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Returns a random free loopback port. No caller in this process gets it again, and one in another process is unlikely to get it.
///
/// # Errors
/// If all attempted ports are in use.
pub fn free_port() -> io::Result<u16> {
    for _ in 0..ATTEMPTS {
        let random = u16::try_from(Uuid::new_v4().as_u128() % PORTS.len() as u128).unwrap_or(0);
        let port = PORTS.start + random;
        let mut returned = RETURNED.lock().unwrap_or_else(PoisonError::into_inner);
        if !returned.insert(port) {
            continue;
        }
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
