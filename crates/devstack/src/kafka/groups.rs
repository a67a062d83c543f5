use std::time::Duration;

use anyhow::Result;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns how many members of a consumer group have partitions; 0 while it rebalances.
pub(crate) async fn count_assigned_members(brokers: &str, group: &str) -> Result<usize> {
    let (brokers, group) = (brokers.to_owned(), group.to_owned());
    tokio::task::spawn_blocking(move || count(&brokers, &group)).await?
}

fn count(brokers: &str, group: &str) -> Result<usize> {
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let listed = client.fetch_group_list(Some(group), TIMEOUT)?;
    let stable = listed.groups().iter().filter(|g| g.state() == "Stable");
    let members = stable.flat_map(|group| group.members());
    let assigned = members.filter(|member| member.assignment().is_some_and(has_partitions));
    Ok(assigned.count())
}

/// Returns whether an assignment in the format of the consumer protocol (version, then an array of topics) has topics.
fn has_partitions(assignment: &[u8]) -> bool {
    assignment.get(2..6).is_some_and(|topics| topics != [0; 4])
}
