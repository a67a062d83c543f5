//! Checks everything that a configuration names. Changes nothing.
//!
//! `tables` and `mapped` have the SQL rules, `database` applies them, `brokers` checks Kafka.

mod brokers;
mod database;
mod mapped;
mod tables;

use std::fmt;

use serde::Serialize;
use tokio::net::TcpListener;

use crate::{config::Config, ops::admin};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The result.
    pub level: Level,
    /// The checked part of the configuration: `admin_addr`, `kafka`, or the name of a source.
    pub subject: String,
    /// The fact that was found.
    pub what: String,
    /// The fix: a sentence, or an SQL statement to execute.
    pub hint: Option<String>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As required.
    Pass,
    /// Acceptable, but worth knowing.
    Note,
    /// Could not be checked, for the given reason.
    Unknown,
    /// The relay would not publish, or not every row, or not safely.
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
        // The message of a server or a driver can have several lines.
        let what = self.what.replace('\n', " ");
        write!(f, "{level:<7}  {}: {what}", self.subject)?;
        self.hint
            .iter()
            .try_for_each(|hint| write!(f, ". Hint: {hint}"))
    }
}

/// Collects the findings of one subject.
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

/// Checks the whole configuration, one part after the other. Every request has a time limit.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    check_admin_addr(config, &mut all).await;
    let mut outboxes = Vec::new();
    for source in &config.sources {
        let mut found = Findings {
            subject: &source.name,
            all: &mut all,
        };
        outboxes.push((source, database::check_database(source, &mut found).await));
    }
    brokers::check_brokers(&config.kafka, &outboxes, &mut all).await;
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
                found.note(format!("a relay is running at {address}"));
            }
            _ => found.fail(
                format!("failed to listen on {address}: {err}"),
                "Set another address, or stop the process that listens there.",
            ),
        },
    }
}
