use std::time::Duration;

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use super::{
    Reason, Violations,
    reasons::{INTERNAL, VALIDATION_FAILED},
};

/// An error as a client sees it: a code for its retry policy, a reason for its code, a message for
/// its developer. Each part is there on every error.
#[derive(Debug)]
pub struct Rejection {
    reason: Reason,
    message: String,
    details: ErrorDetails,
    retry_after: Option<Duration>,
}

impl Rejection {
    /// An error that says no more than this.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let (message, details) = (message.into(), ErrorDetails::new());
        Self {
            reason,
            message,
            details,
            retry_after: None,
        }
    }

    /// Fields of the request that can't be accepted, all of them.
    pub fn invalid(violations: Violations) -> Self {
        let violations = violations.into_vec();
        let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        let message = format!("invalid: {}", fields.join(", "));
        let mut rejection = Self::new(VALIDATION_FAILED, message);
        rejection.details.set_bad_request(violations);
        rejection
    }

    /// An error that is ours. The caller gets a number to quote, under which the log has the rest.
    pub fn bug(err: &(dyn std::error::Error + 'static)) -> Self {
        let quote = Uuid::new_v4();
        tracing::error!(%quote, error = %cli::chain(err), "internal error");
        let message = format!("internal error; quote {quote} when you report it");
        let mut rejection = Self::new(INTERNAL, message);
        rejection.details.set_request_info(quote, "");
        rejection
    }

    /// Names the thing that the error is about.
    #[must_use]
    pub fn about(mut self, resource_type: &str, name: impl Into<String>) -> Self {
        let description = self.message.clone();
        self.details
            .set_resource_info(resource_type, name, "", description);
        self
    }

    /// Says which condition must hold first.
    #[must_use]
    pub fn requires(mut self, kind: &str, subject: impl Into<String>) -> Self {
        let description = self.message.clone();
        self.details
            .add_precondition_failure_violation(kind, subject, description);
        self
    }

    /// Says that the same call may succeed after a while.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The error on the wire; `domain` is the service that answers.
    pub fn into_status(mut self, domain: &str) -> Status {
        self.details
            .set_error_info(self.reason.name, domain, std::collections::HashMap::new());
        if let Some(delay) = self.retry_after {
            self.details.set_retry_info(Some(delay));
        }
        let mut status = Status::with_error_details(self.reason.code, self.message, self.details);
        // Clients that retry by themselves do so for these codes: after so long, or, at -1, not at all.
        if let Code::Unavailable | Code::ResourceExhausted = self.reason.code {
            let delay_ms = self.retry_after.map_or(-1, |delay| {
                i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
            });
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", MetadataValue::from(delay_ms));
        }
        status
    }
}
