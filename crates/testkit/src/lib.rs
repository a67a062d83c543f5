//! Test helpers of the services. Used only as a dev-dependency.
#![allow(missing_docs, reason = "used only in this workspace")]

mod calls;
mod command;
mod poison;
mod service;

pub use self::{
    calls::{assert_rejection, retry_call},
    command::{assert_config_errors, run},
    poison::{Header, PoisonRecord, median, time_to_apply},
    service::RunningService,
};
