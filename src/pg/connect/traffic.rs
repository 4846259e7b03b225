//! The half of a connection that carries its traffic, and who drives it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Connection, Socket};

use crate::error::chain;
use crate::pg::tls::Tls;

/// The half of a connection that carries its traffic and yields its notifications.
pub(crate) type Traffic = Connection<Socket, <Tls as MakeTlsConnect<Socket>>::Stream>;

/// Drives a connection until its client is dropped.
pub(crate) async fn drive(traffic: Traffic) {
    if let Err(error) = traffic.await {
        tracing::debug!(error = chain(&error), "connection closed");
    }
}

/// Drives a connection until a call over it is complete; none if the connection ends before.
pub(super) async fn with_traffic<T>(
    traffic: &mut Traffic,
    call: impl Future<Output = T>,
) -> Option<T> {
    let mut call = pin!(call);
    let mut open = true;
    poll_fn(move |context| {
        loop {
            if let Poll::Ready(answer) = call.as_mut().poll(context) {
                return Poll::Ready(Some(answer));
            }
            if !open {
                return Poll::Ready(None);
            }
            match traffic.poll_message(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(_))) => {}
                // The call's own error says more.
                Poll::Ready(Some(Err(_)) | None) => open = false,
            }
        }
        // What arrived may have completed the call.
        call.as_mut().poll(context).map(Some)
    })
    .await
}
