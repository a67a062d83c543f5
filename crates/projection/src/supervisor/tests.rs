use ConsumerState::{Running, Starting};

use super::*;
use crate::{
    offsets::StoredOffset,
    progress::{Activity, Pending, Reported},
    topic_log::LogIdentity,
};

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(30);

/// A case is built backwards from the time of the decision.
struct Case {
    now: Instant,
    progress: Observations,
}

impl Case {
    /// A consumer that has just begun to poll, and has not joined.
    fn new() -> Self {
        let now = Instant::now() + 2 * QUEUED_LIMIT;
        let mut progress = Observations::new(now);
        progress.activity.0 = Activity::Polling;
        Self { now, progress }
    }

    fn joined(age: Duration) -> Self {
        let mut case = Self::new();
        case.progress.joined_at = Some(case.now - age);
        case
    }

    fn partition(mut self, number: i32, change: impl Fn(&mut PartitionProgress, Instant)) -> Self {
        let stored = StoredOffset {
            next: 7,
            log: LogIdentity::default(),
        };
        let mut partition = PartitionProgress::new(stored, self.now - LONG);
        change(&mut partition, self.now);
        self.progress.partitions.insert(number, partition);
        self
    }

    fn confirmed(self, number: i32, age: Duration) -> Self {
        self.partition(number, |at, now| at.confirmed_at = Some(now - age))
    }

    fn advanced(self, number: i32, age: Duration) -> Self {
        self.partition(number, |at, now| at.advanced_at = Some(now - age))
    }

    fn pending(self, number: i32, age: Duration) -> Self {
        self.partition(number, |at, now| {
            let since = now - age;
            at.pending = Some(Pending { offset: 9, since });
        })
    }

    fn error(mut self, age: Duration) -> Self {
        let at = self.now - age;
        let reason = "an error".to_owned();
        self.progress.error = Some(Reported { reason, at });
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Observations, Instant)) -> Self {
        change(&mut self.progress, self.now);
        self
    }

    fn decide(&self, was: &ConsumerState) -> ConsumerState {
        decide(&self.progress, was, self.now)
    }
}

fn failing(reason: &str) -> ConsumerState {
    ConsumerState::Failing(reason.to_owned())
}

#[test]
fn a_consumer_is_running_while_each_partition_has_recent_evidence() {
    let second = Duration::from_secs(1);
    let was_failing = failing("an error");
    for (what, case, was, expected) in [
        ("not joined", Case::new(), Starting, Starting),
        (
            "lost its partitions",
            Case::new(),
            Running,
            failing("waiting for the consumer group to assign partitions"),
        ),
        (
            "not read yet",
            Case::joined(second)
                .confirmed(0, second)
                .partition(1, |at, now| at.assigned_at = now - second),
            Starting,
            Starting,
        ),
        (
            "confirmed",
            Case::joined(second).confirmed(0, second),
            Starting,
            Running,
        ),
        (
            "advancing",
            Case::joined(LONG).advanced(0, second),
            Running,
            Running,
        ),
        (
            "catching up",
            Case::joined(second).pending(0, second),
            Starting,
            Running,
        ),
        (
            "no partitions, not read yet",
            Case::joined(second),
            Starting,
            Starting,
        ),
        (
            "no partitions",
            Case::joined(LONG).with(|at, now| at.idle_read_at = Some(now - SHORT)),
            Starting,
            Running,
        ),
        (
            "no partitions, silent Kafka",
            Case::joined(LONG).with(|at, now| at.idle_read_at = Some(now - LONG)),
            Running,
            failing("no response from Kafka for more than 10 s"),
        ),
        (
            "an error after the evidence of one partition",
            Case::joined(LONG)
                .confirmed(0, second)
                .advanced(1, SHORT)
                .error(3 * second),
            Running,
            failing("an error"),
        ),
        (
            "an error without evidence, for long",
            Case::joined(LONG).pending(0, second).error(LONG),
            Running,
            failing("an error"),
        ),
        (
            "evidence of both after the error",
            Case::joined(LONG)
                .confirmed(0, second)
                .advanced(1, second)
                .error(SHORT),
            was_failing,
            Running,
        ),
        (
            "an error of the group",
            Case::joined(LONG).confirmed(0, second).with(|at, now| {
                let reason = "an error".to_owned();
                at.group_error = Some(Reported {
                    reason,
                    at: now - LONG,
                });
            }),
            Running,
            failing("an error"),
        ),
        (
            "unconfirmed",
            Case::joined(LONG)
                .confirmed(0, LONG)
                .with(|at, _| at.monitor_error = Some("no connection to Kafka".to_owned())),
            Running,
            failing(
                "no confirmation from Kafka for partition 0 for more than 10 s: no connection to Kafka",
            ),
        ),
        (
            "not applied",
            Case::joined(LONG).pending(0, LONG),
            Running,
            failing("records from offset 9 of partition 0 are not applied"),
        ),
        (
            "queued behind another partition",
            Case::joined(LONG).pending(0, LONG).advanced(1, second),
            Running,
            Running,
        ),
        (
            "not applied, while another partition advances",
            Case::joined(LONG)
                .pending(0, QUEUED_LIMIT + second)
                .advanced(1, second),
            Running,
            failing("records from offset 9 of partition 0 are not applied"),
        ),
        (
            "a hanging transaction",
            Case::joined(LONG)
                .confirmed(0, second)
                .with(|at, now| at.activity = (Activity::Applying, now - LONG)),
            Running,
            failing(
                "no progress for more than 10 s while applying records: no response from the database",
            ),
        ),
        (
            "stopped",
            Case::joined(LONG)
                .error(second)
                .with(|at, _| at.stopped = Some("a reason".to_owned())),
            Running,
            ConsumerState::Stopped("a reason".to_owned()),
        ),
    ] {
        assert_eq!(case.decide(&was), expected, "{what}");
    }
}
