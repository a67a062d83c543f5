//! The whole system and its gRPC clients. The demo and the end-to-end tests share it.

#![allow(missing_docs, reason = "a program, not a library")]

mod load;
mod system;

pub use load::{Load, Placed};
pub use system::{System, money};
