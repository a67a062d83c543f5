use uuid::Uuid;

/// The limit on the length of a causal chain. It ends cycles of services that react to each other's events.
pub const MAX_CAUSATION_DEPTH: u8 = 8;

/// The event that causes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    pub(crate) event_id: Uuid,
    pub(crate) depth: u8,
}

/// The causal chain has reached [`MAX_CAUSATION_DEPTH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the event has causation depth {depth}, and the maximum is {MAX_CAUSATION_DEPTH}; check for services that react to \
     each other's events in a cycle"
)]
pub struct ChainTooLong {
    depth: u8,
}

impl Cause {
    /// Returns the cause with this event id (`ce_id`) and depth (`ce_causationdepth`, or 0 without that header).
    ///
    /// # Errors
    /// If `depth` is [`MAX_CAUSATION_DEPTH`] or more.
    pub fn new(event_id: Uuid, depth: u8) -> Result<Self, ChainTooLong> {
        if depth >= MAX_CAUSATION_DEPTH {
            return Err(ChainTooLong { depth });
        }
        Ok(Self { event_id, depth })
    }
}
