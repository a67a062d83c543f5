//! The subcommand `projection` of a service with a projection.

use std::fmt::Display;

use anyhow::Result;
use clap::{Args, Subcommand};
use cli::{KafkaOptions, say};
use diesel_async::AsyncPgConnection;

use crate::{
    Configurable, RebuildOptions, Rebuildable, ResetMode, ResetPartition, drop_replaced,
    options::SourceOptions, reset,
};

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
    /// Runs the subcommand and prints its result. `swap_conn` is a second connection to the same database.
    ///
    /// # Errors
    /// Those of [`status`](crate::status), [`reset`](crate::reset()) and [`rebuild`](crate::rebuild()).
    pub async fn run(
        self,
        conn: &mut AsyncPgConnection,
        swap_conn: &mut AsyncPgConnection,
    ) -> Result<()> {
        let projection = P::from_options(self.projection);
        let options = self.source.into_rebuild_options(self.kafka);
        self.command
            .run(conn, swap_conn, &projection, &options)
            .await
    }
}

/// The subcommands of `projection`.
#[derive(Clone, Debug, Subcommand)]
enum ProjectionCommand {
    /// Show the lag of each partition, and how many records were applied, skipped and dead-lettered
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete the stored offsets and an interrupted rebuild, so that the next start applies the topic from its beginning;
    /// stop the service first
    Reset {
        /// Only show the stored offsets and what the topic has
        #[arg(long)]
        dry_run: bool,
    },
    /// Rebuild the tables from the topic beside the live ones, then swap them; an interrupted rebuild resumes when it
    /// is run again
    Rebuild {
        /// Only drop the tables that the last rebuild replaced (schema projection_replaced)
        #[arg(long)]
        drop_old: bool,
    },
}

impl ProjectionCommand {
    async fn run<P: Rebuildable>(
        self,
        conn: &mut AsyncPgConnection,
        swap_conn: &mut AsyncPgConnection,
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
                say!("partition\tnext\tend\tlag\tlag, s\tapplied\tskipped\tdead-lettered");
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
            Self::Reset { dry_run: true } => {
                print_offsets(&reset(conn, options, ResetMode::DryRun).await?)?;
                say!("dry run: nothing was changed");
            }
            Self::Reset { dry_run: false } => {
                print_offsets(&reset(conn, options, ResetMode::Delete).await?)?;
                say!(
                    "deleted the stored offsets of projection {}. Start the service: it applies topic {} from its \
                     beginning. Existing rows stay, and newer versions replace them.",
                    options.name,
                    options.topic
                );
            }
            Self::Rebuild { drop_old: true } => {
                drop_replaced(conn).await?;
                say!("dropped the replaced tables, if any");
            }
            Self::Rebuild { drop_old: false } => {
                let rebuilt = crate::rebuild(conn, swap_conn, projection, options).await?;
                let (records, s) = (rebuilt.records, rebuilt.took.as_secs_f64());
                say!(
                    "rebuilt {records} records in {s:.1} s ({:.0} records/s)",
                    records as f64 / s
                );
                say!(
                    "The new tables are live. The replaced ones are in the schema projection_replaced: \
                     drop them with `projection rebuild --drop-old`."
                );
            }
        }
        Ok(())
    }
}

fn print_offsets(partitions: &[ResetPartition]) -> Result<()> {
    say!("partition\tnext\tstored topic id\ttopic id\tfirst\tend");
    for p in partitions {
        say!(
            "{}\t{}\t{}\t{}\t{}\t{}",
            p.partition,
            p.next_offset,
            or_dash(p.stored_topic_id),
            or_dash(p.topic_id),
            or_dash(p.offsets.map(|(first, _)| first)),
            or_dash(p.offsets.map(|(_, end)| end)),
        );
    }
    Ok(())
}

fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
