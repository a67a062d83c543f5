use std::fmt::Display;

use tonic_types::FieldViolation;
use uuid::Uuid;

/// Collects all invalid fields of a request for one response.
#[derive(Debug, Default)]
pub struct Violations(Vec<FieldViolation>);

impl Violations {
    /// Returns the value, or records the error as a violation of `field`.
    pub fn collect<T, E: Display>(&mut self, field: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|reason| self.add(field, reason)).ok()
    }

    /// Parses a UUID, or records a violation of `field`.
    pub fn parse_uuid(&mut self, field: &str, text: &str) -> Option<Uuid> {
        self.collect(field, text.parse().map_err(|_| "must be a UUID"))
    }

    /// Records a violation; `field` is a path such as `amount.nanos`.
    pub fn add(&mut self, field: &str, reason: impl Display) {
        self.0.push(FieldViolation::new(field, reason.to_string()));
    }

    /// Returns true if no violation was recorded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<FieldViolation> {
        self.0
    }
}
