//! Serves routes on a listener, within limits.
//!
//! Promises that no client can occupy it for ever: one that is silent, slow or does not read is
//! disconnected, and a new client takes the place of the connection that has been idle the longest.
//! No error of `accept` ends it. Open requests do not delay a shutdown by more than
//! [`DRAIN_TIMEOUT`].

use std::collections::HashMap;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::activity::{Activity, AnswerBody, Exceeded, Watched};
use super::listener::Bound;
use super::transport::Transport;
use crate::metrics::{CONNECTION_LIMIT, Metrics, REFUSED_TLS};

/// How long open requests may take after the signal to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a listener waits after the system has refused it a descriptor or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a connection's buffers: a request's head must fit, and more of an answer is produced
/// only while less than this is waiting to be sent.
const BUFFER: usize = 64 * 1024;

/// The limits of a listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The listener, as the label of the metric.
    pub listener: &'static str,
    /// Connections at once.
    pub connections: usize,
    /// For a TLS handshake; and from there, from a new connection, or from the first byte of a further
    /// request, to the end of the head.
    pub head: Duration,
    /// From one request to the next.
    pub idle: Duration,
    /// From the head of a request to the end of the answer.
    pub request: Duration,
    /// Without the client taking a byte of the answer.
    pub write: Duration,
}

impl Limits {
    /// The limits of the metrics listener, whose answers are small.
    #[must_use]
    pub fn metrics(connections: usize) -> Self {
        Self {
            listener: "metrics",
            ..Self::api(
                connections,
                Duration::from_secs(10),
                Duration::from_secs(10),
            )
        }
    }

    /// The limits of the read API.
    #[must_use]
    pub fn api(connections: usize, write: Duration, request: Duration) -> Self {
        Self {
            listener: "api",
            connections,
            head: Duration::from_secs(10),
            // More than the 60 s for which nginx keeps a connection, so that the client closes it.
            idle: Duration::from_secs(75),
            request,
            write,
        }
    }
}

/// Serves routes until `stop`.
pub async fn serve(
    bound: Bound,
    routes: Router,
    limits: Limits,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let server = Server {
        bound,
        routes,
        limits,
        metrics,
        stop,
        tasks: JoinSet::new(),
        open: HashMap::new(),
        idle: Arc::default(),
        starved: false,
    };
    server.run().await;
}

struct Server {
    bound: Bound,
    routes: Router,
    limits: Limits,
    metrics: Metrics,
    stop: CancellationToken,
    /// The connections. Dropping the server closes them.
    tasks: JoinSet<()>,
    /// Those that it has not decided to close.
    open: HashMap<Id, (AbortHandle, Arc<Activity>)>,
    /// Notified when a connection becomes idle.
    idle: Arc<Notify>,
    /// Whether the last `accept` failed for want of descriptors or memory.
    starved: bool,
}

impl Server {
    async fn run(mut self) {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.accept()).await;
        let Self {
            bound, mut tasks, ..
        } = self;
        // New clients are refused from now on.
        drop(bound);
        // A client that does not read its answer is disconnected after a while.
        let drained = async { while tasks.join_next().await.is_some() {} };
        let _ = timeout(DRAIN_TIMEOUT, drained).await;
    }

    async fn accept(&mut self) {
        loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
                accepted = self.bound.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        self.starved = false;
                        self.make_room().await;
                        self.open(stream);
                    }
                    Err(error) => self.refused(&error).await,
                },
            }
        }
    }

    fn open(&mut self, stream: TcpStream) {
        // An answer is often two small writes. With Nagle's algorithm the second would wait for the
        // client's acknowledgement of the first.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "a connection was closed before it was served");
            return;
        }
        let activity = Activity::new(Arc::clone(&self.idle));
        let connection = Connection {
            routes: self.routes.clone(),
            limits: self.limits,
            access: self.bound.access.clone(),
            activity: Arc::clone(&activity),
            metrics: self.metrics.clone(),
            stop: self.stop.clone(),
        };
        let metrics = self.metrics.clone();
        let listener = self.limits.listener;
        let task = self.tasks.spawn(async move {
            let ended = match connection.secure(stream).await {
                Ok(Some(stream)) => connection.serve(stream).await,
                Ok(None) => None,
                Err(exceeded) => Some(exceeded),
            };
            if let Some(exceeded) = ended {
                count(&metrics, listener, exceeded.as_str());
            }
        });
        self.open.insert(task.id(), (task, activity));
    }

    /// Waits until there is room for one more connection.
    async fn make_room(&mut self) {
        while self.tasks.len() >= self.limits.connections {
            let closed = self.close_longest_idle();
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
                () = self.idle.notified(), if !closed => {}
            }
        }
    }

    /// Closes the connection that has been without a request for the longest time. False if each has
    /// one.
    fn close_longest_idle(&mut self) -> bool {
        let idle = self.open.iter().filter_map(|(id, (_, activity))| {
            let since = activity.idle_since()?;
            Some((since, *id))
        });
        let Some((_, id)) = idle.min_by_key(|(since, _)| *since) else {
            return false;
        };
        if let Some((task, _)) = self.open.remove(&id) {
            task.abort();
            count(&self.metrics, self.limits.listener, CONNECTION_LIMIT);
        }
        true
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.open.remove(&id);
    }

    /// A connection could not be accepted: it is gone, or the system is short of descriptors or
    /// memory, which passes.
    async fn refused(&mut self, error: &io::Error) {
        let gone = [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::ConnectionReset,
        ];
        if gone.contains(&error.kind()) {
            return;
        }
        if !self.starved {
            tracing::warn!(
                error = %error,
                listener = self.limits.listener,
                "a connection cannot be accepted; trying again"
            );
        }
        self.starved = true;
        self.close_longest_idle();
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn count(metrics: &Metrics, listener: &str, reason: &str) {
    let counter = &metrics.http_connections_closed_total;
    counter.with_label_values(&[listener, reason]).inc();
}

struct Connection {
    routes: Router,
    limits: Limits,
    access: Access,
    activity: Arc<Activity>,
    metrics: Metrics,
    stop: CancellationToken,
}

impl Connection {
    /// Makes the TLS handshake, if the listener has a certificate. None if it failed, or the server
    /// stops.
    async fn secure(&self, stream: TcpStream) -> Result<Option<Transport>, Exceeded> {
        let Some(config) = self.access.tls() else {
            return Ok(Some(Transport::Plain(stream)));
        };
        let handshake = timeout(self.limits.head, Transport::secure(stream, config));
        match self.stop.run_until_cancelled(handshake).await {
            Some(Ok(Ok(secured))) => {
                self.activity.secured();
                Ok(Some(secured))
            }
            Some(Ok(Err(error))) => {
                // A client that goes away, such as a probe that only connects, is not a failure.
                if error.kind() == io::ErrorKind::InvalidData {
                    let listener = self.limits.listener;
                    let refused = &self.metrics.http_refused_total;
                    refused.with_label_values(&[listener, REFUSED_TLS]).inc();
                    tracing::debug!(listener, error = %error, "a TLS handshake failed");
                }
                Ok(None)
            }
            Some(Err(_)) => Err(Exceeded::Handshake),
            None => Ok(None),
        }
    }

    /// Serves the connection to its end; returns the limit that ended it, if one did.
    async fn serve(self, stream: Transport) -> Option<Exceeded> {
        let activity = &self.activity;
        let routes = TowerToHyperService::new(self.routes);
        let service = service_fn(|request: Request<Incoming>| {
            activity.answering();
            let answer = routes.call(request);
            let activity = Arc::clone(activity);
            async move {
                let answer = answer.await?;
                Ok::<_, std::convert::Infallible>(
                    answer.map(|content| AnswerBody { content, activity }),
                )
            }
        });
        let io = TokioIo::new(Watched {
            stream,
            activity: Arc::clone(activity),
        });
        let mut serving = pin!(
            http1::Builder::new()
                // `deadline` has the limits on time, of which this would be one.
                .header_read_timeout(None)
                .max_buf_size(BUFFER)
                .serve_connection(io, service)
        );
        let mut stopped = pin!(self.stop.cancelled());
        let mut stopping = false;
        let mut timer = pin!(sleep_until(activity.deadline(&self.limits).0));
        poll_fn(|cx| {
            if serving.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            if !stopping && stopped.as_mut().poll(cx).is_ready() {
                stopping = true;
                if activity.idle_since().is_some() {
                    return Poll::Ready(None);
                }
                serving.as_mut().graceful_shutdown();
                if serving.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
            }
            // All changes happen in the polls above. Most of them move the deadline to a later time, and the
            // timer is set again only when it fires.
            loop {
                let (deadline, exceeded) = activity.deadline(&self.limits);
                if deadline < timer.deadline() {
                    timer.as_mut().reset(deadline);
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if deadline <= Instant::now() {
                    return Poll::Ready(Some(exceeded));
                }
                timer.as_mut().reset(deadline);
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream::{pending, repeat_with};
    use testkit::wait::eventually_eq;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::DropGuard;

    use super::*;
    use crate::http::bind;

    const SOON: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(60);

    struct Served {
        addr: std::net::SocketAddr,
        metrics: Metrics,
        _stop: DropGuard,
    }

    impl Served {
        async fn new(limits: Limits) -> Self {
            type Chunk = Result<Bytes, io::Error>;
            let endless = || repeat_with(|| Chunk::Ok(Bytes::from_static(&[b'x'; 10_000])));
            let routes = Router::new()
                .route("/", get(|| async { "answer" }))
                .route(
                    "/never",
                    get(|| async { Body::from_stream(pending::<Chunk>()) }),
                )
                .route(
                    "/endless",
                    get(move || async move { Body::from_stream(endless()) }),
                );
            let bound = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
            let (addr, metrics, stop) = (bound.addr, Metrics::new(), CancellationToken::new());
            tokio::spawn(serve(bound, routes, limits, metrics.clone(), stop.clone()));
            Self {
                addr,
                metrics,
                _stop: stop.drop_guard(),
            }
        }

        async fn send(&self, bytes: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.addr).await.expect("it listens");
            let sent = stream.write_all(bytes.as_bytes()).await;
            sent.expect("it reads");
            stream
        }

        fn closed(&self, reason: &str) -> u64 {
            let counter = &self.metrics.http_connections_closed_total;
            counter.with_label_values(&["api", reason]).get()
        }
    }

    fn request(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
    }

    async fn is_answered(stream: &mut TcpStream) -> bool {
        let mut text = Vec::new();
        while !text.ends_with(b"answer") {
            if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
                return false;
            }
        }
        true
    }

    #[tokio::test]
    async fn a_connection_that_exceeds_a_limit_is_closed() {
        let long = Limits {
            listener: "api",
            connections: 10,
            head: LONG,
            idle: LONG,
            request: LONG,
            write: LONG,
        };
        let head = Limits {
            head: SHORT,
            ..long
        };
        let idle = Limits {
            idle: SHORT,
            ..long
        };
        let whole = Limits {
            request: SHORT,
            ..long
        };
        let write = Limits {
            write: SHORT,
            ..long
        };
        let partial = &request("/")[..20];
        for (limits, sent, reason) in [
            (head, "", "head_timeout"),
            (head, partial, "head_timeout"),
            (idle, &request("/"), "idle_timeout"),
            // A part of a further request that arrived together with the first one.
            (idle, &format!("{}{partial}", request("/")), "idle_timeout"),
            (whole, &request("/never"), "request_timeout"),
            (whole, &request("/endless"), "request_timeout"),
            (write, &request("/endless"), "write_timeout"),
        ] {
            let served = Served::new(limits).await;
            let _stream = served.send(sent).await;
            let closed = async || served.closed(reason);
            eventually_eq(SOON, &format!("{reason} after {sent:?}"), 1, closed).await;
        }
    }

    #[tokio::test]
    async fn a_new_client_takes_the_place_of_the_longest_idle_connection() {
        let served = Served::new(Limits::api(3, LONG, LONG)).await;
        let mut answering = served.send(&request("/never")).await;
        assert_eq!(answering.read_exact(&mut [0; 12]).await.ok(), Some(12));
        let mut first = served.send("").await;
        let mut second = served.send(&request("/")).await;
        assert!(is_answered(&mut second).await);
        let mut third = served.send(&request("/")).await;
        assert!(is_answered(&mut third).await);
        assert_eq!(served.closed(CONNECTION_LIMIT), 1);
        assert!(!is_answered(&mut first).await);
        let sent = second.write_all(request("/").as_bytes()).await;
        sent.expect("the connection is open");
        assert!(is_answered(&mut second).await);
    }

    #[tokio::test]
    async fn a_new_client_waits_while_each_connection_has_a_request() {
        let served = Served::new(Limits::api(1, LONG, LONG)).await;
        let mut answering = served.send(&request("/never")).await;
        assert_eq!(answering.read_exact(&mut [0; 12]).await.ok(), Some(12));
        let mut waiting = served.send(&request("/")).await;
        let answered = timeout(SHORT, is_answered(&mut waiting)).await;
        assert!(answered.is_err());
        drop(answering);
        assert!(is_answered(&mut waiting).await);
    }
}
