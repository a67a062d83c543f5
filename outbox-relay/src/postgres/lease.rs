//! The lease: the time for which a leader may send records.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The interval between two checks of an expired lease.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The time for which no other relay can have become the leader. Each heartbeat that reaches the database renews
/// it. An expired lease, measured by this process's monotonic clock, blocks sending until the next renewal.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    duration: Duration,
    origin: Instant,
    /// Milliseconds after `origin`.
    renewed_at: AtomicU64,
}

impl Lease {
    /// Returns a lease that starts now and lasts for `duration` after each renewal.
    pub fn new(duration: Duration) -> Self {
        Self(Arc::new(Inner {
            duration,
            origin: Instant::now(),
            renewed_at: AtomicU64::new(0),
        }))
    }

    /// Renews the lease from `at`, the time before the heartbeat was sent: the heartbeat may have taken effect
    /// immediately.
    pub(crate) fn renew(&self, at: Instant) {
        let elapsed = at.saturating_duration_since(self.0.origin).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        self.0.renewed_at.fetch_max(elapsed, Ordering::AcqRel);
    }

    /// Waits until the lease is valid.
    pub(crate) async fn wait_until_valid(&self) {
        while self.has_expired() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn has_expired(&self) -> bool {
        let renewed_at = Duration::from_millis(self.0.renewed_at.load(Ordering::Acquire));
        self.0.origin.elapsed().saturating_sub(renewed_at) > self.0.duration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_expires_until_it_is_renewed() {
        let lease = Lease::new(Duration::from_millis(50));
        assert!(!lease.has_expired());
        std::thread::sleep(Duration::from_millis(70));
        assert!(lease.has_expired());
        lease.renew(Instant::now());
        assert!(!lease.has_expired());
    }
}
