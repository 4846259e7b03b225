//! Builds the one statement that answers a request for runs.
//!
//! Values are always parameters; what stands in the text is chosen from fixed lists here, and the
//! table's name, quoted when it was migrated. Without other filters than status there are eight
//! texts in all, which sessions prepare once and plan generically.

use tokio_postgres::types::{ToSql, Type};

use super::cursor::Cursor;
use super::filter::{Clause, Field, Filter, Kind, Operator, TagOperator, Values};

/// A statement with its values.
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) params: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
    pub(super) plan: Plan,
}

/// How a statement is to be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// An ordered walk through an index is the one good plan, whatever the values and the
    /// statistics are: prepared once, planned without values, sorting and bitmaps avoided.
    Walk,
    /// Which index serves depends on the values: planned with them.
    ByValue,
}

/// Which runs, and which part of them.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    pub(super) flow_id: &'a str,
    pub(super) filter: &'a Filter,
    pub(super) cursor: Option<Cursor>,
    pub(super) offset: i64,
    /// At most so many rows.
    pub(super) rows: i64,
}

/// Columns in the order of an answer's rows; the status follows where it is asked for. The flow is the
/// request's.
const COLUMNS: &str = "\
r.run_number, r.run_id, r.user_name, r.ts_epoch, r.last_heartbeat_ts, r.tags,
       r.system_tags, r.system_tags ? ('user:' || r.user_name) as owned";

/// The user, where the service itself vouched for the name; the expression that upstream indexes.
const USER: &str = "(case when r.system_tags ? ('user:' || r.user_name) then r.user_name end)";

impl Selection<'_> {
    /// The statement for the runs' table of this (quoted) name.
    ///
    /// With a status filter, each row begins with whether the column is believable, as of the same
    /// snapshot, and there is at least one row, of nulls where no run passes.
    pub(super) fn statement(&self, table: &str) -> Statement {
        let mut builder = Builder::default();
        builder.bind(self.flow_id.to_owned(), Type::TEXT);
        builder.bind(self.rows, Type::INT8);
        builder.bind(self.offset, Type::INT8);
        if let Some(cursor) = self.cursor {
            let ts_epoch = builder.bind(cursor.ts_epoch, Type::INT8);
            let run_number = builder.bind(cursor.run_number, Type::INT8);
            builder.and(&format!(
                "(r.ts_epoch, r.run_number) < ({ts_epoch}, {run_number})"
            ));
        }
        for clause in &self.filter.clauses {
            builder.clause(clause);
        }
        let plan = if self.filter.clauses.is_empty() {
            Plan::Walk
        } else {
            Plan::ByValue
        };
        let sql = match self.filter.statuses {
            None => builder.plain(table),
            Some(statuses) => {
                let statuses: Vec<&'static str> = statuses
                    .list()
                    .into_iter()
                    .map(crate::status::Status::as_str)
                    .collect();
                builder.by_status(table, &statuses, plan)
            }
        };
        Statement {
            sql,
            params: builder.params,
            plan,
        }
    }
}

#[derive(Default)]
struct Builder {
    conditions: String,
    params: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

const FLOW: &str = "$1";
const ROWS: &str = "$2";
const OFFSET: &str = "$3";
const ORDER: &str = "ts_epoch desc, run_number desc";

impl Builder {
    /// Adds a value and returns its place in the text.
    fn bind(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> String {
        self.params.push((Box::new(value), kind));
        format!("${}", self.params.len())
    }

    fn and(&mut self, condition: &str) {
        self.conditions.push_str("\n   and ");
        self.conditions.push_str(condition);
    }

    fn plain(&self, table: &str) -> String {
        format!(
            "-- api.runs
select {COLUMNS}
  from {table} r
 where r.flow_id = {FLOW}{}
 order by r.ts_epoch desc, r.run_number desc
 limit {ROWS}
offset {OFFSET}",
            self.conditions
        )
    }

    fn by_status(&mut self, table: &str, statuses: &[&'static str], plan: Plan) -> String {
        let page = match statuses {
            // No run has the empty status.
            [] => self.range(table, "", plan, &format!("{ROWS} offset {OFFSET}")),
            [one] => self.range(table, one, plan, &format!("{ROWS} offset {OFFSET}")),
            several => {
                let ranges: Vec<String> = several
                    .iter()
                    .map(|status| self.range(table, status, plan, &format!("{ROWS} + {OFFSET}")))
                    .collect();
                format!(
                    "select * from (({})) m order by {ORDER} limit {ROWS} offset {OFFSET}",
                    ranges.join(")\nunion all\n(")
                )
            }
        };
        format!(
            "-- api.runs_by_status
select s.valid_since is not null as valid, p.*
  from status_indexer.state s
  left join lateral (
{page}
) p on true"
        )
    }

    /// One status: one ordered, limited range of the index `status_indexer_listing`.
    fn range(&mut self, table: &str, status: &'static str, plan: Plan, limit: &str) -> String {
        let status = self.bind(status, Type::TEXT);
        // Where the statistics know a single status, a generic plan takes every row of the flow to
        // pass, and walks the flow by another index, which for a rare status is all of it. The
        // second condition says nothing new and is no work for an index scan; but the planner
        // takes a range of unknown ends to be narrow, and an index that serves it to be far better.
        let narrow = match plan {
            Plan::Walk => format!("\n   and r.run_status between {status} and {status}"),
            Plan::ByValue => String::new(),
        };
        format!(
            "select {COLUMNS}, r.run_status
  from {table} r
 where r.flow_id = {FLOW}
   and r.run_status = {status}{narrow}{}
 order by r.ts_epoch desc, r.run_number desc
 limit {limit}",
            self.conditions
        )
    }

    fn clause(&mut self, clause: &Clause) {
        match clause {
            Clause::Tags(operator, values) => self.tags(*operator, values),
            Clause::Field {
                field,
                operator,
                values,
                or_null,
            } => {
                let compared = self.compared(*field, *operator, values);
                let is_null = or_null.then(|| format!("{} is null", column(*field)));
                let parts: Vec<String> = compared.into_iter().chain(is_null).collect();
                self.and(&format!("({})", parts.join(" or ")));
            }
        }
    }

    /// A single value is compared as such, because an index can then also give the order.
    fn compared(&mut self, field: Field, operator: Operator, values: &Values) -> Option<String> {
        let cast = if field.kind() == Kind::Json {
            ("::jsonb", "::jsonb[]")
        } else {
            ("", "")
        };
        let place = match values {
            Values::Text(values) => match &values[..] {
                [] => return None,
                [one] => format!("{}{}", self.bind(one.clone(), Type::TEXT), cast.0),
                many => format!(
                    "any ({}{})",
                    self.bind(many.to_vec(), Type::TEXT_ARRAY),
                    cast.1
                ),
            },
            Values::Integers(values) => match &values[..] {
                [] => return None,
                [one] => self.bind(*one, Type::INT8),
                many => format!("any ({})", self.bind(many.to_vec(), Type::INT8_ARRAY)),
            },
        };
        Some(format!("{} {} {place}", column(field), sign(operator)))
    }

    fn tags(&mut self, operator: TagOperator, values: &[String]) {
        let place = self.bind(values.to_vec(), Type::TEXT_ARRAY);
        let condition = match operator {
            TagOperator::All => format!("(r.tags || r.system_tags) ?& {place}"),
            TagOperator::Any => format!("(r.tags || r.system_tags) ?| {place}"),
            TagOperator::LikeAny => {
                format!("(r.tags::text || r.system_tags::text) like any ({place})")
            }
            TagOperator::LikeAll => {
                format!("(r.tags::text || r.system_tags::text) like all ({place})")
            }
        };
        self.and(&condition);
    }
}

fn column(field: Field) -> &'static str {
    match field {
        Field::FlowId => "r.flow_id",
        Field::RunNumber => "r.run_number",
        Field::RunId => "r.run_id",
        Field::UserName => "r.user_name",
        Field::TsEpoch => "r.ts_epoch",
        Field::LastHeartbeatTs => "r.last_heartbeat_ts",
        Field::Tags => "r.tags",
        Field::SystemTags => "r.system_tags",
        Field::User => USER,
        Field::Status => "r.run_status",
    }
}

fn sign(operator: Operator) -> &'static str {
    match operator {
        Operator::Eq | Operator::Is => "=",
        Operator::Ne => "<>",
        Operator::Lt => "<",
        Operator::Le => "<=",
        Operator::Gt => ">",
        Operator::Ge => ">=",
        Operator::Contains | Operator::StartsWith | Operator::EndsWith | Operator::Like => "ilike",
    }
}
