//! The grammar of filters: `field[:operator]=value,value`, as upstream parses it.
//!
//! A comma is OR, a repeated key is AND, and `null` is `IS NULL`. Unknown fields and unknown `_`
//! keys are ignored. Filters for which upstream returns a database error or silently a wrong list
//! are rejected here with a reason. Values become parameters of a statement, never text of it.

mod field;
mod statuses;

use super::error::ApiError;
use super::params::{MAX_VALUES, Params, integer};
pub(super) use field::{Field, Kind, Operator};
pub(super) use statuses::Statuses;

/// The comparison of a run's tags and system tags, combined, with the given ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TagOperator {
    All,
    Any,
    LikeAny,
    LikeAll,
}

/// The values of a clause, without `null`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Values {
    /// Also JSON, which the database parses.
    Text(Vec<String>),
    Integers(Vec<i64>),
}

/// One condition. A run must meet all conditions of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Clause {
    /// The field matches one of the values, or is null if that is allowed.
    Field {
        field: Field,
        operator: Operator,
        values: Values,
        or_null: bool,
    },
    Tags(TagOperator, Vec<String>),
}

/// The filter of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// None if the request does not filter on status.
    pub(super) statuses: Option<Statuses>,
    /// The conditions on other fields.
    pub(super) clauses: Vec<Clause>,
}

impl Filter {
    /// Reads the filter from the parameters, and ignores all others.
    pub(super) fn read(params: &Params) -> Result<Self, ApiError> {
        let mut filter = Self::default();
        // A repeated `status=` is OR. Any other condition on status is AND.
        let mut equal = None;
        let mut narrowed = None;
        let mut count = 0;
        for (key, text) in params.iter() {
            let (name, operator) = match key.split_once(':') {
                Some((name, operator)) => (name, Some(operator)),
                None => (key, None),
            };
            let values: Vec<&str> = text.split(',').collect();
            if name == "_tags" {
                count += values.len();
                filter.clauses.push(tags(operator, &values));
            } else if let Some(field) = Field::find(name) {
                count += values.len();
                let operator = known_operator(field, operator)?;
                if field != Field::Status {
                    filter.clauses.push(clause(field, operator, &values)?);
                    continue;
                }
                let wanted = Statuses::read(operator, &values)?;
                if operator == Operator::Eq {
                    equal = Some(equal.map_or(wanted, |so_far: Statuses| so_far.or(wanted)));
                } else {
                    narrowed = Some(narrowed.unwrap_or(Statuses::ALL).and(wanted));
                }
            }
        }
        if count > MAX_VALUES {
            return Err(ApiError::bad_request(format!(
                "too many filter values: the limit is {MAX_VALUES}"
            )));
        }
        filter.statuses = match (equal, narrowed) {
            (Some(equal), Some(narrowed)) => Some(equal.and(narrowed)),
            (one, other) => one.or(other),
        };
        Ok(filter)
    }

    /// Whether every run matches.
    pub(super) fn is_empty(&self) -> bool {
        self.statuses.is_none() && self.clauses.is_empty()
    }
}

fn known_operator(field: Field, name: Option<&str>) -> Result<Operator, ApiError> {
    let name = name.unwrap_or("eq");
    Operator::find(name)
        .filter(|operator| operator.fits(field.kind()))
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "unsupported operator '{name}' for field '{}'",
                field.name()
            ))
        })
}

/// An unknown operator means `all`, as it does for upstream.
fn tags(operator: Option<&str>, values: &[&str]) -> Clause {
    let operator = match operator {
        Some("any") => TagOperator::Any,
        Some("likeany") => TagOperator::LikeAny,
        Some("likeall") => TagOperator::LikeAll,
        _ => TagOperator::All,
    };
    let owned = values.iter().map(|value| match operator {
        TagOperator::LikeAny | TagOperator::LikeAll => format!("%{value}%"),
        _ => (*value).to_owned(),
    });
    Clause::Tags(operator, owned.collect())
}

fn clause(field: Field, operator: Operator, texts: &[&str]) -> Result<Clause, ApiError> {
    let or_null = texts.contains(&"null");
    let given = texts.iter().copied().filter(|text| *text != "null");
    let values = if field.kind() == Kind::Integer {
        Values::Integers(
            given
                .map(|text| whole(field, operator, text))
                .collect::<Result<_, _>>()?,
        )
    } else {
        Values::Text(
            given
                .map(|text| text_value(field, operator, text))
                .collect::<Result<_, _>>()?,
        )
    };
    Ok(Clause::Field {
        field,
        operator,
        values,
        or_null,
    })
}

fn whole(field: Field, operator: Operator, text: &str) -> Result<i64, ApiError> {
    let unit = match field {
        Field::RunNumber => "expected integer",
        _ => "expected integer epoch milliseconds",
    };
    let value = integer(text).ok_or_else(|| {
        ApiError::bad_request(format!("invalid {}: {unit}, got '{text}'", field.name()))
    })?;
    if operator == Operator::Is {
        return Err(only_null(field, text));
    }
    Ok(value)
}

fn text_value(field: Field, operator: Operator, text: &str) -> Result<String, ApiError> {
    if operator == Operator::Is {
        return Err(only_null(field, text));
    }
    if field.kind() == Kind::Json && serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return Err(ApiError::bad_request(format!(
            "invalid {}: expected JSON, got '{text}'",
            field.name()
        )));
    }
    Ok(match operator {
        Operator::Contains => format!("%{text}%"),
        Operator::StartsWith => format!("{text}%"),
        Operator::EndsWith => whole_pattern(format!("%{text}"))?,
        Operator::Like => whole_pattern(text.to_owned())?,
        _ => text.to_owned(),
    })
}

/// Rejects a pattern that ends within an escape. For PostgreSQL it is an error too, but only if a
/// row matches up to that point.
fn whole_pattern(pattern: String) -> Result<String, ApiError> {
    let backslashes = pattern.bytes().rev().take_while(|byte| *byte == b'\\');
    if backslashes.count() % 2 == 1 {
        return Err(ApiError::bad_request(
            "invalid pattern: it ends with the escape character '\\'",
        ));
    }
    Ok(pattern)
}

fn only_null(field: Field, value: &str) -> ApiError {
    ApiError::bad_request(format!(
        "invalid {}: the operator 'is' takes null, got '{value}'",
        field.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;

    fn read(query: &str) -> Result<Filter, ApiError> {
        Filter::read(&Params::read(query).expect("decodes"))
    }

    fn wanted(query: &str) -> Option<Vec<&'static str>> {
        let statuses = read(query).expect("valid").statuses?;
        Some(statuses.list().into_iter().map(Status::as_str).collect())
    }

    #[test]
    fn status_conditions_are_combined() {
        let cases: [(&str, Option<&[&str]>); 14] = [
            ("", None),
            ("user=x", None),
            ("status=running", Some(&["running"])),
            ("status:eq=running,failed", Some(&["running", "failed"])),
            ("status=running,running", Some(&["running"])),
            ("status=failed&status=running", Some(&["running", "failed"])),
            ("status=failed&status:eq=failed", Some(&["failed"])),
            ("status:ne=failed", Some(&["running", "completed"])),
            (
                "status:ne=failed,running",
                Some(&["running", "completed", "failed"]),
            ),
            ("status:ne=failed&status:ne=running", Some(&["completed"])),
            ("status=failed,running&status:ne=failed", Some(&["running"])),
            ("status=null", Some(&[])),
            ("status:is=null", Some(&[])),
            ("status:sw=completed", Some(&["completed"])),
        ];
        for (query, expected) in cases {
            assert_eq!(wanted(query).as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn unknown_keys_are_ignored() {
        assert!(
            read("bogus=1&_bogus:x=2&Status=failed&_limit=3")
                .expect("valid")
                .is_empty()
        );
    }

    #[test]
    fn filters_that_upstreams_database_rejects_are_rejected() {
        for query in [
            "status",
            "status:=failed",
            "status:gt=failed",
            "status:is=failed",
            "user_name:=x",
            "user_name:is=x",
            "user_name:li=a\\",
            "run_number=x",
            "run_number:co=1",
            "ts_epoch:ge=1_0",
            "ts_epoch:sw=1",
            "last_heartbeat_ts=9223372036854775808",
            "tags=x",
            "tags=[\"a\",\"b\"]",
            "tags:co=a",
            "system_tags:li=a",
        ] {
            assert!(read(query).is_err(), "{query}");
        }
        assert!(read("user_name:li=a\\\\&user_name:co=a\\").is_ok());
    }
}
