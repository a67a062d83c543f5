//! Rebuilding tables from compacted topics.

use anyhow::{Context as _, Result};
use demo::{System, money};
use devstack::{Record, Sql};
use proto::{
    order::v1::{CancelOrderRequest, CreateOrderRequest},
    user::v1::{GetUserRequest, UpdateUserRequest, User},
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::compacting::{self, compact, compact_and_remove_tombstones, run};

const USERS: usize = 24;
const DELETED: usize = 6;

/// The users in user-service, one line each.
const USERS_SOURCE: &str =
    "select concat_ws(' ', user_id, version, delete_time is not null, email, name)
    from users order by user_id";
const EXISTING_USERS_SOURCE: &str = "select concat_ws(' ', user_id, version, false, email, name)
    from users where delete_time is null order by user_id";
/// The users in order-service's cache.
const USERS_CACHE: &str =
    "select concat_ws(' ', user_id, version, deleted, coalesce(email, ''), coalesce(name, ''))
    from users_cache order by user_id";

/// order-service stores amounts in minor units, user-service in whole units.
const ORDERS_SOURCE: &str = "select concat_ws(' ', order_id, user_id, (amount)::numeric(38, 9), currency,
        state = 'cancelled', version, update_time at time zone 'utc')
    from (select *, case currency when 'JPY' then amount_minor else amount_minor / 100.0 end as amount
          from orders) as orders
    order by order_id";
const USER_ORDERS: &str =
    "select concat_ws(' ', order_id, user_id, amount, currency, cancelled, version,
        update_time at time zone 'utc')
    from user_orders order by order_id";

const SUMMARIES_SOURCE: &str = "select concat_ws(' ', user_id, currency, count(*),
        count(*) filter (where state = 'cancelled'),
        coalesce(sum(amount) filter (where state <> 'cancelled'), 0)::numeric(38, 9),
        max(update_time) at time zone 'utc')
    from (select *, case currency when 'JPY' then amount_minor else amount_minor / 100.0 end as amount
          from orders) as orders
    group by user_id, currency order by user_id, currency";
const SUMMARIES: &str =
    "select concat_ws(' ', user_id, currency, order_count, cancelled_count, total,
        as_of_time at time zone 'utc')
    from user_order_summaries order by user_id, currency";

/// Damage that a rebuild must repair.
const DAMAGE_USERS: &str =
    "delete from users_cache where ctid in (select ctid from users_cache limit 3);
    update users_cache set name = 'damaged', version = version + 1000 where not deleted";
const DAMAGE_ORDERS: &str = "delete from user_order_summaries;
    update user_orders set cancelled = not cancelled, amount = 1, version = version + 1000";

/// The databases of both services.
struct Tables {
    users: Sql,
    orders: Sql,
}

impl Tables {
    async fn of(system: &System) -> Result<Self> {
        let names = system.stack.names();
        Ok(Self {
            users: Sql::connect(&names.users_database_url).await?,
            orders: Sql::connect(&names.orders_database_url).await?,
        })
    }

    async fn damage(&self) -> Result<()> {
        self.orders.batch_execute(DAMAGE_USERS).await?;
        self.users.batch_execute(DAMAGE_ORDERS).await?;
        Ok(())
    }

    /// Compares the rebuilt tables with the source tables, row by row.
    async fn assert_equal(&self, users: &str) -> Result<()> {
        let (ours, theirs) = (&self.orders, &self.users);
        assert_eq!(lines(ours, USERS_CACHE).await?, lines(theirs, users).await?);
        for (projected, source) in [(USER_ORDERS, ORDERS_SOURCE), (SUMMARIES, SUMMARIES_SOURCE)] {
            let (projected, source) = (lines(theirs, projected).await?, lines(ours, source).await?);
            assert!(!source.is_empty());
            assert_eq!(projected, source);
        }
        Ok(())
    }
}

async fn lines(sql: &Sql, query: &str) -> Result<Vec<String>> {
    let rows = sql.query(query, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Creates users and orders, updates some, cancels some orders and deletes the first users. Returns the ids
/// of all users.
async fn create_history(system: &System) -> Result<Vec<String>> {
    let mut user_ids = Vec::new();
    for number in 0..USERS {
        let created = system
            .create_user(&format!("c{number}@example.com"), "Before")
            .await?;
        let user_id = created.user.context("a user")?.user_id;
        let order = |amount| CreateOrderRequest {
            user_id: user_id.clone(),
            amount: Some(amount),
            consistency_token: created.consistency_token.clone(),
            ..CreateOrderRequest::default()
        };
        let placed = order(money("EUR", 19, 900_000_000));
        let placed = system.orders().create_order(placed).await?.into_inner();
        let yen = order(money("JPY", 500 + number as i64, 0));
        system.orders().create_order(yen).await?;
        if number % 2 == 0 {
            let cancel = CancelOrderRequest {
                order_id: placed.order.context("an order")?.order_id,
                ..CancelOrderRequest::default()
            };
            system.orders().cancel_order(cancel).await?;
        }
        for change in 0..number % 3 {
            let user = User {
                user_id: user_id.clone(),
                name: format!("After {change}"),
                ..User::default()
            };
            let update = UpdateUserRequest {
                user: Some(user),
                ..UpdateUserRequest::default()
            };
            system.users().update_user(update).await?;
        }
        user_ids.push(user_id);
    }
    for user_id in &user_ids[..DELETED] {
        system.delete_user(user_id).await?;
    }
    Ok(user_ids)
}

fn rebuild(system: &System) -> Result<()> {
    for service in ["user-service", "order-service"] {
        run(system, service, &["projection", "rebuild", "--drop-old"])?;
        run(system, service, &["projection", "rebuild"])?;
    }
    Ok(())
}

/// Waits until both projections have applied everything.
async fn wait_until_applied(system: &System, tables: &Tables) -> Result<()> {
    let deleted = "select count(*) from users_cache where deleted";
    tables.orders.wait_for(deleted, DELETED as i64).await?;
    let versions = tables
        .orders
        .count("select sum(version) from orders")
        .await?;
    let followed = "select sum(version) from user_orders";
    tables.users.wait_for(followed, versions).await?;
    super::assert_nothing_lost(system, &[]).await
}

/// Starts a system with a history that both projections have applied.
async fn start() -> Result<(System, Tables, Vec<String>)> {
    let system = compacting::start(&[]).await?;
    let user_ids = create_history(&system).await?;
    let tables = Tables::of(&system).await?;
    wait_until_applied(&system, &tables).await?;
    tables.assert_equal(USERS_SOURCE).await?;
    Ok((system, tables, user_ids))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_from_compacted_topics_equals_the_sources_row_by_row() -> Result<()> {
    let (system, tables, _) = start().await?;
    let names = system.stack.names();
    let left = compact(&system, &names.users_topic).await?;
    let tombstones = left.iter().filter(|record| record.payload.is_none());
    assert_eq!((left.len(), tombstones.count()), (USERS, DELETED));
    let left = compact(&system, &names.orders_topic).await?;
    assert_eq!(left.len(), 2 * USERS);
    tables.damage().await?;
    rebuild(&system)?;
    tables.assert_equal(USERS_SOURCE).await?;
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_after_tombstones_are_removed_restores_no_deleted_user() -> Result<()> {
    let (system, tables, user_ids) = start().await?;
    let names = system.stack.names();
    let left = compact_and_remove_tombstones(&system, &names.users_topic).await?;
    assert_eq!(left.len(), USERS - DELETED);
    let is_left = |id: &String| left.iter().any(|record: &Record| record.key == *id);
    assert!(!user_ids[..DELETED].iter().any(is_left));
    tables.damage().await?;
    rebuild(&system)?;
    // No record of the deleted users is left.
    tables.assert_equal(EXISTING_USERS_SOURCE).await?;
    assert_user_deleted_everywhere(&system, &user_ids[0]).await?;
    system.stop().await;
    Ok(())
}

/// Checks that a user is still deleted in user-service, unknown in order-service, and cannot order.
async fn assert_user_deleted_everywhere(system: &System, user_id: &str) -> Result<()> {
    let request = GetUserRequest {
        user_id: user_id.to_owned(),
    };
    let user = system.users().get_user(request).await?.into_inner().user;
    assert!(user.context("a user")?.delete_time.is_some());
    let rejected = system.create_order(user_id, "").await;
    let rejected = rejected.err().context("a deleted user has ordered")?;
    let info = rejected.get_details_error_info().context("no ErrorInfo")?;
    assert_eq!(
        (rejected.code(), &*info.reason),
        (Code::FailedPrecondition, "USER_UNKNOWN")
    );
    Ok(())
}
