//! Replaces the placeholders in the SQL of the migrations.

use super::steps;
use super::tables::Tables;
use crate::pg::quote_literal;

/// Replaces each `{{placeholder}}`. Besides the placeholders that every statement may contain,
/// `values` lists the names and the SQL of those that this one contains.
///
/// The text is read once, from left to right, and what was inserted is never read again: a table's
/// name may itself contain `{{runs}}`.
pub(super) fn render(sql: &str, tables: &Tables, values: &[(&str, &str)]) -> String {
    let mut rendered = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after
            .split_once("}}")
            .expect("every placeholder in the migrations is closed");
        rendered.push_str(before);
        rendered.push_str(&value(name, tables, values));
        rest = after;
    }
    rendered.push_str(rest);
    rendered
}

/// The SQL that replaces one placeholder.
fn value(name: &str, tables: &Tables, values: &[(&str, &str)]) -> String {
    match name {
        "runs" => tables.runs.quoted(),
        "metadata" => tables.metadata.quoted(),
        "runs_literal" => quote_literal(&tables.runs.quoted()),
        "metadata_literal" => quote_literal(&tables.metadata.quoted()),
        "triggers" => steps::trigger_catalog(),
        _ => values.iter().find(|(known, _)| *known == name).map_or_else(
            || unreachable!("the migrations contain no placeholder {name}"),
            |(_, value)| (*value).to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::Table;

    fn table(name: &str) -> Table {
        Table {
            schema: "public".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_placeholder_in_a_name_or_a_value_is_not_replaced() {
        let tables = Tables {
            runs: table("{{metadata}}"),
            metadata: table("{{ open"),
        };
        let sql = "{{runs}} {{role}} {{metadata}} {{runs_literal}};";
        assert_eq!(
            render(sql, &tables, &[("role", "\"{{runs}}\"")]),
            r#""public"."{{metadata}}" "{{runs}}" "public"."{{ open" '"public"."{{metadata}}"';"#
        );
    }
}
