//! The clocks of the relay and of the database disagree.

use anyhow::Result;
use outbox_relay::{
    Level, check,
    config::{OnRejection, SinkKind},
};

use crate::{
    for_each_sink,
    harness::{Session, Setup},
};

for_each_sink! {
    events_are_published_although_the_clocks_disagree,
}

/// Kafka rejects records from the future, and can delete those from the past. No policy for rejected records applies.
async fn events_are_published_although_the_clocks_disagree(sink: SinkKind) -> Result<()> {
    for (policy, moved_by, direction) in [
        (OnRejection::DeadLetter, "2 hours", "7200 s ahead of"),
        (OnRejection::ParkKey, "2 hours", "7200 s ahead of"),
        (OnRejection::Halt, "-2 hours", "7200 s behind"),
    ] {
        let mut setup = Setup::new("clocks", sink).await?;
        setup.on_rejection = policy;
        let session = Session::new(&setup.database).await?;
        session.client.move_clock_ahead(moved_by).await?;
        for _ in 0..3 {
            setup.write(&session, "a").await?;
        }
        let relay = setup.start().await?;
        let records = setup.records(3).await?;
        let versions: Vec<i64> = records.iter().map(devstack::Record::version).collect();
        assert_eq!(versions, [1, 2, 3]);
        let text = relay.wait_for_state(200, "degraded").await?;
        assert!(text.contains(direction), "{text}");
        let rejected = "select (select count(*) from relay_parked)
                              + (select count(*) from relay_dead_letters)";
        assert_eq!(session.client.count(rejected).await?, 0);
        relay.stop().await?;
        let found = check(&setup.config()?).await;
        let noted = found.iter().filter(|found| found.level == Level::Note);
        let noted: Vec<String> = noted.map(ToString::to_string).collect();
        assert!(
            noted.iter().any(|note| note.contains(direction)),
            "{noted:?}"
        );
    }
    Ok(())
}
