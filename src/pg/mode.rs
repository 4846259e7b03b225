//! Detects whether connections are sessions of their own.

use std::collections::HashSet;
use std::future::poll_fn;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage};
use tokio_util::task::AbortOnDropHandle;

use super::connect::{Connector, drive};
use super::session::SessionMode;
use super::timeouts::SHORT;
use crate::error::Error;

/// How long the test notification may take from one connection to the other.
const SELF_TEST_DEADLINE: Duration = Duration::from_secs(2);

/// How many times the self-test tries to undo its LISTEN.
const UNLISTENS: usize = 20;

/// Detects whether connections are sessions: each has one server process of its own, and a
/// notification sent over one connection reaches another that listens. Behind a transaction pooler
/// the first check usually fails at once and leaves nothing behind. If the pooler is so busy that
/// the first check passes, the second one fails, because the pooler loses the LISTEN.
///
/// # Errors
/// If a connection cannot be opened, or the server refuses.
pub async fn detect_mode(connector: &Connector) -> Result<SessionMode, Error> {
    let (receiver, mut traffic) = connector.connect_bare().await?;
    let sender = plain(connector).await?;
    let nonce = format!("self-test {:016x}", rand::random::<u64>());
    let expected = nonce.clone();
    let (report, received) = oneshot::channel();
    let _reader = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut report = Some(report);
        while let Some(Ok(message)) = poll_fn(|context| traffic.poll_message(context)).await {
            if let AsyncMessage::Notification(note) = message
                && note.payload() == expected
                && let Some(report) = report.take()
            {
                let _ = report.send(());
            }
        }
    }));
    if is_shared(&receiver, &sender).await? {
        return Ok(SessionMode::Transaction);
    }
    let listening = self_test(&receiver, "listen status_indexer_self_test").await?;
    self_test(
        &sender,
        &format!("select pg_notify('status_indexer_self_test', '{nonce}')"),
    )
    .await?;
    let reached = timeout(SELF_TEST_DEADLINE, received).await;
    // A pooler may send this to another server process than the one that listens.
    for _ in 0..UNLISTENS {
        if self_test(&receiver, "unlisten status_indexer_self_test").await? == listening {
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
    tokio::spawn(drive(traffic));
    Ok(client)
}

/// Whether a connection changes its server process, or both share one. The order of the queries is
/// not periodic, so that it cannot coincide with a pooler's rotation.
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

/// Runs a statement of the self-test; returns the process id of the server that ran it.
async fn self_test(client: &Client, sql: &str) -> Result<Option<String>, Error> {
    let statement = "listener.self_test";
    let sql = format!("-- {statement}\n{sql};\nselect pg_backend_pid()");
    let answer = timeout(SHORT, client.simple_query(&sql)).await;
    let messages = answer
        .map_err(|_| Error::Timeout {
            statement,
            after: SHORT,
        })?
        // A pooler without a free server fails the first statement rather than the connection.
        .map_err(|source| Error::Connect(Box::new(source)))?;
    let last = messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(last.map(str::to_owned))
}
