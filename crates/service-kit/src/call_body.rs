//! The bodies of a call, which record when its request and its response end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};

use crate::connections::CallActivity;

type Data = <Body as HttpBody>::Data;
type PolledFrame = Poll<Option<Result<Frame<Data>, Status>>>;

/// The body of a request, which must begin before the deadline of the call. A call whose handler reads its requests
/// only after the response has begun has no other limit.
pub(crate) struct RequestBody {
    inner: Body,
    call: Arc<CallActivity>,
    /// The time limit of the first frame, and the error after it.
    first_frame: Option<(Pin<Box<Sleep>>, Status)>,
}

/// The body of a response.
pub(crate) struct ResponseBody {
    inner: Body,
    _call: Arc<CallActivity>,
}

impl RequestBody {
    pub(crate) fn wrap(
        inner: Body,
        call: Arc<CallActivity>,
        deadline: Instant,
        late: Status,
    ) -> Body {
        let first_frame = (!inner.is_end_stream()).then(|| (Box::pin(sleep_until(deadline)), late));
        if first_frame.is_none() {
            call.record_end_of_request();
        }
        Body::new(Self {
            inner,
            call,
            first_frame,
        })
    }
}

impl ResponseBody {
    pub(crate) fn wrap(inner: Body, call: Arc<CallActivity>) -> Body {
        Body::new(Self { inner, _call: call })
    }
}

impl HttpBody for RequestBody {
    type Data = Data;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        let this = &mut *self;
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        if let Poll::Ready(frame) = frame {
            this.first_frame = None;
            if frame.is_none() || this.inner.is_end_stream() {
                this.call.record_end_of_request();
            }
            return Poll::Ready(frame);
        }
        if let Some((deadline, late)) = &mut this.first_frame
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(late.clone())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl HttpBody for ResponseBody {
    type Data = Data;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
