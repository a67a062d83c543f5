#![doc = include_str!("../README.md")]

mod apply;
mod assignment;
mod command;
mod consumer;
mod database;
mod dead_letter_maintenance;
mod dead_letter_topic;
pub mod dead_letters;
mod decoded;
mod handle;
mod offsets;
mod options;
mod poison;
mod progress;
mod projection;
mod projection_command;
mod rebuild;
mod record;
mod redrive;
mod reset;
mod schema;
mod status;
mod supervisor;
mod topic;
mod topic_log;
mod topic_monitor;

pub use self::{
    command::DeadLettersOptions,
    consumer::spawn_consumer,
    handle::{ConsumerConfig, ConsumerHandle, ConsumerState},
    options::{Configurable, ConsumerOptions, TopicOption},
    poison::Poison,
    projection::Projection,
    projection_command::ProjectionOptions,
    rebuild::{RebuildOptions, RebuildStats, Rebuildable, drop_replaced, rebuild},
    record::Record,
    redrive::{RedriveOutcome, redrive},
    reset::{ResetMode, ResetPartition, reset},
    status::{PartitionStatus, status},
};

/// The migrations of `projection_offsets` and `dead_letters`. Run them before the service's own.
pub const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
    diesel_migrations::embed_migrations!("migrations");
