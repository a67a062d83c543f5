//! Looks at everything that a configuration names, and says what is fine and what is not. Changes
//! nothing.
//!
//! `tables` has the SQL, `database` asks it, `brokers` asks Kafka.

mod brokers;
mod database;
mod mapped;
mod tables;

use std::fmt;

use serde::Serialize;
use tokio::net::TcpListener;

use crate::{config::Config, ops::admin};

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it is as it should be.
    pub level: Level,
    /// What it is about: `admin_addr`, `kafka`, or a source's name.
    pub subject: String,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It is.
    Pass,
    /// It can be as it is; good to know.
    Note,
    /// That could not be found out, for the reason that is given.
    Unknown,
    /// The relay would not publish, or not all, or not safely.
    Fail,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Pass => "PASS",
            Level::Note => "NOTE",
            Level::Unknown => "UNKNOWN",
            Level::Fail => "FAIL",
        };
        // What a server or a driver says can have several lines.
        let what = self.what.replace('\n', " ");
        write!(f, "{level:<7}  {}: {what}", self.subject)?;
        self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

/// What was found of one subject after the other.
struct Findings<'a> {
    subject: &'a str,
    all: &'a mut Vec<Finding>,
}

impl Findings<'_> {
    fn pass(&mut self, what: impl Into<String>) {
        self.add(Level::Pass, what.into(), None);
    }

    fn note(&mut self, what: impl Into<String>) {
        self.add(Level::Note, what.into(), None);
    }

    fn unknown(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Level::Unknown, what.into(), Some(hint.into()));
    }

    fn fail(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Level::Fail, what.into(), Some(hint.into()));
    }

    fn add(&mut self, level: Level, what: String, hint: Option<String>) {
        self.all.push(Finding {
            level,
            subject: self.subject.to_owned(),
            what,
            hint,
        });
    }
}

/// Looks at everything, one after the other; each look has its limit.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    check_admin_addr(config, &mut all).await;
    let mut outboxes = Vec::new();
    for source in &config.sources {
        let mut found = Findings {
            subject: &source.name,
            all: &mut all,
        };
        outboxes.push((source, database::check(source, &mut found).await));
    }
    brokers::check(&config.kafka, &outboxes, &mut all).await;
    all
}

async fn check_admin_addr(config: &Config, all: &mut Vec<Finding>) {
    let address = config.admin_addr;
    let mut found = Findings {
        subject: "admin_addr",
        all,
    };
    match TcpListener::bind(address).await {
        Ok(_) => found.pass(format!("{address} is free")),
        Err(err) => match admin::ask(address, "/livez").await {
            Ok((200, body)) if body == "alive\n" => {
                found.note(format!("a relay answers at {address}"));
            }
            _ => found.fail(
                format!("can't listen on {address}: {err}"),
                "set another address, or end what listens there",
            ),
        },
    }
}
