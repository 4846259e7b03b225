//! Changes one of the installed functions, as a programming error would.

use tokio_postgres::Client;

/// Replaces a text in the definition of a function.
///
/// # Panics
/// If the function does not contain the text.
pub(super) async fn mutate(client: &Client, function: &str, text: &str, replacement: &str) {
    const DEFINITION: &str = "\
select pg_get_functiondef(p.oid)
  from pg_proc p
 where p.pronamespace = 'status_indexer'::regnamespace
   and p.proname = $1";
    let row = client.query_one(DEFINITION, &[&function]).await;
    let definition: String = row.expect("one function of this name").get(0);
    assert!(definition.contains(text), "{function} lacks {text}");
    client
        .batch_execute(&definition.replace(text, replacement))
        .await
        .expect("the mutation is valid SQL");
}
