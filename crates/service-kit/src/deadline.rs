//! The layer around every gRPC call, inside CORS and gRPC-Web: sets its deadline, and adds details to tonic's own
//! errors.

use std::{
    error::Error,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body, metadata::MetadataMap};
use tower::{BoxError, Layer, Service};

use crate::{
    CallError, Reason, Rejection,
    call_body::{RequestBody, ResponseBody},
    connections::CallActivity,
    error::{MALFORMED_MESSAGE, MESSAGE_TOO_LARGE, TRANSPORT, UNIMPLEMENTED},
};

/// The time at which a call fails with DEADLINE_EXCEEDED, set by the caller or the server. Handlers
/// find it in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// The limit of a call without a [`Deadline`], which did not pass through [`CallLayer`].
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

impl Deadline {
    /// Returns the deadline of a call.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let deadline = request.extensions().get::<Self>().copied();
        deadline.unwrap_or_else(|| Self(Instant::now() + DEFAULT_DEADLINE))
    }
}

/// Returns the deadline that the caller requested, if any. It limits a whole stream; the [`Deadline`]
/// of a call limits only the time to its first response.
pub fn requested_deadline(metadata: &MetadataMap) -> Option<Instant> {
    Instant::now().checked_add(parse_grpc_timeout(metadata.as_ref())?)
}

/// Sets a [`Deadline`] on every call and responds with DEADLINE_EXCEEDED when it passes.
///
/// tonic's own timeout responds with CANCELLED, which means that the caller cancelled. This timer is
/// started and polled before tonic's, so it always fires first.
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
        let requested = parse_grpc_timeout(request.headers());
        // The time to the first response. Health watches and reflection streams may last longer.
        let limit = requested.map_or(max_deadline, |requested| requested.min(max_deadline));
        let deadline = Instant::now() + limit;
        request.extensions_mut().insert(Deadline(deadline));
        let call = Arc::new(CallActivity::new(request.extensions().get().cloned()));
        let request = request.map(|body| {
            let late = deadline_exceeded(domain);
            RequestBody::wrap(body, Arc::clone(&call), deadline, late)
        });
        let response = self.inner.call(request);
        Box::pin(async move {
            let Ok(response) = tokio::time::timeout_at(deadline, response).await else {
                return Ok(deadline_exceeded(domain).into_http());
            };
            response
                .map(|response| add_error_details(response, domain))
                .map(|response| response.map(|body| ResponseBody::wrap(body, call)))
                .map_err(Into::into)
        })
    }
}

fn deadline_exceeded(domain: &'static str) -> Status {
    Rejection::from(CallError::DeadlineExceeded).into_status(domain)
}

/// Adds details to errors that tonic itself returns, and corrects the code of some.
fn add_error_details(mut response: Response<Body>, domain: &'static str) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    if status.code() == Code::Ok || !status.details().is_empty() {
        return response;
    }
    let message = status.message();
    let rejection = match status.code() {
        // tonic's code for a message over the limit; other servers return RESOURCE_EXHAUSTED.
        Code::OutOfRange => Rejection::new(MESSAGE_TOO_LARGE, message),
        // An unknown method: the only case for which tonic gives no message.
        Code::Unimplemented if message.is_empty() => {
            let message = "unknown method; list the methods with server reflection";
            Rejection::new(UNIMPLEMENTED, message)
        }
        Code::Unimplemented => Rejection::new(UNIMPLEMENTED, message),
        // Undecodable bytes, for which tonic returns INTERNAL.
        Code::Internal if is_decode_error(&response) => Rejection::new(MALFORMED_MESSAGE, message),
        // The size limit also applies to the decompressed message.
        Code::ResourceExhausted => Rejection::new(MESSAGE_TOO_LARGE, message),
        code => Rejection::new(Reason { code, ..TRANSPORT }, message),
    };
    // Keep the other headers, for example the accepted compression encodings.
    match rejection
        .into_status(domain)
        .add_header(response.headers_mut())
    {
        Ok(()) => response,
        Err(status) => status.into_http(),
    }
}

/// Returns whether the request could not be decoded. tonic keeps its own status in the response, with the source that the codec
/// of the generated code has set.
fn is_decode_error(response: &Response<Body>) -> bool {
    let status: Option<&Status> = response.extensions().get();
    status
        .and_then(Error::source)
        .is_some_and(|source| source.is::<prost::DecodeError>())
}

/// Parses `grpc-timeout`: at most eight digits and a unit, as in the gRPC over HTTP/2 specification.
/// Treats an invalid value as absent.
fn parse_grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
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

    fn parse(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        parse_grpc_timeout(&headers)
    }

    #[test]
    fn a_timeout_is_parsed_as_specified() {
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for bad in ["", "m", "1", "1x", "-1S", "123456789S", "1.5S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
