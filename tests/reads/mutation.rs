//! Changes one of the installed functions or views, as a programming error would.

use tokio_postgres::Client;

/// Replaces a text in the definition of a function or view.
///
/// # Panics
/// If its definition does not contain the text.
pub(super) async fn mutate(client: &Client, name: &str, text: &str, replacement: &str) {
    const DEFINITION: &str = "\
select pg_get_functiondef(p.oid)
  from pg_proc p
 where p.pronamespace = 'status_indexer'::regnamespace
   and p.proname = $1
 union all
select 'create or replace view status_indexer.' || v.viewname || ' as ' || v.definition
  from pg_views v
 where v.schemaname = 'status_indexer'
   and v.viewname = $1";
    let row = client.query_one(DEFINITION, &[&name]).await;
    let definition: String = row.expect("one function or view of this name").get(0);
    assert!(
        definition.contains(text),
        "{name} lacks {text}: {definition}"
    );
    client
        .batch_execute(&definition.replace(text, replacement))
        .await
        .expect("the mutation is valid SQL");
}
