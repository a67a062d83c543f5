//! Ends of publishing that are not errors.

use std::fmt;

use uuid::Uuid;

use crate::kafka::SinkError;

/// The end of publishing.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The relay shuts down. Everything sent is acknowledged, and the checkpoint is stored.
    Shutdown,
    /// The broker rejected a record and the sink is unusable. A new one continues from the checkpoint.
    Restart(Restart),
}

/// The reason why a new sink is needed, and how it starts.
#[derive(Debug)]
pub(super) struct Restart {
    pub(super) cause: Cause,
    /// The broker's error.
    pub(super) rejection: SinkError,
    /// Rows that are published one by one from the checkpoint on, which identifies the rejected record.
    pub(super) one_by_one_rows: u64,
}

/// The rejected record.
#[derive(Debug)]
pub(super) enum Cause {
    /// One of the records in flight. The broker does not name it.
    OneOfMany,
    /// This event, which is now parked or dead-lettered.
    Rejected { event_id: Uuid },
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::OneOfMany => write!(
                f,
                "one of {} records in flight was rejected and they are sent again one by one",
                self.one_by_one_rows
            )?,
            Cause::Rejected { event_id } => {
                write!(f, "event {event_id} was parked or dead-lettered")?;
            }
        }
        write!(f, ": {}", self.rejection)
    }
}
