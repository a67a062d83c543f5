//! Two relays as processes, whose leader is killed or suspended under load.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Audit, Process, Program, WorkDir, eventually, free_port};
use outbox_relay::config::SinkKind;
use tokio::task::JoinHandle;

use crate::{
    for_each_sink,
    harness::{Database, Session, Setup},
};

for_each_sink! {
    no_event_is_lost_when_the_leader_is_killed,
    a_suspended_leader_does_not_publish_an_old_version_behind_a_newer_one,
}

const KILLS: usize = 4;
/// Rounds in each of which a leader is suspended. The variable `FORMER_LEADER_ROUNDS` overrides it.
const FORMER_LEADER_ROUNDS: usize = 4;
/// Few, so that several versions of a key are always in flight.
const KEYS: usize = 10;

/// Two relays, a database with writers, and a topic.
struct Pair {
    database: Database,
    topic: String,
    work_dir: Arc<WorkDir>,
    relays: [(Process, SocketAddr); 2],
    writing: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<()>>>,
}

impl Pair {
    async fn start(test: &str, sink: SinkKind) -> Result<Self> {
        let topic = Addresses::unique_name(test);
        Addresses::shared().create_topic(&topic, 3).await?;
        let database = Database::new(test).await?;
        let work_dir = Arc::new(WorkDir::new()?);
        let program = work_dir.stage(Path::new(env!("CARGO_BIN_EXE_outbox-relay")))?;
        let config = format!(
            "kafka.brokers = {:?}\nkafka.sink = {:?}\nkafka.delivery_timeout_ms = 2000\n[[source]]\nname = \"test\"\ndatabase_url = {:?}\n",
            Addresses::shared().brokers(),
            match sink {
                SinkKind::Kafka => "kafka",
                SinkKind::RdKafka => "rdkafka",
            },
            database.url,
        );
        let config = work_dir.write("outbox-relay.toml", &config)?;
        let relay = |name: &str| {
            let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
            let program = Program::new(name, &program)
                .args(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
                .env("OUTBOX_RELAY_ADMIN_ADDR", addr);
            anyhow::Ok((Process::start(&work_dir, program), addr))
        };
        let relays = [relay("relay-a")?, relay("relay-b")?];
        let writing = Arc::new(AtomicBool::new(true));
        let mut writers = Vec::new();
        for _ in 0..3 {
            let session = Session::new(&database).await?;
            writers.push(tokio::spawn(write(
                session,
                topic.clone(),
                Arc::clone(&writing),
            )));
        }
        Ok(Self {
            database,
            topic,
            work_dir,
            relays,
            writing,
            writers,
        })
    }

    /// Waits for a leader and returns it.
    async fn leader(&self) -> Result<&Process> {
        eventually("a leader", async || {
            for (process, addr) in &self.relays {
                let status = outbox_relay::ask(*addr, "/status").await;
                if status.is_ok_and(|(_, text)| text.contains(r#""role":"leader""#)) {
                    return Ok(Some(process));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Waits until this many more records are in the topic.
    async fn wait_for_records(&self, more: usize) -> Result<()> {
        let read = async || Addresses::shared().read_topic(&self.topic).await;
        let wanted = read().await?.len() + more;
        eventually(&format!("{wanted} records"), async || {
            Ok((read().await?.len() >= wanted).then_some(()))
        })
        .await
    }

    /// Stops the writers, waits until all rows are in the topic, and stops the relays. Returns the audit of the topic.
    async fn stop(self) -> Result<Audit> {
        self.writing.store(false, Ordering::Release);
        for writer in self.writers {
            writer.await??;
        }
        let sql = self.database.connect().await?;
        let rows = sql
            .query("select key, version from aggregates", &[])
            .await?;
        let rows: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let audit = eventually("all rows in the topic", async || {
            let records = Addresses::shared().read_topic(&self.topic).await?;
            let audit = Audit::new(&rows, &records);
            Ok((audit.lost == 0).then_some(audit))
        })
        .await?;
        for (process, _) in self.relays {
            process.stop().await;
        }
        drop(self.work_dir);
        Ok(audit)
    }
}

/// Changes aggregates, each in a transaction with its event.
async fn write(session: Session, topic: String, writing: Arc<AtomicBool>) -> Result<()> {
    for turn in 0.. {
        if !writing.load(Ordering::Acquire) {
            break;
        }
        let key = format!("key-{}", turn % KEYS);
        session.client.batch_execute("begin").await?;
        let version = session.change(&key).await?;
        session.enqueue(&topic, &key, version).await?;
        session.client.batch_execute("commit").await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

async fn no_event_is_lost_when_the_leader_is_killed(sink: SinkKind) -> Result<()> {
    let pair = Pair::start("killed", sink).await?;
    for _ in 0..KILLS {
        pair.wait_for_records(300).await?;
        pair.leader().await?.kill();
    }
    pair.wait_for_records(300).await?;
    let audit = pair.stop().await?;
    assert!(audit.is_clean(), "{audit}");
    Ok(())
}

async fn a_suspended_leader_does_not_publish_an_old_version_behind_a_newer_one(
    sink: SinkKind,
) -> Result<()> {
    let rounds = std::env::var("FORMER_LEADER_ROUNDS")
        .map_or(Ok(FORMER_LEADER_ROUNDS), |text| text.parse())?;
    let pair = Pair::start("former_leader", sink).await?;
    for round in 0..rounds {
        pair.wait_for_records(100).await?;
        let former_leader = pair.leader().await?;
        former_leader.suspend();
        if round % 2 == 0 {
            // As in a failover of the database. In the other rounds Postgres detects the silent session.
            let cut = "select pg_terminate_backend(pid) from pg_stat_activity
                       where datname = current_database() and application_name = 'outbox-relay leader'";
            pair.database.connect().await?.batch_execute(cut).await?;
        }
        // The next leader has published newer versions when the suspended one resumes.
        pair.wait_for_records(300)
            .await
            .context("no relay took over")?;
        former_leader.resume();
    }
    pair.wait_for_records(100).await?;
    let audit = pair.stop().await?;
    assert!(audit.is_clean(), "{audit}");
    Ok(())
}

/// Brokers cannot fence librdkafka without a transactional id.
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_records_of_an_unfenced_predecessor_is_reported() -> Result<()> {
    let mut setup = Setup::new("unfenced", SinkKind::RdKafka).await?;
    setup.delivery_timeout = Duration::from_secs(4);
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    setup.records(1).await?;
    let sql = setup.database.connect().await?;
    sql.batch_execute(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name = 'outbox-relay leader'",
    )
    .await?;
    setup.write(&session, "a").await?;
    let text = relay
        .wait_for_state(
            503,
            "in which records of the previous producer may still arrive",
        )
        .await?;
    assert!(text.contains("Publishing resumes automatically"), "{text}");
    setup.records(2).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}
