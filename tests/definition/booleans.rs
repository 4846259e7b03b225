//! The reading of `attempt_ok`, against PostgreSQL's own cast and the oracle.

use std::collections::BTreeSet;

use rand::{Rng as _, RngExt as _};
use testkit::database::Database;
use testkit::oracle::read_boolean;

use super::cases::boolean_like;
use super::{migrated, seeded};

#[tokio::test]
async fn booleans_are_read_as_postgresql_and_the_oracle_read_them() {
    const CAST: &str = "\
create function pg_temp.cast_or_null(value text) returns boolean language plpgsql as $$
begin
  return value::boolean;
exception when invalid_text_representation then
  return null;
end
$$";
    let mut rng = seeded();
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    client.batch_execute(CAST).await.expect("plpgsql is there");
    let mut texts: BTreeSet<String> = (0..5_000).map(|_| boolean_like(&mut rng)).collect();
    // Every character alone, around a word and in it: some locales treat it as white space or as
    // the other case of a letter.
    for code in (1..0x250)
        .chain(0x2000..0x2070)
        .chain([0x212a, 0x3000, 0xfeff, 0x1f600])
    {
        let c = char::from_u32(code).expect("these ranges contain no surrogate");
        texts.extend([
            c.to_string(),
            format!("{c}true"),
            format!("off{c}"),
            format!("o{c}"),
        ]);
    }
    for _ in 0..2_000 {
        let length = rng.random_range(1..6);
        texts.insert(
            (0..length)
                .map(|_| char::from(rng.next_u32().to_le_bytes()[0] % 0x7f + 1))
                .collect(),
        );
    }
    let texts: Vec<String> = texts.into_iter().collect();
    let rows = client
        .query(
            "select t, status_indexer.parse_boolean(t), pg_temp.cast_or_null(t) from unnest($1::text[]) t",
            &[&texts],
        )
        .await
        .expect("parse_boolean accepts any text");
    let (mut yes, mut no, mut neither) = (0, 0, 0);
    for row in rows {
        let (text, ours, theirs): (&str, Option<bool>, Option<bool>) =
            (row.get(0), row.get(1), row.get(2));
        assert_eq!(ours, theirs, "{text:?}: ours, PostgreSQL's");
        assert_eq!(ours, read_boolean(text), "{text:?}: ours, the oracle's");
        match ours {
            Some(true) => yes += 1,
            Some(false) => no += 1,
            None => neither += 1,
        }
    }
    assert!(
        yes > 100 && no > 100 && neither > 100,
        "{yes} {no} {neither}"
    );
}
