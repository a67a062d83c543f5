//! The subcommand `dead-letters` of a service with a projection.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};
use cli::{print_error, say, visible};
use diesel_async::AsyncPgConnection;
use serde_json::{Value, json};

use crate::{
    Configurable, Projection, RedriveOutcome,
    dead_letters::{self, DeadLetter, Summary},
    offsets::ensure_projection_exists,
    options::NameOption,
    redrive,
};

/// Dead letters that `redrive --all` loads at a time.
const PAGE_SIZE: i64 = 100;

/// The options of `dead-letters`.
#[derive(Args, Debug)]
pub struct DeadLettersOptions<P: Configurable> {
    #[command(flatten)]
    name: NameOption<P>,
    #[command(flatten)]
    projection: P::Options,
    #[command(subcommand)]
    command: DeadLettersCommand,
}

impl<P: Configurable> DeadLettersOptions<P> {
    /// Runs the subcommand and prints its result.
    ///
    /// # Errors
    /// If the projection does not exist, or the database fails.
    pub async fn run(self, conn: &mut AsyncPgConnection) -> Result<ExitCode> {
        let projection = P::from_options(self.projection);
        let name = self.name.consumer_group;
        self.command.run(conn, &projection, &name).await
    }
}

/// The subcommands of `dead-letters`.
#[derive(Clone, Debug, Subcommand)]
enum DeadLettersCommand {
    /// List dead letters, oldest first, without their contents
    List {
        /// List at most this many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
        /// List dead letters with an id greater than this (pagination)
        #[arg(long, default_value_t = 0)]
        after: i64,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show a dead letter with its headers and payload, which may contain personal data; exits with 1 if not found
    Show {
        /// The id of the dead letter
        id: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Apply dead letters again and delete those that succeed; exits with 1 if one fails
    Redrive {
        /// The ids of the dead letters
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// Redrive all dead letters
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Delete dead letters permanently; their copies in the dead-letter topic stay; exits with 1 if one is not found
    Drop {
        /// The ids of the dead letters
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}

impl DeadLettersCommand {
    async fn run<P: Projection>(
        self,
        conn: &mut AsyncPgConnection,
        projection: &P,
        name: &str,
    ) -> Result<ExitCode> {
        ensure_projection_exists(conn, name).await?;
        match self {
            Self::List { limit, after, json } => {
                let dead_letters = dead_letters::list(conn, name, after, limit).await?;
                for dead_letter in &dead_letters {
                    say!(
                        "{}",
                        if json {
                            summary_json(dead_letter).to_string()
                        } else {
                            format_line(dead_letter)
                        }
                    );
                }
                if dead_letters.is_empty() && !json {
                    print_error(format_args!("projection {name} has no dead letters"));
                }
                Ok(ExitCode::SUCCESS)
            }
            Self::Show { id, json } => {
                let Some(dead_letter) = dead_letters::find(conn, name, id).await? else {
                    print_error(format_args!(
                        "dead letter {id} of projection {name} not found"
                    ));
                    return Ok(ExitCode::FAILURE);
                };
                say!(
                    "{}",
                    if json {
                        full_json(&dead_letter).to_string()
                    } else {
                        format_page(&dead_letter)
                    }
                );
                Ok(ExitCode::SUCCESS)
            }
            Self::Redrive { ids, all: false } => redrive_ids(conn, projection, name, &ids).await,
            Self::Redrive { all: true, .. } => redrive_all(conn, projection, name).await,
            Self::Drop { ids } => {
                let mut code = ExitCode::SUCCESS;
                for id in ids {
                    if dead_letters::drop_dead_letter(conn, name, id).await? {
                        say!("{id}\tdropped");
                    } else {
                        say!("{id}\tnot found");
                        code = ExitCode::FAILURE;
                    }
                }
                Ok(code)
            }
        }
    }
}

async fn redrive_ids<P: Projection>(
    conn: &mut AsyncPgConnection,
    projection: &P,
    name: &str,
    ids: &[i64],
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match redrive(conn, projection, name, *id).await? {
            RedriveOutcome::Applied => {
                say!("{id}\tapplied");
            }
            RedriveOutcome::Poison(poison) => {
                say!("{id}\tfailed: {poison}");
                code = ExitCode::FAILURE;
            }
            RedriveOutcome::Erased => {
                say!(
                    "{id}\tfailed: its contents are erased. Rebuild the projection to read the record from \
                     its topic again, or delete the dead letter with `dead-letters drop`."
                );
                code = ExitCode::FAILURE;
            }
            RedriveOutcome::NotFound => {
                say!("{id}\tnot found");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn redrive_all<P: Projection>(
    conn: &mut AsyncPgConnection,
    projection: &P,
    name: &str,
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut after = 0;
    loop {
        let dead_letters = dead_letters::list(conn, name, after, PAGE_SIZE).await?;
        let ids: Vec<i64> = dead_letters
            .iter()
            .map(|dead_letter| dead_letter.dead_letter_id)
            .collect();
        let Some(last) = ids.last() else {
            return Ok(code);
        };
        after = *last;
        if redrive_ids(conn, projection, name, &ids).await? == ExitCode::FAILURE {
            code = ExitCode::FAILURE;
        }
    }
}

fn format_line(dead_letter: &Summary) -> String {
    let erased = dead_letter.erased_at.map_or("", |_| "\terased");
    format!(
        "{}\t{}\t{}[{}]@{}\tkey {}\t{}: {}{erased}",
        dead_letter.dead_letter_id,
        dead_letter.dead_lettered_at.format("%Y-%m-%dT%H:%M:%SZ"),
        dead_letter.topic,
        dead_letter.partition,
        dead_letter.record_offset,
        dead_letter
            .key
            .as_deref()
            .map_or_else(|| "-".to_owned(), escape),
        dead_letter.error_class,
        dead_letter.error,
    )
}

fn format_page(dead_letter: &DeadLetter) -> String {
    let mut page = format_line(&dead_letter.summary).replace('\t', "\n");
    for (name, value) in dead_letter.headers() {
        let _ = write!(
            page,
            "\nheader {}: {}",
            name.escape_default(),
            value.map_or_else(String::new, escape)
        );
    }
    let payload = dead_letter.payload.as_deref();
    let _ = write!(
        page,
        "\npayload {}",
        payload.map_or_else(|| "none".to_owned(), escape)
    );
    page
}

fn summary_json(dead_letter: &Summary) -> Value {
    json!({
        "id": dead_letter.dead_letter_id,
        "dead_lettered_at": dead_letter.dead_lettered_at,
        "topic": dead_letter.topic,
        "partition": dead_letter.partition,
        "offset": dead_letter.record_offset,
        "key": dead_letter.key.as_deref().map(escape),
        "class": dead_letter.error_class,
        "error": dead_letter.error,
        "erased_at": dead_letter.erased_at,
    })
}

fn full_json(dead_letter: &DeadLetter) -> Value {
    let mut value = summary_json(&dead_letter.summary);
    let headers = dead_letter.headers();
    let headers: Vec<_> = headers
        .map(|(name, value)| json!({ "name": name, "value": value.map(escape) }))
        .collect();
    value["headers"] = headers.into();
    value["payload"] = dead_letter.payload.as_deref().map(escape).into();
    value
}

/// Escapes what a terminal would obey, and all bytes that are not UTF-8.
fn escape(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => visible(text).into_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}
