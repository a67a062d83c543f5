use uuid::Uuid;

/// How many events may have led to one, each caused by the one before it. Services that react to each
/// other's events in a circle would otherwise go on for ever.
pub const MAX_CAUSATION_DEPTH: u8 = 8;

/// An event that others are caused by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    pub(crate) event_id: Uuid,
    pub(crate) depth: u8,
}

/// The event was caused by so many others that none may follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{depth} events led to this one, and at most {MAX_CAUSATION_DEPTH} may lead to another; \
     do services react to each other in a circle?"
)]
pub struct ChainTooLong {
    depth: u8,
}

impl Cause {
    /// The event with this id (its `ce_id`), to which `depth` others led (its `ce_causationdepth`; 0
    /// without one).
    ///
    /// # Errors
    /// If nothing may follow from it any more.
    pub fn new(event_id: Uuid, depth: u8) -> Result<Self, ChainTooLong> {
        if depth >= MAX_CAUSATION_DEPTH {
            return Err(ChainTooLong { depth });
        }
        Ok(Self { event_id, depth })
    }
}
