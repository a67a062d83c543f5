//! Connections that nobody listens in on, on both sides of the relay, and who is let in.

pub(crate) mod broker;
pub(crate) mod certificates;
mod kafka;
mod kept_out;
mod lasting;
mod postgres;
mod role;
mod secrets;
