//! Requests that can be repeated: the first answer is kept, in the transaction that it tells of,
//! and given again. See <https://google.aip.dev/155>.

use std::time::Duration;

use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, QueryResult, QueryableByName,
    sql_types,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use diesel_migrations::EmbeddedMigrations;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    call_error::CallError,
    database::{DatabaseError, Pool},
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

/// What surrounds a request to write.
#[derive(Clone, Debug, Default)]
pub struct WriteContext {
    /// Tells a repeat from a new request; none if the caller gave no request id.
    pub request: Option<RequestKey>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
}

/// The answer to a request to write.
#[derive(Clone, Debug)]
pub enum Answer<T> {
    /// It was done now.
    Done(T),
    /// It was done before, with this response.
    Repeated(Vec<u8>),
}

impl<T> Answer<T> {
    /// The answer as a message: as `encode` makes it of what was done now, or as it was kept.
    ///
    /// # Errors
    /// If what was kept is no such message, which would be a bug.
    pub fn into_message<M: Message + Default>(
        self,
        encode: impl FnOnce(&T) -> M,
    ) -> Result<M, CallError> {
        match self {
            Self::Done(done) => Ok(encode(&done)),
            Self::Repeated(response) => M::decode(&*response).map_err(CallError::bug),
        }
    }
}

impl WriteContext {
    /// The response that the same request got before, if it did. Keeps others with the same id
    /// waiting until the transaction of `conn` ends; call it as the first of its statements.
    ///
    /// # Errors
    /// If the id was used with another body, if the first try goes on for longer than we wait, or
    /// if the database fails.
    pub async fn earlier_response(
        &self,
        conn: &mut AsyncPgConnection,
    ) -> Result<Option<Vec<u8>>, CallError> {
        match &self.request {
            Some(request) => request.earlier_response(conn).await,
            None => Ok(None),
        }
    }

    /// Keeps the response, in the transaction of the write that it tells of.
    ///
    /// # Errors
    /// The database's.
    pub async fn keep_response(
        &self,
        conn: &mut AsyncPgConnection,
        response: impl FnOnce() -> Vec<u8>,
    ) -> QueryResult<()> {
        match &self.request {
            Some(request) => request.keep_response(conn, &response()).await,
            None => Ok(()),
        }
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
        response: &[u8],
    ) -> QueryResult<()> {
        diesel::insert_into(request_ids::table)
            .values((
                request_ids::method.eq(self.method),
                request_ids::request_id.eq(self.request_id),
                request_ids::fingerprint.eq(&self.fingerprint),
                request_ids::response.eq(response),
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
