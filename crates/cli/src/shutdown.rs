use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that SIGTERM or SIGINT cancels. A second signal exits at once with 128 plus its number,
/// without waiting for the drain.
///
/// # Errors
/// If a signal handler cannot be installed.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let shutdown = token.clone();
    tokio::spawn(async move {
        let mut next =
            async || tokio::select! { _ = terminate.recv() => 15, _ = interrupt.recv() => 2 };
        next().await;
        tracing::info!("received shutdown signal, draining");
        shutdown.cancel();
        let signal = next().await;
        tracing::warn!("received second shutdown signal, exiting immediately");
        std::process::exit(128 + signal);
    });
    Ok(token)
}
