#![doc = include_str!("../README.md")]

mod apply;
mod assignment;
mod command;
mod consumer;
mod dead_letter_topic;
mod dead_letter_upkeep;
pub mod dead_letters;
mod decoded;
mod following;
mod offsets;
mod options;
mod poison;
mod projection;
mod rebuild;
mod record;
mod redrive;
mod schema;
mod status;
mod topic;
mod topic_monitor;

pub use self::{
    command::{DeadLettersOptions, ProjectionOptions},
    consumer::follow,
    following::{Following, Options, State},
    options::{Configurable, FollowOptions, TopicOption},
    poison::Poison,
    projection::Projection,
    rebuild::{RebuildOptions, Rebuildable, Rebuilt, drop_replaced, rebuild},
    record::Record,
    redrive::{Redriven, redrive},
    status::{PartitionStatus, status},
};

/// The migrations of the offsets and the dead letters. Run them before the service's own.
pub const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
    diesel_migrations::embed_migrations!("migrations");
