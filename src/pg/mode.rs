//! Finds out whether connections are sessions of their own.

use std::collections::HashSet;
use std::future::poll_fn;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage};
use tokio_util::task::AbortOnDropHandle;

use super::pool::SHORT;
use super::session::{Connector, SessionMode};
use crate::error::Error;

/// How long a test message may take from one connection to the other at start.
const SELF_TEST_DEADLINE: Duration = Duration::from_secs(2);

/// How often the self-test tries to take back that it listened.
const UNLISTENS: usize = 20;

/// Finds out whether connections are sessions: each keeps to one process of the server, which no
/// other has, and a message sent over one reaches another that listens. Behind a transaction pooler
/// the first mostly fails at once, and leaves nothing behind; one so busy that it does not fail has
/// forgotten who listened.
///
/// # Errors
/// If no connection can be had, or the server refuses.
pub async fn detect_mode(connector: &Connector) -> Result<SessionMode, Error> {
    let (ears, mut traffic) = connector.connect_bare().await?;
    let mouth = plain(connector).await?;
    let nonce = format!("self-test {:016x}", rand::random::<u64>());
    let expected = nonce.clone();
    let (heard, hears) = oneshot::channel();
    let _reader = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut heard = Some(heard);
        while let Some(Ok(message)) = poll_fn(|context| traffic.poll_message(context)).await {
            if let AsyncMessage::Notification(note) = message
                && note.payload() == expected
                && let Some(heard) = heard.take()
            {
                let _ = heard.send(());
            }
        }
    }));
    if is_shared(&ears, &mouth).await? {
        return Ok(SessionMode::Transaction);
    }
    let listening = self_test(&ears, "listen status_indexer_self_test").await?;
    self_test(
        &mouth,
        &format!("select pg_notify('status_indexer_self_test', '{nonce}')"),
    )
    .await?;
    let reached = timeout(SELF_TEST_DEADLINE, hears).await;
    // A pooler may take this to another connection than the one that listens.
    for _ in 0..UNLISTENS {
        if self_test(&ears, "unlisten status_indexer_self_test").await? == listening {
            break;
        }
    }
    Ok(if matches!(reached, Ok(Ok(()))) {
        SessionMode::Session
    } else {
        SessionMode::Transaction
    })
}

async fn plain(connector: &Connector) -> Result<Client, Error> {
    let (client, traffic) = connector.connect_bare().await?;
    tokio::spawn(traffic);
    Ok(client)
}

/// Whether either connection is seen to change its process, or to have the other's. Asked in an
/// order without a rhythm, which a pooler's turns could fit.
async fn is_shared(one: &Client, other: &Client) -> Result<bool, Error> {
    let (mut ones, mut others) = (HashSet::new(), HashSet::new());
    for first in [true, true, false, true, false, false, true, false] {
        let (client, seen) = if first {
            (one, &mut ones)
        } else {
            (other, &mut others)
        };
        seen.insert(self_test(client, "select").await?);
    }
    Ok(ones.len() > 1 || others.len() > 1 || ones == others)
}

/// Runs a statement of the self-test; returns which of the server's processes did.
async fn self_test(client: &Client, sql: &str) -> Result<Option<String>, Error> {
    let statement = "listener.self_test";
    let sql = format!("-- {statement}\n{sql};\nselect pg_backend_pid()");
    let answer = timeout(SHORT, client.simple_query(&sql)).await;
    let messages = answer
        .map_err(|_| Error::Timeout {
            statement,
            after: SHORT,
        })?
        .map_err(|source| Error::Postgres { statement, source })?;
    let last = messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(last.map(str::to_owned))
}
