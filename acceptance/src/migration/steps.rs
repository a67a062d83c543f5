//! The documented SQL steps, read from the file that users run.

use anyhow::{Context as _, Result, anyhow};
use devstack::{Sql, split_statements};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

const COLUMNS_ONLINE: &str = include_str!("../../../outbox-relay/sql/columns-online.sql");

/// One lettered part of the file.
pub(super) struct Step {
    /// The letter and the first words of its comment.
    pub(super) title: String,
    statements: Vec<String>,
}

/// The result of one attempt.
pub(super) enum Attempt {
    /// The step is done. Holds the last printed value, if any.
    Done(Option<String>),
    /// The step ran into `lock_timeout`.
    TimedOut,
}

/// Reads all steps in order.
pub(super) fn read() -> Result<[Step; 4]> {
    let mut steps: Vec<Step> = Vec::new();
    // Statements before the first step belong to it.
    let mut code = String::new();
    for line in COLUMNS_ONLINE.lines() {
        let Some(comment) = line.strip_prefix("-- ") else {
            code.push_str(line);
            code.push('\n');
            continue;
        };
        if matches!(comment.as_bytes(), [b'A'..=b'Z', b'.', b' ', ..]) {
            if let Some(step) = steps.last_mut() {
                step.add_statements(&mut code);
            }
            let end = comment.find([',', ':']).unwrap_or(comment.len());
            let end = comment
                .match_indices(". ")
                .nth(1)
                .map_or(end, |(at, _)| at.min(end));
            steps.push(Step {
                title: comment[..end].trim_end_matches('.').to_owned(),
                statements: Vec::new(),
            });
        }
    }
    let last = steps.last_mut().context("the file has no steps")?;
    last.add_statements(&mut code);
    let steps = steps.try_into();
    steps.map_err(|_| anyhow!("the file does not have four steps"))
}

impl Step {
    fn add_statements(&mut self, code: &mut String) {
        self.statements
            .extend(split_statements(&std::mem::take(code)));
    }

    /// Runs it once, statement by statement, as psql does.
    pub(super) async fn attempt(&self, sql: &Sql) -> Result<Attempt> {
        let mut printed = None;
        for statement in &self.statements {
            match sql.simple_query(statement).await {
                Ok(messages) => {
                    for message in messages {
                        if let SimpleQueryMessage::Row(row) = message {
                            printed = row.get(0).map(str::to_owned);
                        }
                    }
                }
                Err(err) if err.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    return Ok(Attempt::TimedOut);
                }
                Err(err) => return Err(err).with_context(|| statement.clone()),
            }
        }
        Ok(Attempt::Done(printed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_split_into_its_steps() {
        let steps = read().unwrap();
        let statements = steps.iter().map(|step| step.statements.len());
        assert_eq!(statements.collect::<Vec<_>>(), [4, 2, 3, 3]);
        let titles = steps.iter().map(|step| step.title.as_str());
        let expected = [
            "A. Columns without a default",
            "B. The sequence",
            "C. The indexes",
            "D. The defaults",
        ];
        assert_eq!(titles.collect::<Vec<_>>(), expected);
    }
}
