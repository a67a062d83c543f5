//! What the tests of the services share. A dev-dependency, and of nothing else.

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
