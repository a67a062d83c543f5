//! Requests that can be repeated: the first answer is kept, in the transaction that it tells of,
//! and given again. See <https://google.aip.dev/155>.

use std::{sync::Arc, time::Duration};

use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, QueryResult, QueryableByName,
    sql_types,
};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use diesel_migrations::EmbeddedMigrations;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::{
    CallError,
    database::{CallDatabase, DatabaseError, Pool},
    metadata::traceparent,
    schema::request_ids,
};

/// The table of the answers.
pub const MIGRATIONS: EmbeddedMigrations = diesel_migrations::embed_migrations!("migrations");

/// How long an answer is kept at least, as api documentation promises.
const KEPT: &str = "24 hours";
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// So many old rows go in one statement: few enough to take a moment only.
const SWEEP_BATCH: i64 = 1_000;
/// How often, and how far apart, a repeat looks whether the first try is through. The whole is
/// longer than a write takes and shorter than a caller's patience.
const IN_FLIGHT_TRIES: u32 = 50;
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(10);

/// What tells a repeat from a new request.
#[derive(Clone, Debug)]
pub struct RequestKey {
    method: &'static str,
    request_id: Uuid,
    fingerprint: Vec<u8>,
}

/// The response to a [`Mutation`].
pub trait Response: Message + Default + 'static {}

impl<M: Message + Default + 'static> Response for M {}

/// Called right after the commit of a change.
type Committed<T> = Arc<dyn Fn(&T) + Send + Sync>;

/// A request to change a `T`, which is answered with an `R`.
pub struct Mutation<T, R> {
    /// Tells a repeat from a new request; none if the caller gave no request id.
    request: Option<RequestKey>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
    encode: fn(&T) -> R,
    committed: Option<Committed<T>>,
}

impl<T, R> Clone for Mutation<T, R> {
    fn clone(&self) -> Self {
        Self {
            request: self.request.clone(),
            traceparent: self.traceparent.clone(),
            encode: self.encode,
            committed: self.committed.clone(),
        }
    }
}

impl<T, R: Response> Mutation<T, R> {
    /// A request with this key and metadata; `encode` makes its response.
    pub fn new(request: Option<RequestKey>, metadata: &MetadataMap, encode: fn(&T) -> R) -> Self {
        Self {
            request,
            traceparent: traceparent(metadata),
            encode,
            committed: None,
        }
    }

    /// Has `committed` called with what was changed, right after the commit.
    #[must_use]
    pub fn then(mut self, committed: impl Fn(&T) + Send + Sync + 'static) -> Self {
        self.committed = Some(Arc::new(committed));
        self
    }

    /// The response that the same request got before, if it did. Keeps others with the same id
    /// waiting until the transaction of `conn` ends; call it as the first of its statements.
    async fn earlier_response(&self, conn: &mut AsyncPgConnection) -> Result<Option<R>, CallError> {
        let Some(request) = &self.request else {
            return Ok(None);
        };
        let response = request.earlier_response(conn).await?;
        let response = response.map(|response| R::decode(&*response));
        response.transpose().map_err(CallError::bug)
    }
}

/// An async closure whose future is `Send` for every `Argument`, which `AsyncFnOnce` can't express yet.
/// Every async closure is one where its future allows it.
pub trait SendAsyncFn<Argument, Output>: FnOnce(Argument) -> Self::Future {
    /// What it returns.
    type Future: Future<Output = Output> + Send;
}

impl<F, Argument, Output, Fut> SendAsyncFn<Argument, Output> for F
where
    F: FnOnce(Argument) -> Fut,
    Fut: Future<Output = Output> + Send,
{
    type Future = Fut;
}

impl CallDatabase {
    /// Makes the change that `mutation` asks for, and keeps its response, in one transaction. A repeat
    /// changes nothing and gets the response that was kept.
    ///
    /// It runs to its end even when the caller goes away in the middle of it. tonic drops a handler when
    /// its client cancels, and a transaction that is dropped between two of its statements costs a
    /// connection. With this the client's leaving changes nothing: the write commits or fails as if it
    /// had stayed.
    ///
    /// # Errors
    /// Those of `write`; if the request id was used with another body, or the first try goes on for
    /// longer than we wait; the database's.
    pub async fn mutate<T, R, E, F>(&self, mutation: Mutation<T, R>, write: F) -> Result<R, E>
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
            let mut conn = database.get().await?;
            let (response, done) = conn
                .transaction(async |conn| {
                    if let Some(response) = mutation.earlier_response(conn).await? {
                        return Ok((response, None));
                    }
                    let done = write(conn).await?;
                    let response = (mutation.encode)(&done);
                    if let Some(request) = &mutation.request {
                        request.keep_response(conn, &response).await?;
                    }
                    Ok::<_, E>((response, Some(done)))
                })
                .await?;
            if let (Some(done), Some(committed)) = (done, mutation.committed) {
                committed(&done);
            }
            Ok(response)
        })
        .await
    }

    /// The response that the same request got before, if it did.
    ///
    /// # Errors
    /// If the request id was used with another body, if the first try goes on for longer than we wait,
    /// or if the database fails.
    pub async fn earlier_response<T, R>(
        &self,
        mutation: Mutation<T, R>,
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
            let mut conn = database.get().await?;
            conn.transaction(async |conn| mutation.earlier_response(conn).await)
                .await
        })
        .await
    }
}

impl RequestKey {
    /// The key of a request with the encoded `body`, which is the request without its id: an id may
    /// be spelled in several ways. The id `""` makes none.
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

    async fn earlier_response(
        &self,
        conn: &mut AsyncPgConnection,
    ) -> Result<Option<Vec<u8>>, CallError> {
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

    async fn keep_response(
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

    /// An advisory lock and not a row, because a wait for a row's insertion has no limit of its
    /// own. Two ids with one hash only wait for each other.
    async fn lock(&self, conn: &mut AsyncPgConnection) -> QueryResult<bool> {
        let name = format!("{} {}", self.method, self.request_id);
        for _ in 0..IN_FLIGHT_TRIES {
            let Locked { locked } = diesel::sql_query(
                "select pg_try_advisory_xact_lock(hashtextextended($1, 0)) as locked",
            )
            .bind::<sql_types::Text, _>(&name)
            .get_result(conn)
            .await?;
            if locked {
                return Ok(true);
            }
            tokio::time::sleep(IN_FLIGHT_PAUSE).await;
        }
        Ok(false)
    }
}

#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = sql_types::Bool)]
    locked: bool,
}

/// Deletes answers that need not be kept any longer, now and then until `shutdown`.
pub async fn sweep(pool: Pool, shutdown: CancellationToken) {
    loop {
        if let Err(err) = sweep_all(&pool).await {
            tracing::warn!(error = %err, "could not sweep old request ids, trying later");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
    }
}

async fn sweep_all(pool: &Pool) -> Result<(), DatabaseError> {
    while sweep_batch(pool).await? == SWEEP_BATCH {}
    Ok(())
}

async fn sweep_batch(pool: &Pool) -> Result<i64, DatabaseError> {
    let mut conn = pool.get().await?;
    let deleted = diesel::sql_query(format!(
        "delete from request_ids where (method, request_id) in (
             select method, request_id from request_ids
             where created_at < now() - interval '{KEPT}'
             order by created_at limit {SWEEP_BATCH} for update skip locked)"
    ))
    .execute(&mut conn)
    .await?;
    Ok(i64::try_from(deleted).unwrap_or(SWEEP_BATCH))
}
