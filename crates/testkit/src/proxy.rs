//! A TCP proxy between the daemon and its server, which injects network faults.
//!
//! Owns the connections through it. Promises that in a black hole nothing is delivered in either
//! direction while every connection stays open, including new ones: this is how a broken route
//! appears to the end of a TCP connection. Bytes that were held back are delivered after
//! [`Proxy::heal`], as TCP would do. Called by the tests of faults and by [`crate::history`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

#[derive(Debug, Clone, Copy)]
struct State {
    target: SocketAddr,
    black_hole: bool,
    delay: Duration,
    /// Connections of an earlier generation are closed.
    generation: u64,
}

/// A proxy that forwards until a fault is injected; it ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepting: AbortHandle,
}

impl Proxy {
    /// A proxy to the target, on a free port.
    ///
    /// # Panics
    /// If there is none.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("the listener is bound");
        let working = State {
            target,
            black_hole: false,
            delay: Duration::ZERO,
            generation: 0,
        };
        let (state, states) = watch::channel(working);
        let accepting = tokio::spawn(accept(listener, states)).abort_handle();
        Self {
            address,
            state,
            accepting,
        }
    }

    /// Where to connect instead of the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops forwarding, in both directions, and keeps all connections open.
    pub fn black_hole(&self) {
        self.state.send_modify(|state| state.black_hole = true);
    }

    /// Forwards again, beginning with what was held back.
    pub fn heal(&self) {
        self.state.send_modify(|state| state.black_hole = false);
    }

    /// Forwards new connections to another target, as a name or a load balancer does after a
    /// failover.
    pub fn retarget(&self, target: SocketAddr) {
        self.state.send_modify(|state| state.target = target);
    }

    /// Closes all connections, on both sides; new ones are accepted.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Delays everything, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let state = state.clone();
        let generation = state.borrow().generation;
        connections.spawn(async move {
            let mut cut = state.clone();
            tokio::select! {
                _ = forward(client, state) => {}
                _ = cut.wait_for(|now| now.generation != generation) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(client: TcpStream, state: watch::Receiver<State>) -> io::Result<()> {
    until_forwarding(&mut state.clone()).await;
    let target = state.borrow().target;
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        pump(from_client, to_server, state.clone()),
        pump(from_server, to_client, state),
    )?;
    Ok(())
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        // The end of the stream does not pass a black hole either.
        until_forwarding(&mut state).await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

/// Waits until no black hole is left. A dropped proxy aborts its connections itself.
async fn until_forwarding(state: &mut watch::Receiver<State>) {
    let _ = state.wait_for(|now| !now.black_hole).await;
}
