use std::fmt::Display;

use tonic_types::FieldViolation;
use uuid::Uuid;

/// Collects what is wrong with a request, so that the caller learns of all of it at once.
#[derive(Debug, Default)]
pub struct Violations(Vec<FieldViolation>);

impl Violations {
    /// The value, or a note that the field can't hold it.
    pub fn check<T, E: Display>(&mut self, field: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|reason| self.add(field, reason)).ok()
    }

    /// The id in `text`, or a note that there is none.
    pub fn id(&mut self, field: &str, text: &str) -> Option<Uuid> {
        self.check(field, text.parse().map_err(|_| "must be a UUID"))
    }

    /// Notes what is wrong with a field; `field` is a path, as `amount.nanos`.
    pub fn add(&mut self, field: &str, reason: impl Display) {
        self.0.push(FieldViolation::new(field, reason.to_string()));
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<FieldViolation> {
        self.0
    }
}
