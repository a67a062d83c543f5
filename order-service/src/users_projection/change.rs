//! The changes of a user that records carry.

use outbox::Cause;
use projection::{Poison, Record};
use proto::events::{self, User, header};
use uuid::Uuid;

use crate::store::UserDeletion;

/// The version of an ended user, after which no version follows.
///
/// A tombstone without a version cannot take the one that its user has when it is applied: at a replay or a rebuild
/// that is another one, and the end of an old version would end a newer one and cancel its orders. As the greatest
/// version it has the same effect however often it is read and in which batches, and no repeated or late record
/// restores the user.
pub(super) const FINAL_VERSION: i64 = i64::MAX;

/// A change of a user, from a record.
#[derive(Debug)]
pub enum UserChange {
    Upserted {
        user_id: Uuid,
        email: String,
        name: String,
        version: i64,
    },
    Deleted {
        user_id: Uuid,
        /// The last version.
        version: i64,
        /// The event, if it had a `ce_id`.
        cause: Option<Cause>,
    },
    /// The end of a user from a tombstone that user-service did not write. It changes only a known user.
    Ended {
        user_id: Uuid,
        /// The record, if it had a `ce_id`.
        cause: Option<Cause>,
    },
}

impl UserChange {
    /// Decodes an event. Returns `None` for an unknown type.
    ///
    /// # Errors
    /// [`Poison`] if the record is not a valid user event.
    pub(super) fn from_event(record: &Record<'_>) -> Result<Option<Self>, Poison> {
        if !events::USER_TYPES.contains(&record.event_type()?) {
            return Ok(None);
        }
        let user: User = record.payload_json()?;
        if record.key_text()? != user.user_id.to_string() {
            return Err(Poison::new("key", "must be the payload's user_id"));
        }
        if user.version < 1 {
            return Err(Poison::new("payload", "version must be positive"));
        }
        // JSON allows this character, and Postgres does not.
        if user.email.contains('\0') || user.name.contains('\0') {
            return Err(Poison::new(
                "payload",
                "must not contain the character U+0000",
            ));
        }
        Ok(Some(if user.deleted {
            Self::Deleted {
                user_id: user.user_id,
                version: user.version,
                cause: parse_cause(record)?,
            }
        } else {
            Self::Upserted {
                user_id: user.user_id,
                email: user.email,
                name: user.name,
                version: user.version,
            }
        }))
    }

    /// Decodes a tombstone. Returns `None` if its key is not the id of a user.
    ///
    /// The tombstone that user-service writes after a deletion counts as that deletion, because compaction may have
    /// removed the event before it. Every other tombstone is an end, whatever its headers are: tools may write none,
    /// or those of another record.
    pub(super) fn from_tombstone(tombstone: &Record<'_>) -> Option<Self> {
        let key = tombstone.key_text().ok()?;
        let user_id: Uuid = key.parse().ok()?;
        // In another notation it is another key, and compaction keeps the user's records.
        if user_id.to_string() != key {
            return None;
        }
        let cause = parse_cause(tombstone).ok().flatten();
        Some(match parse_deletion_version(tombstone) {
            Some(version) => Self::Deleted {
                user_id,
                version,
                cause,
            },
            None => Self::Ended { user_id, cause },
        })
    }

    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }

    pub(super) fn user_id(&self) -> Uuid {
        let (Self::Upserted { user_id, .. }
        | Self::Deleted { user_id, .. }
        | Self::Ended { user_id, .. }) = self;
        *user_id
    }

    pub(super) fn version(&self) -> i64 {
        match self {
            Self::Upserted { version, .. } | Self::Deleted { version, .. } => *version,
            Self::Ended { .. } => FINAL_VERSION,
        }
    }

    pub(super) fn email(&self) -> Option<&str> {
        match self {
            Self::Upserted { email, .. } => Some(email),
            Self::Deleted { .. } | Self::Ended { .. } => None,
        }
    }

    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Upserted { name, .. } => Some(name),
            Self::Deleted { .. } | Self::Ended { .. } => None,
        }
    }

    pub(super) fn deletion(&self) -> Option<UserDeletion> {
        match *self {
            Self::Upserted { .. } => None,
            Self::Deleted { user_id, cause, .. } | Self::Ended { user_id, cause } => {
                Some(UserDeletion { user_id, cause })
            }
        }
    }
}

/// Returns the version of a tombstone of user-service, or `None` for any other tombstone.
fn parse_deletion_version(tombstone: &Record<'_>) -> Option<i64> {
    if tombstone.event_type().ok()? != events::USER_DELETED {
        return None;
    }
    let version = tombstone.required_header(header::AGGREGATE_VERSION).ok()?;
    let version: i64 = version.parse().ok()?;
    (version >= 1).then_some(version)
}

/// Returns the record as the cause of other events, or `None` if it has no event id. Headers are not
/// trusted: another producer may have written them.
fn parse_cause(record: &Record<'_>) -> Result<Option<Cause>, Poison> {
    let id = record.header(header::ID);
    let Some(event_id) = id.and_then(|id| Uuid::try_parse_ascii(id).ok()) else {
        return Ok(None);
    };
    let depth = match record.header(header::CAUSATION_DEPTH) {
        None => 0,
        Some(_) => record
            .required_header(header::CAUSATION_DEPTH)?
            .parse()
            .map_err(|_| {
                Poison::new("header", "ce_causationdepth must be a number from 0 to 255")
            })?,
    };
    let cause = Cause::new(event_id, depth).map_err(|err| Poison::new("chain", err))?;
    Ok(Some(cause))
}
