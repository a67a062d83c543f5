//! Tests of the relay against a real Postgres and a real Kafka.

mod acl;
mod admin;
mod brokers;
mod clocks;
mod compaction;
mod dead_letters;
mod every_row;
mod failover;
mod fencing;
mod harness;
mod mapping;
mod metrics;
mod misconfigured;
mod moved;
mod packages;
mod patience;
mod promotion;
mod publishing;
mod reading;
mod rejections;
mod running;
mod schedule;
mod secure;
mod silence;
mod sinks;
mod statements;
mod truncation;

/// Declares a test for each of these functions with each sink.
#[macro_export]
macro_rules! for_each_sink {
    ($($test:ident,)*) => {
        mod kafka {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() -> anyhow::Result<()> {
                super::$test(outbox_relay::config::SinkKind::Kafka).await
            })*
        }
        mod rdkafka {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() -> anyhow::Result<()> {
                super::$test(outbox_relay::config::SinkKind::RdKafka).await
            })*
        }
    };
}
