//! The grammar of filters: `field[:operator]=value,value`, as upstream reads it.
//!
//! A comma is OR, a repeated key is AND, `null` is `IS NULL`; unknown fields and unknown `_` keys
//! are ignored. What upstream would answer with an error of its database, or with a list that the
//! filter silently did not reach, is refused here with a reason.

use super::error::ApiError;
use super::params::{MAX_VALUES, Params, integer};
use crate::status::Status;

/// What runs can be filtered by, besides `_tags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    FlowId,
    RunNumber,
    RunId,
    UserName,
    TsEpoch,
    LastHeartbeatTs,
    Tags,
    SystemTags,
    User,
    Status,
}

/// How values of a field are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Json,
    Status,
}

impl Field {
    pub(super) const ALL: [Self; 10] = [
        Self::FlowId,
        Self::RunNumber,
        Self::RunId,
        Self::UserName,
        Self::TsEpoch,
        Self::LastHeartbeatTs,
        Self::Tags,
        Self::SystemTags,
        Self::User,
        Self::Status,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FlowId => "flow_id",
            Self::RunNumber => "run_number",
            Self::RunId => "run_id",
            Self::UserName => "user_name",
            Self::TsEpoch => "ts_epoch",
            Self::LastHeartbeatTs => "last_heartbeat_ts",
            Self::Tags => "tags",
            Self::SystemTags => "system_tags",
            Self::User => "user",
            Self::Status => "status",
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::FlowId | Self::RunId | Self::UserName | Self::User => Kind::Text,
            Self::RunNumber | Self::TsEpoch | Self::LastHeartbeatTs => Kind::Integer,
            Self::Tags | Self::SystemTags => Kind::Json,
            Self::Status => Kind::Status,
        }
    }

    fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// How a field is compared with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Contains,
    StartsWith,
    EndsWith,
    Like,
    Is,
}

impl Operator {
    pub(super) const ALL: [Self; 11] = [
        Self::Eq,
        Self::Ne,
        Self::Lt,
        Self::Le,
        Self::Gt,
        Self::Ge,
        Self::Contains,
        Self::StartsWith,
        Self::EndsWith,
        Self::Like,
        Self::Is,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Lt => "lt",
            Self::Le => "le",
            Self::Gt => "gt",
            Self::Ge => "ge",
            Self::Contains => "co",
            Self::StartsWith => "sw",
            Self::EndsWith => "ew",
            Self::Like => "li",
            Self::Is => "is",
        }
    }

    /// True for those that compare by an ILIKE pattern.
    pub(super) fn is_pattern(self) -> bool {
        matches!(
            self,
            Self::Contains | Self::StartsWith | Self::EndsWith | Self::Like
        )
    }

    /// Whether a field can be compared so.
    pub(super) fn fits(self, kind: Kind) -> bool {
        match kind {
            Kind::Text => true,
            Kind::Integer | Kind::Json => !self.is_pattern(),
            Kind::Status => self.is_pattern() || matches!(self, Self::Eq | Self::Ne | Self::Is),
        }
    }

    fn find(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operator| operator.name() == name)
    }
}

/// How a run's own and system tags, taken together, are compared with the wanted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TagOperator {
    All,
    Any,
    LikeAny,
    LikeAll,
}

/// The values of a clause, `null` left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Values {
    /// Also JSON, which the database reads from text.
    Text(Vec<String>),
    Integers(Vec<i64>),
}

/// One condition; all of a request hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Clause {
    /// One of the values, or null where that is wanted too.
    Field {
        field: Field,
        operator: Operator,
        values: Values,
        or_null: bool,
    },
    Tags(TagOperator, Vec<String>),
}

/// Some of the three statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Statuses([bool; 3]);

impl Statuses {
    const ALL: Self = Self([true; 3]);
    const NONE: Self = Self([false; 3]);

    fn is(wanted: Status) -> Self {
        Self(Status::ALL.map(|status| status == wanted))
    }

    fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] || other.0[at]))
    }

    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] && other.0[at]))
    }

    fn not(self) -> Self {
        Self(self.0.map(|wanted| !wanted))
    }

    /// Those that are wanted, each once, in a fixed order.
    pub(super) fn list(self) -> Vec<Status> {
        Status::ALL
            .into_iter()
            .zip(self.0)
            .filter_map(|(status, wanted)| wanted.then_some(status))
            .collect()
    }
}

/// What a request wants of the runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// None where the request does not filter on status.
    pub(super) statuses: Option<Statuses>,
    /// Everything else.
    pub(super) clauses: Vec<Clause>,
}

impl Filter {
    /// Reads the filters among the parameters.
    pub(super) fn read(params: &Params) -> Result<Self, ApiError> {
        let mut filter = Self::default();
        // Repeating `status=` is OR; any other status condition narrows.
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
                let wanted = statuses(operator, &values)?;
                if operator == Operator::Eq {
                    equal = Some(equal.map_or(wanted, |so_far: Statuses| so_far.or(wanted)));
                } else {
                    narrowed = Some(narrowed.unwrap_or(Statuses::ALL).and(wanted));
                }
            }
        }
        if count > MAX_VALUES {
            return Err(ApiError::bad(format!(
                "too many filter values: at most {MAX_VALUES} are read"
            )));
        }
        filter.statuses = match (equal, narrowed) {
            (Some(equal), Some(narrowed)) => Some(equal.and(narrowed)),
            (one, other) => one.or(other),
        };
        Ok(filter)
    }

    /// True where every run passes.
    pub(super) fn is_empty(&self) -> bool {
        self.statuses.is_none() && self.clauses.is_empty()
    }
}

fn known_operator(field: Field, name: Option<&str>) -> Result<Operator, ApiError> {
    let name = name.unwrap_or("eq");
    Operator::find(name)
        .filter(|operator| operator.fits(field.kind()))
        .ok_or_else(|| {
            ApiError::bad(format!(
                "unsupported operator '{name}' for field '{}'",
                field.name()
            ))
        })
}

/// An unknown operator means `all`, as upstream takes it.
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

/// The statuses that any of the values allows. The values of patterns are whole statuses, so a
/// pattern can match no other.
fn statuses(operator: Operator, values: &[&str]) -> Result<Statuses, ApiError> {
    let mut wanted = Statuses::NONE;
    for value in values {
        if *value == "null" {
            continue; // No run has no status.
        }
        let status = Status::ALL
            .into_iter()
            .find(|status| status.as_str() == *value)
            .ok_or_else(|| ApiError::bad(format!("unsupported status filter: {value}")))?;
        wanted = wanted.or(match operator {
            Operator::Is => return Err(only_null(Field::Status, value)),
            Operator::Ne => Statuses::is(status).not(),
            _ => Statuses::is(status),
        });
    }
    Ok(wanted)
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
    let value = integer(text)
        .ok_or_else(|| ApiError::bad(format!("invalid {}: {unit}, got '{text}'", field.name())))?;
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
        return Err(ApiError::bad(format!(
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

/// A pattern that ends in the middle of an escape is an error of the database, though only once it
/// meets a row that gets so far.
fn whole_pattern(pattern: String) -> Result<String, ApiError> {
    let backslashes = pattern.bytes().rev().take_while(|byte| *byte == b'\\');
    if backslashes.count() % 2 == 1 {
        return Err(ApiError::bad(
            "invalid pattern: it ends with the escape character '\\'",
        ));
    }
    Ok(pattern)
}

fn only_null(field: Field, value: &str) -> ApiError {
    ApiError::bad(format!(
        "invalid {}: the operator 'is' takes null, got '{value}'",
        field.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Filter, ApiError> {
        Filter::read(&Params::read(query).expect("decodes"))
    }

    fn wanted(query: &str) -> Option<Vec<&'static str>> {
        let statuses = read(query).expect("valid").statuses?;
        Some(statuses.list().into_iter().map(Status::as_str).collect())
    }

    #[test]
    fn statuses_add_up() {
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
    fn what_upstreams_database_would_choke_on_is_refused() {
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
