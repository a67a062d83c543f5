//! Test helpers of the services. Used only as a dev-dependency.
#![allow(missing_docs, reason = "a program, not a library")]

mod calls;
mod command;
mod poison;
mod service;

pub use self::{
    calls::{assert_rejection, at_last},
    command::{assert_told, run},
    poison::{Header, Kind, median, time_to_hear},
    service::RunningService,
};
