use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::activity::Activity;

/// A connection that is idle for less time is not closed to admit another: its client may be slow.
const MIN_IDLE_TIME: Duration = Duration::from_secs(2);
/// The delay before the next attempt to admit a connection while none is idle.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The minimum time between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The limits on open connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// All connections.
    pub(crate) total: usize,
    /// The connections of one peer. No limit of its own if it is not below `total`.
    pub(crate) per_peer: usize,
}

/// The open connections. At a limit, a new one replaces the one that has been idle for longest.
#[derive(Debug)]
pub(super) struct OpenConnections {
    limits: ConnectionLimits,
    by_peer: Mutex<ByPeer>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct ByPeer {
    connections: HashMap<Peer, HashMap<u64, Arc<Activity>>>,
    count: usize,
    next_id: u64,
    last_warning: Option<Instant>,
}

/// The place of a connection among the open ones, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    open: Arc<OpenConnections>,
    peer: Peer,
    id: u64,
    pub(super) activity: Arc<Activity>,
}

enum Admission {
    Admitted { id: u64, activity: Arc<Activity> },
    TooManyOfPeer,
    Full,
}

/// A client address; for IPv6 the network of a site (/64), whose addresses a client can choose freely.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Peer(IpAddr);

impl Peer {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            IpAddr::V6(address) => Self(Ipv6Addr::from(u128::from(address) >> 64 << 64).into()),
        }
    }
}

impl OpenConnections {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            by_peer: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// Admits a connection, and waits while all are in use. Returns `None` if its peer has too many that are in use.
    pub(super) async fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let peer = Peer::of(address);
        loop {
            let admission = self.by_peer.lock().try_admit(peer, self.limits);
            match admission {
                Admission::Admitted { id, activity } => {
                    return Some(Slot {
                        open: Arc::clone(self),
                        peer,
                        id,
                        activity,
                    });
                }
                Admission::TooManyOfPeer => return None,
                Admission::Full => {
                    let _ = timeout(RETRY_DELAY, self.freed.notified()).await;
                }
            }
        }
    }
}

impl ByPeer {
    fn try_admit(&mut self, peer: Peer, limits: ConnectionLimits) -> Admission {
        let of_peer = self.connections.get(&peer).map_or(0, HashMap::len);
        if limits.per_peer < limits.total && of_peer >= limits.per_peer {
            self.warn("MAX_CONNECTIONS_PER_PEER");
            if !self.close_idlest(|candidate| candidate == peer) {
                return Admission::TooManyOfPeer;
            }
        }
        if self.count >= limits.total {
            self.warn("MAX_CONNECTIONS");
            if !self.close_idlest(|_| true) {
                return Admission::Full;
            }
        }
        let activity = Arc::new(Activity::new());
        let id = self.next_id;
        self.next_id += 1;
        self.count += 1;
        let of_peer = self.connections.entry(peer).or_default();
        of_peer.insert(id, Arc::clone(&activity));
        Admission::Admitted { id, activity }
    }

    /// Closes the connection of these peers that has been idle for longest; returns false if none is idle.
    fn close_idlest(&mut self, is_candidate: impl Fn(Peer) -> bool) -> bool {
        let candidates = (self.connections.iter()).filter(|(peer, _)| is_candidate(**peer));
        let idle = candidates.flat_map(|(peer, connections)| {
            connections.iter().filter_map(|(id, activity)| {
                let idle_time = (activity.idle_time()).filter(|time| *time >= MIN_IDLE_TIME)?;
                Some((idle_time, *peer, *id))
            })
        });
        let Some((_, peer, id)) = idle.max_by_key(|(idle_time, ..)| *idle_time) else {
            return false;
        };
        if let Some(activity) = self.remove(peer, id) {
            activity.close.cancel();
        }
        true
    }

    fn remove(&mut self, peer: Peer, id: u64) -> Option<Arc<Activity>> {
        let of_peer = self.connections.get_mut(&peer)?;
        let removed = of_peer.remove(&id)?;
        if of_peer.is_empty() {
            self.connections.remove(&peer);
        }
        self.count -= 1;
        Some(removed)
    }

    fn warn(&mut self, limit: &'static str) {
        if (self.last_warning).is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            tracing::warn!(limit, "connection limit reached, closing idle connections");
            self.last_warning = Some(Instant::now());
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.by_peer.lock().remove(self.peer, self.id);
        self.open.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_clients_of_one_network_and_mapped_ipv4_addresses_are_one_peer() {
        let peer = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
        assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
        assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
    }
}
