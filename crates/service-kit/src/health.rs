use std::{collections::HashMap, time::Duration};

use diesel_migrations::EmbeddedMigrations;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::database::{self, Pool};

/// The health service's name for the projection of the other service's events.
pub const PROJECTION: &str = "projection";

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// The inputs of the health service.
///
/// The health service has three names: the gRPC service's own (for load balancers), [`PROJECTION`],
/// and the empty name, which covers everything.
pub struct Checks<P> {
    /// The full name of the gRPC service. It is SERVING while its database responds.
    pub service: &'static str,
    /// The database.
    pub pool: Pool,
    /// The migrations that the database must have.
    pub migrations: &'static [EmbeddedMigrations],
    /// Returns the error of the projection, if it has one.
    pub projection: P,
}

/// Updates the health service until `shutdown`, then reports NOT_SERVING for all names.
pub(crate) async fn monitor_health<P>(
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
            Err(_) => Err(format!("no response within {CHECK_TIMEOUT:?}")),
        };
        let projection = (checks.projection)();
        if shutdown.is_cancelled() {
            break;
        }
        log_changes(&mut last, "database", &database);
        log_changes(&mut last, PROJECTION, &projection);
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
    report_not_serving(&reporter, checks.service).await;
    for name in [checks.service, PROJECTION, ""] {
        // Ends the health watch streams, which would delay the shutdown of the server.
        reporter.clear_service_status(name).await;
    }
}

/// Reports NOT_SERVING for all names. Also needed at startup: tonic reports SERVING for the empty
/// name before the first check.
pub(crate) async fn report_not_serving(reporter: &HealthReporter, service: &str) {
    for name in [service, PROJECTION, ""] {
        let status = ServingStatus::NotServing;
        reporter.set_service_status(name, status).await;
    }
}

/// Logs a state when it changes.
fn log_changes<'a>(
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
