//! What a connection is doing, and since when: the basis of all limits on its time.
//!
//! Owns the phases of a connection and a stream that records them. The phases are changed by the
//! connection's own task; the server reads them to find the connection that it can close.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body as Content, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::server::Limits;
use super::transport::Transport;

/// Which limit a connection has exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// The TLS handshake was not complete in time.
    Handshake,
    /// The head of a request was not complete in time.
    Head,
    /// No further request came.
    Idle,
    /// The request was not answered completely in time.
    Request,
    /// The client did not read.
    Write,
}

impl Exceeded {
    /// The label of the metric.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake_timeout",
            Self::Head => "head_timeout",
            Self::Idle => "idle_timeout",
            Self::Request => "request_timeout",
            Self::Write => "write_timeout",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of a request has arrived.
    Waiting,
    /// A part of a request's head has arrived.
    Head,
    /// The request is being answered.
    Answering,
    /// The answer is complete, and a part of it is not sent yet.
    Sending,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Instant,
    /// Whether a request has been answered.
    served: bool,
    /// Since when the client takes nothing of the answer.
    blocked: Option<Instant>,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    /// Notified when a connection becomes idle.
    idle: Arc<Notify>,
}

impl Activity {
    pub(super) fn new(idle: Arc<Notify>) -> Arc<Self> {
        let state = Mutex::new(State {
            phase: Phase::Waiting,
            since: Instant::now(),
            served: false,
            blocked: None,
        });
        Arc::new(Self { state, idle })
    }

    /// The handshake is complete: the time for the first request begins.
    pub(super) fn secured(&self) {
        self.state().since = Instant::now();
    }

    /// A request has arrived. Its answer is in progress until the body is dropped.
    pub(super) fn answering(&self) {
        self.enter(Phase::Answering);
    }

    /// Since when no request is in progress; none while one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        matches!(state.phase, Phase::Waiting | Phase::Head).then_some(state.since)
    }

    /// When the connection exceeds a limit unless something changes, and which.
    pub(super) fn deadline(&self, limits: &Limits) -> (Instant, Exceeded) {
        let state = self.state();
        let after = |limit: Duration| state.since + limit;
        let of_phase = match state.phase {
            Phase::Waiting if state.served => (after(limits.idle), Exceeded::Idle),
            Phase::Waiting | Phase::Head => (after(limits.head), Exceeded::Head),
            Phase::Answering | Phase::Sending => (after(limits.request), Exceeded::Request),
        };
        match state.blocked.map(|since| since + limits.write) {
            Some(blocked) if blocked < of_phase.0 => (blocked, Exceeded::Write),
            _ => of_phase,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.state();
        // One time for the whole of an answer.
        if phase != Phase::Sending {
            state.since = Instant::now();
        }
        state.phase = phase;
        if phase == Phase::Waiting {
            state.served = true;
            self.idle.notify_one();
        }
    }

    fn received(&self) {
        if self.state().phase == Phase::Waiting {
            self.enter(Phase::Head);
        }
    }

    /// All that there is to send has been sent.
    fn flushed(&self) {
        if self.state().phase == Phase::Sending {
            self.enter(Phase::Waiting);
        }
    }

    fn wrote<T>(&self, written: &Poll<io::Result<T>>) {
        let mut state = self.state();
        match written {
            Poll::Pending => {
                state.blocked.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => state.blocked = None,
        }
    }
}

/// A stream that records what passes through it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: Transport,
    pub(super) activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.activity.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.activity.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when nothing is left in the server's own buffer. TLS has one of its own, which the client
    /// may leave full.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.activity.wrote(&flushed);
        if flushed.is_ready() {
            self.activity.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of an answer. The answer is complete when it is dropped.
pub(super) struct AnswerBody {
    pub(super) content: Content,
    pub(super) activity: Arc<Activity>,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.content).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.activity.enter(Phase::Sending);
    }
}
