//! The progress of a consumer. Its threads report it, and the supervisor derives the state from it.
//!
//! A lock and not channels: each report replaces the previous one, and a reporter never waits.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::{
    offsets::{OffsetRanges, StoredOffset},
    topic_log::{Epoch, LogIdentity},
};

/// The limit of each activity. All of them usually take milliseconds.
pub(crate) const ACTIVITY_LIMIT: Duration = Duration::from_secs(10);

/// The operation of the consumer's thread. Each can hang without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Connecting,
    Polling,
    RequestingOffsets,
    LoadingOffsets,
    Decoding,
    Applying,
    Pausing,
    Closing,
}

impl Activity {
    /// Describes an activity that exceeds its limit.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Connecting => "connecting to Kafka",
            Self::Polling => "polling Kafka",
            Self::RequestingOffsets => "requesting offsets: no response from Kafka",
            Self::LoadingOffsets => "loading offsets: no response from the database",
            Self::Decoding => "decoding records",
            Self::Applying => "applying records: no response from the database",
            Self::Pausing => "pausing before a retry",
            Self::Closing => "leaving the consumer group: no response from Kafka",
        }
    }
}

/// An error that was reported, and the time of the report.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    pub(crate) reason: String,
    pub(crate) at: Instant,
}

/// The progress in an assigned partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionProgress {
    /// The offset of the next record.
    pub(crate) next: i64,
    /// The log that `next` belongs to.
    pub(crate) log: LogIdentity,
    pub(crate) assigned_at: Instant,
    /// The last time records were applied. Until then librdkafka may still return records that it fetched
    /// during an earlier assignment.
    pub(crate) advanced_at: Option<Instant>,
    /// The last time Kafka returned the end of the partition at `next`.
    pub(crate) confirmed_at: Option<Instant>,
    pub(crate) pending: Option<Pending>,
}

/// A record that Kafka returned to the monitor, and that the consumer has not applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) offset: i64,
    pub(crate) since: Instant,
}

impl PartitionProgress {
    pub(crate) fn new(stored: StoredOffset, now: Instant) -> Self {
        Self {
            next: stored.next,
            log: stored.log,
            assigned_at: now,
            advanced_at: None,
            confirmed_at: None,
            pending: None,
        }
    }

    /// The last time that everything Kafka had was applied, or something more was.
    pub(crate) fn last_evidence(&self) -> Option<Instant> {
        self.advanced_at.max(self.confirmed_at)
    }

    fn advance(&mut self, next: i64, now: Instant) {
        self.next = next;
        self.advanced_at = Some(now);
        self.pending = self.pending.filter(|pending| pending.offset >= next);
    }
}

/// The result of reading a partition at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    End,
    /// A record at this offset, which is higher if compaction has removed records.
    Record(i64),
}

/// The inputs of the supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Observations {
    pub(crate) activity: (Activity, Instant),
    /// The time when the group assigned partitions, possibly none.
    pub(crate) joined_at: Option<Instant>,
    pub(crate) partitions: BTreeMap<i32, PartitionProgress>,
    /// The last time Kafka returned the end of a partition while none was assigned.
    pub(crate) idle_read_at: Option<Instant>,
    /// The last error, until evidence for each partition is newer.
    pub(crate) error: Option<Reported>,
    /// The last error of the consumer group, until it assigns partitions.
    pub(crate) group_error: Option<Reported>,
    /// The error of the monitor's latest check.
    pub(crate) monitor_error: Option<String>,
    /// The reason of a permanent stop.
    pub(crate) stopped: Option<String>,
}

impl Observations {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            activity: (Activity::Connecting, now),
            joined_at: None,
            partitions: BTreeMap::new(),
            idle_read_at: None,
            error: None,
            group_error: None,
            monitor_error: None,
            stopped: None,
        }
    }

    /// The time since which there is evidence for every partition; `None` if one has none.
    pub(crate) fn oldest_evidence(&self) -> Option<Instant> {
        if self.partitions.is_empty() {
            return self.idle_read_at;
        }
        let evidence = self.partitions.values().map(|at| at.last_evidence());
        evidence.min().flatten()
    }
}

pub(crate) struct Progress {
    observations: Mutex<Observations>,
    /// Notified of everything that can change the state at once.
    pub(crate) changed: Notify,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            observations: Mutex::new(Observations::new(Instant::now())),
            changed: Notify::new(),
        }
    }

    pub(crate) fn observations(&self) -> MutexGuard<'_, Observations> {
        self.observations.lock()
    }

    fn update(&self, change: impl FnOnce(&mut Observations)) {
        change(&mut self.observations.lock());
        self.changed.notify_one();
    }

    pub(crate) fn begin(&self, activity: Activity) {
        self.observations.lock().activity = (activity, Instant::now());
    }

    /// Returns the time since the current activity began.
    pub(crate) fn activity_age(&self) -> Duration {
        self.observations.lock().activity.1.elapsed()
    }

    /// Forgets the partitions of a consumer that is replaced.
    pub(crate) fn reset(&self) {
        self.update(|now| {
            now.partitions.clear();
            now.joined_at = None;
            now.idle_read_at = None;
        });
    }

    pub(crate) fn report_error(&self, reason: String) {
        let at = Instant::now();
        self.update(|now| now.error = Some(Reported { reason, at }));
    }

    pub(crate) fn report_group_error(&self, reason: String) {
        let at = Instant::now();
        self.update(|now| now.group_error = Some(Reported { reason, at }));
    }

    pub(crate) fn stop(&self, reason: String) {
        self.update(|now| now.stopped = Some(reason));
    }

    /// Adds partitions at their next offsets.
    pub(crate) fn assign(&self, offsets: &[(i32, StoredOffset)]) {
        let at = Instant::now();
        self.update(|now| {
            for (partition, stored) in offsets {
                let progress = PartitionProgress::new(*stored, at);
                now.partitions.insert(*partition, progress);
            }
            now.joined_at = Some(at);
            now.group_error = None;
        });
    }

    pub(crate) fn unassign(&self, partitions: &[i32]) {
        self.update(|now| {
            for partition in partitions {
                now.partitions.remove(partition);
            }
            if now.partitions.is_empty() {
                now.joined_at = None;
                now.idle_read_at = None;
            }
        });
    }

    /// Advances the positions to the ends of these ranges, which the database has committed.
    pub(crate) fn advance(&self, ranges: &OffsetRanges) {
        let at = Instant::now();
        let mut now = self.observations.lock();
        for (partition, (_, next)) in ranges {
            if let Some(progress) = now.partitions.get_mut(partition) {
                progress.advance(*next, at);
            }
        }
    }

    /// Stores the result of a read at `next`, unless the consumer has advanced since.
    pub(crate) fn confirm(&self, partition: i32, next: i64, found: Found) {
        let at = Instant::now();
        self.update(|now| {
            let Some(progress) = now.partitions.get_mut(&partition) else {
                return;
            };
            if progress.next != next {
                return;
            }
            match found {
                Found::End => {
                    progress.confirmed_at = Some(at);
                    progress.pending = None;
                }
                Found::Record(offset) => {
                    let pending = progress
                        .pending
                        .get_or_insert(Pending { offset, since: at });
                    pending.offset = offset;
                }
            }
        });
    }

    /// Returns the next offset of each assigned partition, and its log.
    pub(crate) fn stored_offsets(&self) -> BTreeMap<i32, StoredOffset> {
        let now = self.observations.lock();
        let stored = now.partitions.iter().map(|(partition, at)| {
            let (next, log) = (at.next, at.log);
            (*partition, StoredOffset { next, log })
        });
        stored.collect()
    }

    /// Stores epochs that the database has committed.
    pub(crate) fn set_epochs(&self, epochs: &BTreeMap<i32, Epoch>) {
        let mut now = self.observations.lock();
        for (partition, epoch) in epochs {
            if let Some(progress) = now.partitions.get_mut(partition) {
                progress.log.epoch = Some(*epoch);
            }
        }
    }

    /// Stores that Kafka returned the end of a partition while none was assigned.
    pub(crate) fn confirm_idle(&self) {
        self.update(|now| now.idle_read_at = Some(Instant::now()));
    }

    pub(crate) fn set_monitor_error(&self, error: Option<String>) {
        self.update(|now| now.monitor_error = error);
    }

    /// Returns an empty range at the next offset of each assigned partition.
    pub(crate) fn positions(&self) -> OffsetRanges {
        let now = self.observations.lock();
        let partitions = now.partitions.iter();
        partitions
            .map(|(partition, at)| (*partition, (at.next, at.next)))
            .collect()
    }
}
