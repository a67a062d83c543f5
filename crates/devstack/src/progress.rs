use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

/// Runs `work` and prints its progress to standard error: a line when it is done, and another after two seconds if it is
/// still running.
///
/// # Errors
/// The error of `work`.
pub async fn step<T, E>(what: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let started = Instant::now();
    let mut work = std::pin::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        () = tokio::time::sleep(Duration::from_secs(2)) => {
            eprintln!("   {what} ...");
            work.await
        }
    };
    let (mark, color) = if result.is_ok() {
        ("ok", "32")
    } else {
        ("failed", "31")
    };
    let seconds = started.elapsed().as_secs_f64();
    if stderr().is_terminal() {
        eprintln!("   {what}: \x1b[{color}m{mark}\x1b[0m ({seconds:.1} s)");
    } else {
        eprintln!("   {what}: {mark} ({seconds:.1} s)");
    }
    result
}
