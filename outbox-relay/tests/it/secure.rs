//! Connections that nobody listens in on, and who is let in.

mod certificates;
mod postgres;
mod role;
