//! The subcommands `dead-letters` and `projection` of a service that follows a topic.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};
use cli::{KafkaOptions, complain, say, visible};
use diesel_async::AsyncPgConnection;
use serde_json::{Value, json};

use crate::{
    Configurable, Projection, RebuildOptions, Rebuildable, Redriven,
    dead_letters::{self, DeadLetter, Summary},
    drop_replaced,
    offsets::check_known,
    options::{NameOption, SourceOptions},
    redrive,
};

/// Dead letters that `redrive --all` reads at a time.
const PAGE: i64 = 100;

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
    /// Does it, and prints what has become of it.
    ///
    /// # Errors
    /// If the database has no such projection, or fails.
    pub async fn run(self, conn: &mut AsyncPgConnection) -> Result<ExitCode> {
        let projection = P::from_options(self.projection);
        let name = self.name.consumer_group;
        self.command.run(conn, &projection, &name).await
    }
}

/// What to do with the records that could not be applied.
#[derive(Clone, Debug, Subcommand)]
enum DeadLettersCommand {
    /// List them, the oldest first, without what they hold
    List {
        /// So many at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
        /// Those behind the one with this number
        #[arg(long, default_value_t = 0)]
        after: i64,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one with its headers and its payload, which may hold personal data. Ends with 1 if there is none
    Show {
        /// Its number
        id: i64,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Apply them once more, here; what is applied is no dead letter any more. Ends with 1 if one still can't be
    Redrive {
        /// Their numbers
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// All of them
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Forget them for good; copies in the dead letter topic stay. Ends with 1 if there is none with one of the numbers
    Drop {
        /// Their numbers
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
        check_known(conn, name).await?;
        match self {
            Self::List { limit, after, json } => {
                let dead_letters = dead_letters::list(conn, name, after, limit).await?;
                for dead_letter in &dead_letters {
                    say!(
                        "{}",
                        if json {
                            summary(dead_letter).to_string()
                        } else {
                            line(dead_letter)
                        }
                    );
                }
                if dead_letters.is_empty() && !json {
                    complain(format_args!("no dead letters of {name}"));
                }
                Ok(ExitCode::SUCCESS)
            }
            Self::Show { id, json } => {
                let Some(dead_letter) = dead_letters::find(conn, name, id).await? else {
                    complain(format_args!("there is no dead letter {id} of {name}"));
                    return Ok(ExitCode::FAILURE);
                };
                say!(
                    "{}",
                    if json {
                        whole(&dead_letter).to_string()
                    } else {
                        page(&dead_letter)
                    }
                );
                Ok(ExitCode::SUCCESS)
            }
            Self::Redrive { ids, all: false } => redrive_these(conn, projection, name, &ids).await,
            Self::Redrive { all: true, .. } => redrive_all(conn, projection, name).await,
            Self::Drop { ids } => {
                let mut code = ExitCode::SUCCESS;
                for id in ids {
                    if dead_letters::discard(conn, name, id).await? {
                        say!("{id}\tdropped");
                    } else {
                        say!("{id}\tthere is none");
                        code = ExitCode::FAILURE;
                    }
                }
                Ok(code)
            }
        }
    }
}

async fn redrive_these<P: Projection>(
    conn: &mut AsyncPgConnection,
    projection: &P,
    name: &str,
    ids: &[i64],
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match redrive(conn, projection, name, *id).await? {
            Redriven::Applied => {
                say!("{id}\tapplied");
            }
            Redriven::Rejected(poison) => {
                say!("{id}\tstill rejected: {poison}");
                code = ExitCode::FAILURE;
            }
            Redriven::Erased => {
                say!(
                    "{id}\twhat it held is erased; a rebuild finds the record if its topic has it \
                     still, and `dead-letters drop` forgets it"
                );
                code = ExitCode::FAILURE;
            }
            Redriven::Missing => {
                say!("{id}\tthere is none");
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
        let dead_letters = dead_letters::list(conn, name, after, PAGE).await?;
        let ids: Vec<i64> = dead_letters
            .iter()
            .map(|dead_letter| dead_letter.dead_letter_id)
            .collect();
        let Some(last) = ids.last() else {
            return Ok(code);
        };
        after = *last;
        if redrive_these(conn, projection, name, &ids).await? == ExitCode::FAILURE {
            code = ExitCode::FAILURE;
        }
    }
}

fn line(dead_letter: &Summary) -> String {
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
            .map_or_else(|| "-".to_owned(), text),
        dead_letter.error_class,
        dead_letter.error,
    )
}

fn page(dead_letter: &DeadLetter) -> String {
    let mut page = line(&dead_letter.summary).replace('\t', "\n");
    for (name, value) in dead_letter.headers() {
        let _ = write!(
            page,
            "\nheader {}: {}",
            name.escape_default(),
            value.map_or_else(String::new, text)
        );
    }
    let payload = dead_letter.payload.as_deref();
    let _ = write!(
        page,
        "\npayload {}",
        payload.map_or_else(|| "none".to_owned(), text)
    );
    page
}

fn summary(dead_letter: &Summary) -> Value {
    json!({
        "id": dead_letter.dead_letter_id,
        "dead_lettered_at": dead_letter.dead_lettered_at,
        "topic": dead_letter.topic,
        "partition": dead_letter.partition,
        "offset": dead_letter.record_offset,
        "key": dead_letter.key.as_deref().map(text),
        "class": dead_letter.error_class,
        "error": dead_letter.error,
        "erased_at": dead_letter.erased_at,
    })
}

fn whole(dead_letter: &DeadLetter) -> Value {
    let mut value = summary(&dead_letter.summary);
    let headers = dead_letter.headers();
    let headers: Vec<_> = headers
        .map(|(name, value)| json!({ "name": name, "value": value.map(text) }))
        .collect();
    value["headers"] = headers.into();
    value["payload"] = dead_letter.payload.as_deref().map(text).into();
    value
}

/// Text with escapes for what a terminal would obey, and whatever is no text byte by byte.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => visible(text).into_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// The options of `projection`.
#[derive(Args, Debug)]
pub struct ProjectionOptions<P: Configurable> {
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    source: SourceOptions<P>,
    #[command(flatten)]
    projection: P::Options,
    #[command(subcommand)]
    command: ProjectionCommand,
}

impl<P: Configurable + Rebuildable> ProjectionOptions<P> {
    /// Does it, and prints what has become of it. `follower` is a second connection to the same
    /// database.
    ///
    /// # Errors
    /// As of [`status`](crate::status) and [`rebuild`](crate::rebuild).
    pub async fn run(
        self,
        conn: &mut AsyncPgConnection,
        follower: &mut AsyncPgConnection,
    ) -> Result<()> {
        let projection = P::from_options(self.projection);
        let options = self.source.on(self.kafka);
        self.command
            .run(conn, follower, &projection, &options)
            .await
    }
}

/// What to do with a projection.
#[derive(Clone, Debug, Subcommand)]
enum ProjectionCommand {
    /// Show how far it is behind its topic, and what became of the records
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Build its tables anew from the topic, beside those that serve, and swap them. Ended in the middle, it goes on
    /// where it was when it is begun again
    Rebuild {
        /// Only drop the tables that the last rebuild has replaced, which are kept in the schema projection_replaced
        #[arg(long)]
        drop_old: bool,
    },
}

impl ProjectionCommand {
    async fn run<P: Rebuildable>(
        self,
        conn: &mut AsyncPgConnection,
        follower: &mut AsyncPgConnection,
        projection: &P,
        options: &RebuildOptions,
    ) -> Result<()> {
        match self {
            Self::Status { json } => {
                let partitions = crate::status(conn, options).await?;
                if json {
                    say!("{}", serde_json::to_string(&partitions)?);
                    return Ok(());
                }
                say!("partition\tnext\tend\tlag\tlag, s\tapplied\tskipped\tset aside");
                for p in &partitions {
                    let next = p
                        .next_offset
                        .map_or_else(|| "-".to_owned(), |next| next.to_string());
                    say!(
                        "{}\t{next}\t{}\t{}\t{:.1}\t{}\t{}\t{}",
                        p.partition,
                        p.end_offset,
                        p.lag_records,
                        p.lag_s,
                        p.applied,
                        p.skipped,
                        p.dead_lettered
                    );
                }
            }
            Self::Rebuild { drop_old: true } => {
                drop_replaced(conn).await?;
                say!("dropped, if there were any");
            }
            Self::Rebuild { drop_old: false } => {
                let rebuilt = crate::rebuild(conn, follower, projection, options).await?;
                let (records, s) = (rebuilt.records, rebuilt.took.as_secs_f64());
                say!(
                    "{records} records in {s:.1} s, {:.0} a second",
                    records as f64 / s
                );
                say!(
                    "the new tables serve; the old ones are in the schema projection_replaced until \
                     you run the same with --drop-old"
                );
            }
        }
        Ok(())
    }
}
