//! A network that fails on command: a TCP proxy between the daemon and its server.
//!
//! Owns the connections through it. Promises that in a black hole nothing moves in either direction
//! while every connection stays open, a new one too: what a dead route looks like from the end of a
//! TCP connection. Bytes that were caught are delivered after [`Proxy::heal`], as TCP would.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

#[derive(Clone, Copy)]
struct Weather {
    black_hole: bool,
    delay: Duration,
    /// Connections of an earlier generation are closed.
    generation: u64,
}

/// Forwards until told otherwise; ends, with its connections, when dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    accepting: AbortHandle,
}

impl Proxy {
    /// A proxy to the target, on a port of its own.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let fair = Weather {
            black_hole: false,
            delay: Duration::ZERO,
            generation: 0,
        };
        let (weather, forecast) = watch::channel(fair);
        let accepting = tokio::spawn(accept(listener, target, forecast)).abort_handle();
        Self {
            address,
            weather,
            accepting,
        }
    }

    /// Where to connect instead of the target.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forwards nothing more, in both directions, and keeps all connections open.
    pub(crate) fn black_hole(&self) {
        self.weather
            .send_modify(|weather| weather.black_hole = true);
    }

    /// Forwards again, with what was caught meanwhile.
    pub(crate) fn heal(&self) {
        self.weather
            .send_modify(|weather| weather.black_hole = false);
    }

    /// Closes all connections, on both sides; new ones are taken.
    pub(crate) fn cut(&self) {
        self.weather.send_modify(|weather| weather.generation += 1);
    }

    /// Holds every piece back for a while, in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, weather: watch::Receiver<Weather>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let weather = weather.clone();
        let generation = weather.borrow().generation;
        connections.spawn(async move {
            let mut cut = weather.clone();
            tokio::select! {
                _ = forward(client, target, weather) => {}
                _ = cut.wait_for(|now| now.generation != generation) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(
    client: TcpStream,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    clear(&mut weather.clone()).await;
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        pump(from_client, to_server, weather.clone()),
        pump(from_server, to_client, weather),
    )?;
    Ok(())
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        // An end of the stream is news as well: it does not pass a black hole either.
        clear(&mut weather).await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

/// Waits until there is no black hole. A proxy that is gone aborts its connections itself.
async fn clear(weather: &mut watch::Receiver<Weather>) {
    let _ = weather.wait_for(|now| !now.black_hole).await;
}
