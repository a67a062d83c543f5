#![doc = include_str!("../README.md")]

mod cause;
mod enqueue;
mod event;
mod schema;

pub use cause::{Cause, ChainTooLong, MAX_CAUSATION_DEPTH};
pub use enqueue::{enqueue, enqueue_all};
pub use event::Event;

/// The migrations of the outbox and of the relay's checkpoints. Run them before the service's own.
pub const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
    diesel_migrations::embed_migrations!("migrations");
