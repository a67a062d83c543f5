//! The time for which a leader may send.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Between two looks at a lease that has run out.
const PAUSE: Duration = Duration::from_millis(10);

/// The time for which nobody else can have become the leader. It is renewed with every sign of life
/// that reaches the database; without one it runs out, by this process's own clock, and nothing is
/// sent until it is renewed.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    term: Duration,
    origin: Instant,
    /// Milliseconds after `origin`.
    renewed_at: AtomicU64,
}

impl Lease {
    /// A lease that begins now and runs for `term` from each renewal.
    pub fn new(term: Duration) -> Self {
        Self(Arc::new(Inner {
            term,
            origin: Instant::now(),
            renewed_at: AtomicU64::new(0),
        }))
    }

    /// Begins the term anew, from the moment `at`: the one before the sign of life was sent, because
    /// it may have taken effect at once.
    pub(crate) fn renew(&self, at: Instant) {
        let elapsed = at.saturating_duration_since(self.0.origin).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        self.0.renewed_at.fetch_max(elapsed, Ordering::AcqRel);
    }

    /// Waits until the lease holds.
    pub(crate) async fn wait(&self) {
        while self.has_run_out() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn has_run_out(&self) -> bool {
        let renewed_at = Duration::from_millis(self.0.renewed_at.load(Ordering::Acquire));
        self.0.origin.elapsed().saturating_sub(renewed_at) > self.0.term
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_out_and_is_renewed() {
        let lease = Lease::new(Duration::from_millis(50));
        assert!(!lease.has_run_out());
        std::thread::sleep(Duration::from_millis(70));
        assert!(lease.has_run_out());
        lease.renew(Instant::now());
        assert!(!lease.has_run_out());
    }
}
