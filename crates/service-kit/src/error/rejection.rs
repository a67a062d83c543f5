use std::time::Duration;

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use super::{
    Reason, Violations,
    reasons::{INTERNAL, VALIDATION_FAILED},
};

/// An error as a client sees it: a code for retry policies, a reason for programs, and a message for
/// developers. Every error has all three.
#[derive(Debug)]
pub struct Rejection {
    reason: Reason,
    message: String,
    details: ErrorDetails,
    retry_after: Option<Duration>,
}

impl Rejection {
    /// Creates an error without further details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let (message, details) = (message.into(), ErrorDetails::new());
        Self {
            reason,
            message,
            details,
            retry_after: None,
        }
    }

    /// Creates a `VALIDATION_FAILED` error that lists every invalid field.
    pub fn from_violations(violations: Violations) -> Self {
        let violations = violations.into_vec();
        let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        let message = format!("invalid fields: {}", fields.join(", "));
        let mut rejection = Self::new(VALIDATION_FAILED, message);
        rejection.details.set_bad_request(violations);
        rejection
    }

    /// Logs a bug under a new id, and creates an error that shows only the id.
    pub fn internal(err: &(dyn std::error::Error + 'static)) -> Self {
        let error_id = Uuid::new_v4();
        tracing::error!(%error_id, error = %cli::chain(err), "internal error");
        let message = format!("internal error {error_id}; include this id when reporting it");
        let mut rejection = Self::new(INTERNAL, message);
        rejection.details.set_request_info(error_id, "");
        rejection
    }

    /// Adds the resource that the error is about.
    #[must_use]
    pub fn with_resource(mut self, resource_type: &str, name: impl Into<String>) -> Self {
        let description = self.message.clone();
        self.details
            .set_resource_info(resource_type, name, "", description);
        self
    }

    /// Adds the precondition that failed.
    #[must_use]
    pub fn with_precondition(mut self, kind: &str, subject: impl Into<String>) -> Self {
        let description = self.message.clone();
        self.details
            .add_precondition_failure_violation(kind, subject, description);
        self
    }

    /// Adds the delay after which a retry may succeed.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Converts the error to a gRPC status; `domain` is the name of the service.
    pub fn into_status(mut self, domain: &str) -> Status {
        self.details
            .set_error_info(self.reason.name, domain, std::collections::HashMap::new());
        if let Some(delay) = self.retry_after {
            self.details.set_retry_info(Some(delay));
        }
        let mut status = Status::with_error_details(self.reason.code, self.message, self.details);
        // Client retry policies cover these codes: they wait for this delay, or at -1 do not retry.
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
