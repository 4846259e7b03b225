//! Builds the statement that answers a request for runs.
//!
//! Values are always parameters, but for the three statuses, and the text is composed of fixed parts.
//! Without filters other than status there are few texts in all, which sessions prepare once and plan
//! generically.

use tokio_postgres::types::{ToSql, Type};

use super::cursor::Cursor;
use super::filter::{Clause, Field, Filter, Kind, Operator, TagOperator, Values};
use super::statement::{Memory, Param, Plan, RUN_COLUMNS, Statement, TABLE};
use crate::status::Status;

/// Which runs of a flow to read, and which part of them.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    pub(super) flow_id: &'a str,
    pub(super) filter: &'a Filter,
    pub(super) cursor: Option<Cursor>,
    pub(super) offset: i64,
    /// The largest number of rows.
    pub(super) rows: i64,
    /// Which runs to read. Matters with a status filter only.
    pub(super) coverage: Coverage,
}

/// Which runs a statement by status reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    /// The runs, or none if the column does not suffice. Costs hardly more than the range of the index.
    ExactColumn,
    /// All, those included whose column is not exact: the server starts twice as many steps of a plan.
    All,
}

/// The user's name where the service itself set it; upstream has an index on this expression.
const USER: &str = "(case when r.system_tags ? ('user:' || r.user_name) then r.user_name end)";

impl Selection<'_> {
    /// The statement for this selection.
    ///
    /// With a status filter each row ends with whether this statement may read statuses in its snapshot.
    /// With [`Coverage::All`] the age of a replica's data follows, and whether the column would have
    /// sufficed. If no run matches, there is one row, which has nulls for the run.
    pub(super) fn statement(&self) -> Statement {
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
            Plan::Generic
        } else {
            Plan::Custom
        };
        let template = match self.filter.statuses {
            None => builder.unfiltered(),
            Some(statuses) => builder.by_status(&statuses.list(), self.coverage),
        };
        Statement {
            template,
            params: builder.params,
            plan,
            memory: Memory::Any,
        }
    }
}

#[derive(Default)]
struct Builder {
    conditions: String,
    params: Vec<Param>,
}

const FLOW: &str = "$1";
const ROWS: &str = "$2";
const OFFSET: &str = "$3";
const ORDER: &str = "ts_epoch desc, run_number desc";
/// Whether the column alone gives the answer. Not on a replica, whose answers have their age.
const COLUMN_SUFFICES: &str = "s.column_is_exact and not pg_is_in_recovery()";
/// The function is called on replicas only.
const REPLICA_AGE: &str =
    "(select case when pg_is_in_recovery() then status_indexer.replica_age() end) as replica_age";

impl Builder {
    /// Adds a value and returns its placeholder.
    fn bind(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> String {
        self.params.push((Box::new(value), kind));
        format!("${}", self.params.len())
    }

    fn and(&mut self, condition: &str) {
        self.conditions.push_str("\n   and ");
        self.conditions.push_str(condition);
    }

    fn unfiltered(&self) -> String {
        format!(
            "-- api.runs
select {RUN_COLUMNS}
  from {TABLE} r
 where r.flow_id = {FLOW}{}
 order by r.ts_epoch desc, r.run_number desc
 limit {ROWS}
offset {OFFSET}",
            self.conditions
        )
    }

    /// One ordered range of an index for each status. The statuses are in the text, because the index of
    /// a status serves only a condition that contains this status.
    fn by_status(&self, statuses: &[Status], coverage: Coverage) -> String {
        let mut ranges: Vec<String> = statuses
            .iter()
            .map(|status| self.range(&format!("r.run_status = '{status}'"), coverage))
            .collect();
        if ranges.is_empty() {
            ranges.push(self.range("false", coverage));
        }
        match coverage {
            Coverage::ExactColumn => exact_column(ranges),
            Coverage::All => self.all(ranges, statuses),
        }
    }

    /// The column is read where it is exact, and the few runs where it is not are evaluated: see
    /// `status_indexer.pending`. While there are none, it is not called.
    fn all(&self, ranges: Vec<String>, statuses: &[Status]) -> String {
        let pending = self.pending(statuses);
        let runs = merged(ranges.into_iter().chain([pending]));
        format!(
            "-- api.runs_by_status
with state as materialized (
  select s.valid_since, s.column_is_exact
    from status_indexer.read_state s
), pending as materialized (
  select p.run_number
    from state s
   cross join lateral status_indexer.pending({FLOW}, false) p
   where not s.column_is_exact
)
select p.*, status_indexer.is_readable(s.valid_since) as readable,
       {REPLICA_AGE}, {COLUMN_SUFFICES} as column_suffices
  from state s
  left join lateral (
{runs}
 order by {ORDER}
 limit {ROWS}
offset {OFFSET}
) p on true"
        )
    }

    /// The runs of one status: one ordered, limited range of the index of this status.
    fn range(&self, condition: &str, coverage: Coverage) -> String {
        let not_pending = match coverage {
            Coverage::ExactColumn => "",
            Coverage::All => {
                "\n   and r.run_number::bigint not in (select p.run_number from pending p)"
            }
        };
        format!(
            "select {RUN_COLUMNS}, r.run_status
  from {TABLE} r
 where r.flow_id = {FLOW}
   and {condition}{not_pending}{}
 order by r.ts_epoch desc, r.run_number desc
 limit {ROWS} + {OFFSET}",
            self.conditions
        )
    }

    /// The runs whose column is not exact, evaluated. With `offset 0` each is looked up by its key; without
    /// it a generic plan may prefer to pass the whole flow in the page's order.
    fn pending(&self, statuses: &[Status]) -> String {
        let statuses: Vec<&str> = statuses.iter().map(|status| status.as_str()).collect();
        format!(
            "select {RUN_COLUMNS}, e.status
  from pending p
 cross join lateral (
       select *
         from {TABLE} r
        where r.flow_id = {FLOW}
          and r.run_number = p.run_number
       offset 0) r
 cross join lateral status_indexer.status_now({FLOW}, p.run_number, r.last_heartbeat_ts::bigint) e
 where e.status = any ('{{{}}}'){}
 order by r.ts_epoch desc, r.run_number desc
 limit {ROWS} + {OFFSET}",
            statuses.join(","),
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

    /// A single value is compared with `=` and not with `any`: an index can then also provide the
    /// order.
    fn compared(&mut self, field: Field, operator: Operator, values: &Values) -> Option<String> {
        let cast = if field.kind() == Kind::Json {
            ("::jsonb", "::jsonb[]")
        } else {
            ("", "")
        };
        let placeholder = match values {
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
        Some(format!(
            "{} {} {placeholder}",
            column(field),
            sign(operator)
        ))
    }

    fn tags(&mut self, operator: TagOperator, values: &[String]) {
        let placeholder = self.bind(values.to_vec(), Type::TEXT_ARRAY);
        let condition = match operator {
            TagOperator::All => format!("(r.tags || r.system_tags) ?& {placeholder}"),
            TagOperator::Any => format!("(r.tags || r.system_tags) ?| {placeholder}"),
            TagOperator::LikeAny => {
                format!("(r.tags::text || r.system_tags::text) like any ({placeholder})")
            }
            TagOperator::LikeAll => {
                format!("(r.tags::text || r.system_tags::text) like all ({placeholder})")
            }
        };
        self.and(&condition);
    }
}

/// The runs by the column alone, if that suffices.
fn exact_column(ranges: Vec<String>) -> String {
    let runs = merged(ranges);
    format!(
        "-- api.runs_by_status_exact_column
with state as materialized (
  select {COLUMN_SUFFICES} as column_suffices
    from status_indexer.read_state s
)
select p.*, s.column_suffices
  from state s
  left join (
{runs}
 order by {ORDER}
 limit {ROWS}
offset {OFFSET}
) p on s.column_suffices"
    )
}

/// All rows of several ordered parts.
fn merged(parts: impl IntoIterator<Item = String>) -> String {
    let parts: Vec<String> = parts.into_iter().collect();
    format!("select * from (({})) m", parts.join(")\nunion all\n("))
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
        Field::Status => unreachable!("a filter on the status is not a clause"),
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
