//! Idempotent requests: the first response is stored in the transaction of the change, and returned
//! for every retry with the same request id. See <https://google.aip.dev/155>.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, QueryResult, QueryableByName,
    sql_types,
};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use diesel_migrations::EmbeddedMigrations;
use projection::ClockGuard;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::{
    CallError,
    database::{Database, DatabaseError, Pool},
    metadata::parse_traceparent,
    schema::request_ids,
};

/// The table of stored responses.
pub const MIGRATIONS: EmbeddedMigrations = diesel_migrations::embed_migrations!("migrations");

/// The minimum retention of a response, as the API documentation promises.
const RETENTION: Duration = Duration::from_hours(24);
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);
/// Rows per delete statement, to keep each statement short.
const CLEANUP_BATCH_ROWS: usize = 1_000;
/// The limit on a transaction, whose statements have limits of their own.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(20);
/// A retry polls this often for the end of the first attempt: 500 ms in total, longer than most
/// writes and shorter than most deadlines.
const IN_FLIGHT_POLLS: u32 = 50;
const IN_FLIGHT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The identity of a request, to recognize a retry.
#[derive(Clone, Debug)]
pub struct RequestKey {
    method: &'static str,
    request_id: Uuid,
    fingerprint: Vec<u8>,
}

/// A response that can be stored.
pub trait Response: Message + Default + 'static {}

impl<M: Message + Default + 'static> Response for M {}

/// Called after the commit of a change.
type OnCommit<T> = Arc<dyn Fn(&T) + Send + Sync>;

/// The context of a request that changes a `T`: its request id and trace, and the encoder of its response `R`.
pub struct MutationContext<T, R> {
    /// `None` if the caller sent no request id.
    request: Option<RequestKey>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
    encode: fn(&T) -> R,
    on_commit: Option<OnCommit<T>>,
}

impl<T, R> Clone for MutationContext<T, R> {
    fn clone(&self) -> Self {
        Self {
            request: self.request.clone(),
            traceparent: self.traceparent.clone(),
            encode: self.encode,
            on_commit: self.on_commit.clone(),
        }
    }
}

impl<T, R: Response> MutationContext<T, R> {
    /// Creates the context; `encode` builds the response.
    pub fn new(request: Option<RequestKey>, metadata: &MetadataMap, encode: fn(&T) -> R) -> Self {
        Self {
            request,
            traceparent: parse_traceparent(metadata),
            encode,
            on_commit: None,
        }
    }

    /// Calls `callback` with the changed resource after the commit.
    #[must_use]
    pub fn on_commit(mut self, callback: impl Fn(&T) + Send + Sync + 'static) -> Self {
        self.on_commit = Some(Arc::new(callback));
        self
    }

    /// Returns the stored response of an earlier attempt. Locks the request id until the transaction
    /// of `conn` ends. Call it before the writes of the transaction, which a retry must not repeat.
    async fn load_stored_response(
        &self,
        conn: &mut AsyncPgConnection,
    ) -> Result<Option<R>, CallError> {
        let Some(request) = &self.request else {
            return Ok(None);
        };
        let response = request.load_stored_response(conn).await?;
        let response = response.map(|response| R::decode(&*response));
        response.transpose().map_err(CallError::internal)
    }
}

/// An async closure whose future is `Send` for every `Argument`, which `AsyncFnOnce` can't express yet.
pub trait SendAsyncFn<Argument, Output>: FnOnce(Argument) -> Self::Future {
    /// The future that the closure returns.
    type Future: Future<Output = Output> + Send;
}

impl<F, Argument, Output, Fut> SendAsyncFn<Argument, Output> for F
where
    F: FnOnce(Argument) -> Fut,
    Fut: Future<Output = Output> + Send,
{
    type Future = Fut;
}

impl Database {
    /// Runs `write` and stores the response in one transaction, once per request id. A retry changes
    /// nothing and gets the stored response.
    ///
    /// Runs to completion even if the caller disconnects. tonic drops a handler when its client cancels.
    /// If that dropped a transaction between two statements, the pool would have to discard the connection.
    ///
    /// # Errors
    /// The errors of `write`; if the request id was used with a different body, the first attempt is
    /// still in progress, or the database fails.
    pub async fn run_idempotent_transaction<T, R, E, F>(
        &self,
        mutation: MutationContext<T, R>,
        write: F,
    ) -> Result<R, E>
    where
        for<'c> F: AsyncFnOnce(&'c mut AsyncPgConnection) -> Result<T, E>
            + SendAsyncFn<&'c mut AsyncPgConnection, Result<T, E>>
            + Send
            + 'static,
        T: Send + Sync + 'static,
        R: Response,
        E: From<CallError> + From<diesel::result::Error> + Send + 'static,
    {
        let database = self.clone();
        self.run_to_completion(async move {
            let mut conn = database.connection().await?;
            let transaction = conn.transaction(async |conn| {
                if let Some(response) = mutation.load_stored_response(conn).await? {
                    return Ok((response, None));
                }
                let changed = write(conn).await?;
                let response = (mutation.encode)(&changed);
                if let Some(request) = &mutation.request {
                    request.store_response(conn, &response).await?;
                }
                Ok::<_, E>((response, Some(changed)))
            });
            let Ok(committed) = tokio::time::timeout(TRANSACTION_TIMEOUT, transaction).await else {
                conn.discard();
                return Err(CallError::Database(DatabaseError::transaction_timeout(
                    TRANSACTION_TIMEOUT,
                ))
                .into());
            };
            let (response, changed) = committed?;
            if let (Some(changed), Some(on_commit)) = (changed, mutation.on_commit) {
                on_commit(&changed);
            }
            Ok(response)
        })
        .await
    }

    /// Returns the stored response of an earlier attempt, if there is one.
    ///
    /// # Errors
    /// If the request id was used with a different body, the first attempt is still in progress, or the
    /// database fails.
    pub async fn load_stored_response<T, R>(
        &self,
        mutation: MutationContext<T, R>,
    ) -> Result<Option<R>, CallError>
    where
        T: 'static,
        R: Response,
    {
        if mutation.request.is_none() {
            return Ok(None);
        }
        let database = self.clone();
        self.run_to_completion(async move {
            let mut conn = database.connection().await?;
            conn.transaction(async |conn| mutation.load_stored_response(conn).await)
                .await
        })
        .await
    }
}

impl RequestKey {
    /// Creates the key of a request, or `None` for an empty id. `body` is the encoded request without
    /// its id, because a UUID has several spellings.
    ///
    /// # Errors
    /// If `request_id` is neither empty nor a UUID.
    pub fn parse(
        method: &'static str,
        request_id: &str,
        body: &[u8],
    ) -> Result<Option<Self>, &'static str> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let request_id = request_id.parse().map_err(|_| "must be a UUID, or empty")?;
        Ok(Some(Self {
            method,
            request_id,
            fingerprint: Sha256::digest(body).to_vec(),
        }))
    }

    async fn load_stored_response(
        &self,
        conn: &mut AsyncPgConnection,
    ) -> Result<Option<Vec<u8>>, CallError> {
        // The lookup must be a later statement than the lock: under READ COMMITTED each statement takes its
        // own snapshot, and this one must see the response that the previous holder of the lock committed.
        if !self.lock(conn).await? {
            return Err(CallError::RequestInFlight);
        }
        let answer: Option<(Vec<u8>, Vec<u8>)> = request_ids::table
            .find((self.method, self.request_id))
            .select((request_ids::fingerprint, request_ids::response))
            .first(conn)
            .await
            .optional()?;
        match answer {
            None => Ok(None),
            Some((fingerprint, response)) if fingerprint == self.fingerprint => Ok(Some(response)),
            Some(_) => Err(CallError::RequestIdReused),
        }
    }

    async fn store_response(
        &self,
        conn: &mut AsyncPgConnection,
        response: &impl Message,
    ) -> QueryResult<()> {
        diesel::insert_into(request_ids::table)
            .values((
                request_ids::method.eq(self.method),
                request_ids::request_id.eq(self.request_id),
                request_ids::fingerprint.eq(&self.fingerprint),
                request_ids::response.eq(response.encode_to_vec()),
            ))
            .execute(conn)
            .await?;
        Ok(())
    }

    /// Takes an advisory lock instead of inserting a row, because a wait for a row insertion has no
    /// limit of its own. Two ids with the same hash only wait for each other.
    async fn lock(&self, conn: &mut AsyncPgConnection) -> QueryResult<bool> {
        let name = format!("{} {}", self.method, self.request_id);
        for _ in 0..IN_FLIGHT_POLLS {
            let Locked { locked } = diesel::sql_query(
                "select pg_try_advisory_xact_lock(hashtextextended($1, 0)) as locked",
            )
            .bind::<sql_types::Text, _>(&name)
            .get_result(conn)
            .await?;
            if locked {
                return Ok(true);
            }
            tokio::time::sleep(IN_FLIGHT_POLL_INTERVAL).await;
        }
        Ok(false)
    }
}

#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = sql_types::Bool)]
    locked: bool,
}

/// Deletes expired responses periodically until `shutdown`.
pub async fn delete_expired_responses(pool: Pool, shutdown: CancellationToken) {
    let mut clock = ClockGuard::new("stored responses", RETENTION);
    loop {
        if let Err(err) = delete_all_expired(&pool, &mut clock).await {
            tracing::warn!(
                error = cli::chain(&err),
                "failed to delete expired request ids, retrying"
            );
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CLEANUP_INTERVAL) => {}
        }
    }
}

async fn delete_all_expired(pool: &Pool, clock: &mut ClockGuard) -> Result<(), DatabaseError> {
    loop {
        let mut conn = pool.get().await?;
        let Some(cutoff) = clock.read_cutoff(&mut conn).await? else {
            return Ok(());
        };
        if delete_expired_batch(&mut conn, cutoff).await? < CLEANUP_BATCH_ROWS {
            return Ok(());
        }
    }
}

async fn delete_expired_batch(
    conn: &mut AsyncPgConnection,
    cutoff: DateTime<Utc>,
) -> QueryResult<usize> {
    diesel::sql_query(format!(
        "delete from request_ids where (method, request_id) in (
             select method, request_id from request_ids
             where created_at < $1
             order by created_at limit {CLEANUP_BATCH_ROWS} for update skip locked)"
    ))
    .bind::<sql_types::Timestamptz, _>(cutoff)
    .execute(conn)
    .await
}
