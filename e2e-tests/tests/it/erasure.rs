//! A deleted user's personal data is erased everywhere within the limits of docs/personal-data.md. The test ages rows
//! and shortens the topics' retention. The programs log at the level trace.

use anyhow::{Context as _, Result};
use demo::System;
use devstack::{Sql, eventually};
use proto::{
    events::{ORDER_CREATED, USER_UPDATED, header},
    user::v1::{CreateUserRequest, UpdateUserRequest, User},
};
use tonic::Code;
use uuid::Uuid;

use crate::{
    compacting::{self, addresses, compact_and_remove_tombstones, run},
    traces::Person,
};

/// The key of a record that is not the user's id.
const ODD_KEY: &str = "no id";

/// Moves the outbox to another partition and ages rows by a day or a week.
const USERS_LATER: &str = "
    alter table outbox alter column bucket
        set default ((date_part('epoch', clock_timestamp())::bigint / 600 + 3) % 8)::smallint;
    update outbox set created_at = created_at - interval '1 hour';
    update request_ids set created_at = created_at - interval '1 day';
    update dead_letters set dead_lettered_at = dead_lettered_at - interval '7 days'";
const ORDERS_LATER: &str =
    "update dead_letters set dead_lettered_at = dead_lettered_at - interval '7 days'";

/// Creates a user with orders, updates, rejections and stored responses; returns the id.
async fn create_user_with_history(system: &System, person: &Person) -> Result<String> {
    let create = CreateUserRequest {
        email: person.email("first"),
        name: person.name("First"),
        request_id: Uuid::new_v4().to_string(),
    };
    let created = system.users().create_user(create).await?.into_inner();
    let user_id = created.user.context("a user")?.user_id;
    system
        .create_order(&user_id, &created.consistency_token)
        .await?;
    let user = User {
        user_id: user_id.clone(),
        email: person.email("second"),
        name: person.name("Second"),
        ..User::default()
    };
    let update = UpdateUserRequest {
        user: Some(user),
        request_id: Uuid::new_v4().to_string(),
        ..UpdateUserRequest::default()
    };
    system.users().update_user(update).await?;
    let taken = system.create_user(&person.email("second"), "Other").await;
    assert_eq!(taken.err().map(|err| err.code()), Some(Code::AlreadyExists));
    let bad = system.create_user(&person.name("bad"), "Other").await;
    assert_eq!(bad.err().map(|err| err.code()), Some(Code::InvalidArgument));
    Ok(user_id)
}

/// Writes poison records of the user, with the user's id and with other keys.
async fn write_poison_records(system: &System, person: &Person, user_id: &str) -> Result<()> {
    let (servers, names) = (addresses(system)?, system.stack.names());
    let payload = format!(
        r#"{{"user_id":"{user_id}","email":"{}","name":"{}"}}"#,
        person.email("broken"),
        person.name("Broken")
    );
    let name = person.name("Header");
    for (topic, event_type, key) in [
        (&names.users_topic, USER_UPDATED, user_id),
        (&names.users_topic, USER_UPDATED, ODD_KEY),
        (&names.users_topic, USER_UPDATED, &*person.mark),
        (&names.orders_topic, ORDER_CREATED, ODD_KEY),
    ] {
        let headers = [
            (header::SPEC_VERSION, "1.0"),
            (header::TYPE, event_type),
            ("ce_subject", &*name),
        ];
        let (key, payload) = (Some(key.as_bytes()), Some(payload.as_bytes()));
        servers.write_record(topic, key, payload, &headers).await?;
    }
    for (url, count) in [
        (&names.users_database_url, 1),
        (&names.orders_database_url, 3),
    ] {
        let sql = Sql::connect(url).await?;
        let copied = "select count(*) from dead_letters where in_topic";
        sql.wait_for(copied, count).await?;
    }
    Ok(())
}

/// The places with data of a user after all of this.
const EVERYWHERE: [&str; 17] = [
    "orders: dead_letters",
    "orders: projection_replaced.users_cache",
    "orders: users_cache",
    "segment orders.v1",
    "segment orders.v1.dlq.user-service",
    "segment users.v1",
    "segment users.v1.dlq.order-service",
    "topic orders.v1",
    "topic orders.v1.dlq.user-service",
    "topic users.v1",
    "topic users.v1.dlq.order-service",
    "users: dead_letters",
    "users: outbox_",
    "users: pg_statistic",
    "users: request_ids",
    "users: users",
    "orders: pg_statistic",
];

/// Simulates the retention times of docs/personal-data.md.
async fn let_time_pass(system: &System) -> Result<()> {
    let (servers, names) = (addresses(system)?, system.stack.names());
    for (url, later) in [
        (&names.users_database_url, USERS_LATER),
        (&names.orders_database_url, ORDERS_LATER),
    ] {
        Sql::connect(url).await?.batch_execute(later).await?;
    }
    // Both delete expired rows at startup.
    system.stack.user_service.kill();
    system.stack.order_service.kill();
    for service in ["user-service", "order-service"] {
        let expired = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "1"),
            ("file.delete.delay.ms", "100"),
        ];
        let topic = names.dead_letter_topic(service);
        servers.alter_topic(&topic, &expired).await?;
        eventually(&format!("the end of what {topic} holds"), async || {
            let records = servers.read_topic(&topic).await?;
            Ok(records.is_empty().then_some(()))
        })
        .await?;
    }
    for topic in [&names.users_topic, &names.orders_topic] {
        compact_and_remove_tombstones(system, topic).await?;
    }
    Ok(())
}

/// Does the manual steps: drops the tables that a rebuild replaced, and writes a tombstone for a key that no
/// deletion covers.
async fn tidy_up(system: &System, person: &Person) -> Result<()> {
    let (servers, names) = (addresses(system)?, system.stack.names());
    run(
        system,
        "order-service",
        &["projection", "rebuild", "--drop-old"],
    )?;
    for (topic, key) in [
        (&names.users_topic, ODD_KEY),
        (&names.users_topic, &*person.mark),
        (&names.orders_topic, ODD_KEY),
    ] {
        let headers = [(header::SPEC_VERSION, "1.0"), (header::TYPE, "forgotten")];
        let key = Some(key.as_bytes());
        servers.write_record(topic, key, None, &headers).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_users_email_and_name_are_erased_everywhere() -> Result<()> {
    let system = compacting::start(&[("LOG_LEVEL", "trace")]).await?;
    let names = system.stack.names();
    let users = Sql::connect(&names.users_database_url).await?;
    let orders = Sql::connect(&names.orders_database_url).await?;
    let person = Person::new();
    let user_id = create_user_with_history(&system, &person).await?;
    // Other users' data stays.
    let other = Person::new();
    let stays = system
        .create_user(&other.email("other"), &other.name("Other"))
        .await?;
    orders
        .wait_for("select count(*) from users_cache where version = 2", 1)
        .await?;
    write_poison_records(&system, &person, &user_id).await?;
    run(&system, "order-service", &["projection", "rebuild"])?;
    for sql in [&users, &orders] {
        sql.batch_execute("analyze").await?;
    }
    // The search finds the data now, which shows that it works.
    let traces = person.find_traces(&system).await?;
    for place in EVERYWHERE {
        let is_found = traces.iter().any(|trace| trace == place);
        assert!(is_found, "{place} is not among {traces:?}");
    }
    assert!(
        !traces.iter().any(|trace| trace.starts_with("log")),
        "{traces:?}"
    );

    let deleted = system.delete_user(&user_id).await?;
    let rejected = system
        .create_order(&user_id, &deleted.consistency_token)
        .await;
    assert_eq!(
        rejected.err().map(|err| err.code()),
        Some(Code::FailedPrecondition)
    );
    // Dead letters with the user's id are erased by the deletion itself.
    let erased = format!(
        "select count(*) from dead_letters where key = '{user_id}' and payload is null
           and header_names = '{{}}' and error_class = 'payload' and erased_at is not null"
    );
    assert_eq!(orders.count(&erased).await?, 1);

    tidy_up(&system, &person).await?;
    let_time_pass(&system).await?;
    let traces = async || {
        for sql in [&users, &orders] {
            // As autovacuum does.
            sql.batch_execute("vacuum analyze").await?;
        }
        let traces = person.find_traces(&system).await?;
        // Printed in case the test fails.
        println!("left: {traces:?}");
        Ok(traces.is_empty().then_some(()))
    };
    eventually("no trace", traces).await?;

    // The rows of dead letters and of other users remain.
    assert_eq!(
        orders
            .count("select count(*) from dead_letters where erased_at is not null")
            .await?,
        3
    );
    assert_eq!(
        users
            .count("select count(*) from dead_letters where erased_at is not null")
            .await?,
        1
    );
    let stays = stays.user.context("a user")?.user_id;
    let known =
        format!("select count(*) from users_cache where user_id = '{stays}' and not deleted");
    assert_eq!(orders.count(&known).await?, 1);
    assert!(!other.find_traces(&system).await?.is_empty());
    system.stop().await;
    Ok(())
}
