//! The status filter, reduced to a set of statuses.

use super::field::{Field, Operator};
use super::only_null;
use crate::api::error::ApiError;
use crate::status::Status;

/// A set of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) struct Statuses([bool; 3]);

impl Statuses {
    pub(super) const ALL: Self = Self([true; 3]);
    const NONE: Self = Self([false; 3]);

    fn is(wanted: Status) -> Self {
        Self(Status::ALL.map(|status| status == wanted))
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] || other.0[at]))
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] && other.0[at]))
    }

    fn not(self) -> Self {
        Self(self.0.map(|wanted| !wanted))
    }

    /// Its statuses, in a fixed order.
    pub(in crate::api) fn list(self) -> Vec<Status> {
        Status::ALL
            .into_iter()
            .zip(self.0)
            .filter_map(|(status, wanted)| wanted.then_some(status))
            .collect()
    }

    /// The statuses that match any of the values. A pattern must be a whole status, so it matches
    /// only that one.
    pub(super) fn read(operator: Operator, values: &[&str]) -> Result<Self, ApiError> {
        let mut wanted = Self::NONE;
        for value in values {
            if *value == "null" {
                continue; // The column is never null.
            }
            let status = Status::ALL
                .into_iter()
                .find(|status| status.as_str() == *value)
                .ok_or_else(|| {
                    ApiError::bad_request(format!("unsupported status filter: {value}"))
                })?;
            wanted = wanted.or(match operator {
                Operator::Is => return Err(only_null(Field::Status, value)),
                Operator::Ne => Self::is(status).not(),
                _ => Self::is(status),
            });
        }
        Ok(wanted)
    }
}
