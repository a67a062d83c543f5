use std::{collections::HashMap, time::Duration};

use diesel_migrations::EmbeddedMigrations;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::database::{self, Pool};

/// The name under which the health service speaks of the part that follows other services.
pub const PROJECTION: &str = "projection";

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// What the health of a service depends on.
///
/// The health service knows three names, which answer three questions: the gRPC service's own
/// (will calls be answered? for load balancers), [`PROJECTION`] (does it hear of others?), and the
/// empty one (is everything well? for people and tests).
pub struct Checks<P> {
    /// The full name of the gRPC service. It serves while its database answers: its callers need
    /// nothing else.
    pub service: &'static str,
    /// The database.
    pub pool: Pool,
    /// The schema that the database must have.
    pub migrations: &'static [EmbeddedMigrations],
    /// Says what keeps the projection from following, if anything does.
    pub projection: P,
}

/// Keeps the health service up to date until `shutdown`, then says NOT_SERVING for all.
pub(crate) async fn check_health<P>(
    mut reporter: HealthReporter,
    checks: Checks<P>,
    shutdown: CancellationToken,
) where
    P: Fn() -> Result<(), String>,
{
    let mut last: HashMap<&str, String> = HashMap::new();
    loop {
        let database = database::probe(&checks.pool, checks.migrations);
        let database = match tokio::time::timeout(CHECK_TIMEOUT, database).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {CHECK_TIMEOUT:?}")),
        };
        let projection = (checks.projection)();
        if shutdown.is_cancelled() {
            break;
        }
        tell_changes(&mut last, "database", &database);
        tell_changes(&mut last, PROJECTION, &projection);
        let all = database.as_ref().and(projection.as_ref());
        for (name, result) in [
            (checks.service, database.as_ref()),
            (PROJECTION, projection.as_ref()),
            ("", all),
        ] {
            let status = match result {
                Ok(()) => ServingStatus::Serving,
                Err(_) => ServingStatus::NotServing,
            };
            reporter.set_service_status(name, status).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
    say_not_serving(&reporter, checks.service).await;
    for name in [checks.service, PROJECTION, ""] {
        // Ends the streams of those who watch it, which would hold up the end of the server.
        reporter.clear_service_status(name).await;
    }
}

/// Says NOT_SERVING for all. Also where a server begins: tonic says SERVING for the empty name
/// before anybody has looked.
pub(crate) async fn say_not_serving(reporter: &HealthReporter, service: &str) {
    for name in [service, PROJECTION, ""] {
        let status = ServingStatus::NotServing;
        reporter.set_service_status(name, status).await;
    }
}

/// Logs a state once, when it begins.
fn tell_changes<'a>(
    last: &mut HashMap<&'a str, String>,
    check: &'a str,
    result: &Result<(), String>,
) {
    let reason = result.as_ref().err().cloned().unwrap_or_default();
    if last.get(check) == Some(&reason) {
        return;
    }
    match result {
        Ok(()) => tracing::info!(check, "healthy"),
        Err(reason) => tracing::warn!(check, %reason, "unhealthy"),
    }
    last.insert(check, reason);
}
