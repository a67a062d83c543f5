use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once, so that a
/// person at a terminal is never held by a drain.
///
/// # Errors
/// If the signals can't be listened for.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let asked = token.clone();
    tokio::spawn(async move {
        let mut next =
            async || tokio::select! { _ = terminate.recv() => 15, _ = interrupt.recv() => 2 };
        next().await;
        tracing::info!("asked to end");
        asked.cancel();
        let signal = next().await;
        tracing::warn!("asked again to end, ending at once");
        std::process::exit(128 + signal);
    });
    Ok(token)
}
