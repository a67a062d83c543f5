//! The outermost layer around every call: its deadline, and details on the errors that tonic makes.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body, metadata::MetadataMap};
use tower::{BoxError, Layer, Service};

use crate::{
    CallError, Reason, Rejection,
    error::{MALFORMED_MESSAGE, MESSAGE_TOO_LARGE, TRANSPORT, UNIMPLEMENTED},
};

/// When the caller, or the server for it, gives up on a call. Handlers find it in the request's
/// extensions.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// How long a call may take to which nobody has given a deadline: one that did not come through our
/// server.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

impl Deadline {
    /// That of a call.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let deadline = request.extensions().get::<Self>().copied();
        deadline.unwrap_or_else(|| Self(Instant::now() + DEFAULT_DEADLINE))
    }
}

/// When the caller gives up, if it says so. A stream lasts until then: the [`Deadline`] that every call
/// has counts for its first answer only.
pub fn asked_deadline(metadata: &MetadataMap) -> Option<Instant> {
    Instant::now().checked_add(grpc_timeout(metadata.as_ref())?)
}

/// Gives every call a [`Deadline`] and answers DEADLINE_EXCEEDED when it has passed.
///
/// tonic's own timeout answers CANCELLED, which tells a caller that it was itself who gave up. Ours
/// is set a moment before tonic's and polled before it, so that it always wins.
#[derive(Clone, Debug)]
pub(crate) struct CallLayer {
    pub(crate) domain: &'static str,
    pub(crate) max_deadline: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Call<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Layer<S> for CallLayer {
    type Service = Call<S>;

    fn layer(&self, inner: S) -> Call<S> {
        Call {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for Call<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let CallLayer {
            domain,
            max_deadline,
        } = self.layer;
        let asked = grpc_timeout(request.headers());
        // A health watch or a reflection stream lasts as long as its client likes.
        let limit = if request.uri().path().starts_with("/grpc.") {
            asked
        } else {
            Some(asked.map_or(max_deadline, |asked| asked.min(max_deadline)))
        };
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match deadline {
                None => answer.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_) => return Ok(deadline_exceeded(domain).into_http()),
                },
            };
            answer
                .map(|answer| explain(answer, domain))
                .map_err(Into::into)
        })
    }
}

fn deadline_exceeded(domain: &'static str) -> Status {
    Rejection::from(CallError::DeadlineExceeded).into_status(domain)
}

/// Adds the details that tonic's own errors lack, and mends the code of some.
fn explain(mut answer: Response<Body>, domain: &'static str) -> Response<Body> {
    let Some(status) = Status::from_header_map(answer.headers()) else {
        return answer;
    };
    if status.code() == Code::Ok || !status.details().is_empty() {
        return answer;
    }
    let message = status.message();
    let rejection = match status.code() {
        // tonic's word for a message over the limit; every other gRPC server says the other.
        Code::OutOfRange => Rejection::new(MESSAGE_TOO_LARGE, message),
        // A path that nobody has; for everything else tonic finds words.
        Code::Unimplemented if message.is_empty() => {
            let message = "there is no such method; list them with server reflection";
            Rejection::new(UNIMPLEMENTED, message)
        }
        Code::Unimplemented => Rejection::new(UNIMPLEMENTED, message),
        // Bytes that are no such message, which tonic takes for a fault of its own.
        Code::Internal
            if ["decode", "EOF decoding", "decompressing"]
                .into_iter()
                .any(|text| message.contains(text)) =>
        {
            Rejection::new(MALFORMED_MESSAGE, message)
        }
        // The limit holds for what a message unpacks to, too.
        Code::ResourceExhausted if message.contains("decompressing") => {
            Rejection::new(MESSAGE_TOO_LARGE, message)
        }
        code => Rejection::new(Reason { code, ..TRANSPORT }, message),
    };
    // The other headers stay: they say, for example, which compression would be understood.
    match rejection
        .into_status(domain)
        .add_header(answer.headers_mut())
    {
        Ok(()) => answer,
        Err(status) => status.into_http(),
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit, as the gRPC specification of HTTP/2 has
/// it. What can't be read counts as absent.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        grpc_timeout(&headers)
    }

    #[test]
    fn a_timeout_is_read_as_specified() {
        assert_eq!(parsed("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            parsed("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for bad in ["", "m", "1", "1x", "-1S", "123456789S", "1.5S"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
