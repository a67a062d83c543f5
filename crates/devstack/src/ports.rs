use std::{io, net::TcpListener};

/// A port of the loopback that nobody listens on.
///
/// Another program may take it before the server does; the server then ends at once and its log
/// says why, which is rare enough on a developer's machine.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
