//! How publishing ends without an error.

use std::fmt;

use uuid::Uuid;

use crate::kafka::SinkError;

/// How publishing ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The relay shuts down: everything that was sent is acknowledged and noted.
    Shutdown,
    /// The broker rejected a record, which leaves the sink unusable: a new one goes on from the checkpoint.
    Restart(Restart),
}

/// What a restart is for.
#[derive(Debug)]
pub(super) struct Restart {
    pub(super) cause: Cause,
    /// What the broker says of the record.
    pub(super) rejection: SinkError,
    /// Rows that are published one at a time from the checkpoint on, which shows the record that the broker rejects.
    pub(super) one_at_a_time: u64,
}

/// What the broker rejected.
#[derive(Debug)]
pub(super) enum Cause {
    /// One of the records in flight; nobody knows which.
    OneOfMany,
    /// This event, which is parked or a dead letter now.
    Rejected { event_id: Uuid },
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::OneOfMany => write!(
                f,
                "one of {} records on their way was rejected; they are sent one by one now",
                self.one_at_a_time
            )?,
            Cause::Rejected { event_id } => write!(f, "event {event_id} was set aside")?,
        }
        write!(f, ": {}", self.rejection)
    }
}
