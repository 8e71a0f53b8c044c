//! TCP connections as futures, with the `embedded-io-async` traits, and listeners with a backlog.
//!
//! smoltcp has no backlog: one socket in LISTEN state takes one connection, and a SYN that finds none is answered by a
//! reset. So each listener keeps exactly one listening socket, and the stack puts a new one in its place between one
//! frame and the next ([`Backlog::tend`]). Connections that arrive faster than they are served wait, established, up
//! to the listener's limit; stale half-open ones make room for new ones when the limit is reached.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpEndpoint;

use super::stack::Stack;

/// A peer that acknowledges nothing for so long is gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// A silent peer is asked this often whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A handshake that takes longer may be given up for another one.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpError {
    /// The peer reset it, or was gone for too long.
    Reset,
    /// Nobody listens there, or nobody answered.
    Refused,
    /// There is no way to that address from here.
    Unreachable,
    /// No memory for the buffers.
    OutOfMemory,
}

impl fmt::Display for TcpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "the connection was reset",
            Self::Refused => "the connection was refused",
            Self::Unreachable => "no route to that address",
            Self::OutOfMemory => "no memory for a connection",
        })
    }
}

impl core::error::Error for TcpError {}

impl embedded_io_async::Error for TcpError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reset => ErrorKind::ConnectionReset,
            Self::Refused => ErrorKind::ConnectionRefused,
            Self::Unreachable => ErrorKind::AddrNotAvailable,
            Self::OutOfMemory => ErrorKind::OutOfMemory,
        }
    }
}

/// The bytes a connection may hold in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Received and not yet read: the receive window.
    pub receive: usize,
    /// Written and not yet acknowledged.
    pub send: usize,
}

/// A TCP connection. Dropped without [`close`](Self::close), it is reset.
///
/// Reading and writing are on `&TcpStream`, so that both can wait at once.
pub struct TcpStream {
    stack: &'static Stack,
    handle: SocketHandle,
    /// The listener it came from; it counts the connections that it gave out.
    listener: Option<usize>,
}

impl TcpStream {
    /// Connects. Bounded by the time after which a silent peer counts as gone.
    pub async fn connect(
        stack: &'static Stack,
        remote: IpEndpoint,
        buffers: Buffers,
    ) -> Result<Self, TcpError> {
        let socket = new_socket(buffers).ok_or(TcpError::OutOfMemory)?;
        let handle = stack.with_inner(|inner| {
            let port = inner.ephemeral_port();
            let handle = inner.sockets.add(socket);
            let socket = inner.sockets.get_mut::<Socket<'_>>(handle);
            match socket.connect(inner.interface.context(), remote, port) {
                Ok(()) => Ok(handle),
                Err(_) => {
                    inner.sockets.remove(handle);
                    Err(TcpError::Unreachable)
                }
            }
        })?;
        let stream = Self {
            stack,
            handle,
            listener: None,
        };
        poll_fn(|context| {
            stream.with(|socket| match socket.state() {
                State::SynSent | State::SynReceived => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(TcpError::Refused)),
                _ => Poll::Ready(Ok(())),
            })
        })
        .await?;
        Ok(stream)
    }

    /// The other end.
    pub fn remote(&self) -> Option<IpEndpoint> {
        self.with(|socket| socket.remote_endpoint())
    }

    /// Says that nothing more will be written; one can still read.
    pub fn finish(&self) {
        self.with(Socket::close);
        self.stack.wake();
    }

    /// As [`finish`](Self::finish), and lets go: what was written still arrives.
    pub fn close(self) {
        self.finish();
    }

    /// Waits for room and fills it in place: `f` gets the free space and returns how much of it to send.
    pub async fn write_in_place<R>(
        &self,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, TcpError> {
        let mut f = Some(f);
        let result = poll_fn(|context| {
            self.with(|socket| {
                if !socket.may_send() {
                    return Poll::Ready(Err(TcpError::Reset));
                }
                if !socket.can_send() {
                    socket.register_send_waker(context.waker());
                    return Poll::Pending;
                }
                match f.take().map(|f| socket.send(f)) {
                    Some(Ok(result)) => Poll::Ready(Ok(result)),
                    _ => Poll::Ready(Err(TcpError::Reset)),
                }
            })
        })
        .await;
        self.stack.wake();
        result
    }

    async fn receive(&self, buffer: &mut [u8]) -> Result<usize, TcpError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let result = poll_fn(|context| {
            self.with(|socket| match socket.recv_slice(buffer) {
                Ok(0) => {
                    socket.register_recv_waker(context.waker());
                    Poll::Pending
                }
                Ok(length) => Poll::Ready(Ok(length)),
                Err(RecvError::Finished) => Poll::Ready(Ok(0)),
                Err(RecvError::InvalidState) => Poll::Ready(Err(TcpError::Reset)),
            })
        })
        .await;
        // The peer may be waiting to hear that there is room again.
        self.stack.wake();
        result
    }

    fn with<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        self.stack.with_socket(self.handle, f)
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.stack.with_inner(|inner| {
            let socket = inner.sockets.get_mut::<Socket<'_>>(self.handle);
            if socket.may_send() || socket.state() == State::SynSent {
                socket.abort();
            }
            inner.farewell(self.handle);
            if let Some(backlog) = self
                .listener
                .and_then(|index| inner.backlogs.get_mut(index))
            {
                backlog.serving = backlog.serving.saturating_sub(1);
            }
            inner.tend_backlogs();
        });
    }
}

impl ErrorType for &TcpStream {
    type Error = TcpError;
}

impl Read for &TcpStream {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TcpError> {
        self.receive(buffer).await
    }
}

impl Write for &TcpStream {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, TcpError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.write_in_place(|room| {
            let length = room.len().min(bytes.len());
            for (to, from) in room.iter_mut().zip(bytes) {
                *to = *from;
            }
            (length, length)
        })
        .await
    }

    /// Nothing to do: what is written is sent without further asking.
    async fn flush(&mut self) -> Result<(), TcpError> {
        Ok(())
    }
}

/// Takes the connections to one port.
pub struct Listener {
    stack: &'static Stack,
    index: usize,
}

impl Listener {
    /// Listens on `port`, on all of the stack's addresses. At most `limit` connections are held at a time, served and
    /// waiting together; more are refused.
    pub fn new(stack: &'static Stack, port: u16, buffers: Buffers, limit: usize) -> Self {
        let index = stack.with_inner(|inner| {
            inner.backlogs.push(Backlog {
                port,
                buffers,
                limit,
                listening: None,
                waiting: VecDeque::new(),
                serving: 0,
                acceptor: None,
            });
            inner.tend_backlogs();
            inner.backlogs.len() - 1
        });
        Self { stack, index }
    }

    /// Whether connections wait for somebody to serve them.
    pub fn is_crowded(&self) -> bool {
        let crowded = self
            .stack
            .with_backlog(self.index, |backlog, _| Some(!backlog.waiting.is_empty()));
        crowded.unwrap_or(false)
    }

    /// The next connection.
    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<TcpStream> {
        match self.stack.with_backlog(self.index, |backlog, sockets| {
            backlog.accept(sockets, context)
        }) {
            Some(handle) => Poll::Ready(TcpStream {
                stack: self.stack,
                handle,
                listener: Some(self.index),
            }),
            None => Poll::Pending,
        }
    }
}

/// The stack's side of a [`Listener`].
pub(super) struct Backlog {
    port: u16,
    buffers: Buffers,
    limit: usize,
    listening: Option<SocketHandle>,
    /// Connections that nobody serves yet, the half-open ones among them, and when they came.
    waiting: VecDeque<(SocketHandle, Instant)>,
    serving: usize,
    acceptor: Option<Waker>,
}

impl Backlog {
    /// Puts a listening socket in the place of one that was taken, forgets connections that failed, and tells the
    /// acceptor.
    pub(super) fn tend(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        if let Some(taken) = self
            .listening
            .take_if(|handle| state(sockets, *handle) != State::Listen)
        {
            self.waiting.push_back((taken, now));
        }
        self.waiting.retain(|(handle, _)| {
            let failed = state(sockets, *handle) == State::Closed;
            if failed {
                sockets.remove(*handle);
            }
            !failed
        });
        if self.listening.is_none() {
            self.make_room(sockets, now);
            self.listen(sockets);
        }
        if self
            .waiting
            .iter()
            .any(|(handle, _)| state(sockets, *handle) != State::SynReceived)
        {
            self.acceptor.take().into_iter().for_each(Waker::wake);
        }
    }

    /// At the limit, the oldest connection that should not be half-open any more goes: a flood of SYNs must not keep
    /// everyone else out.
    fn make_room(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        if self.waiting.len() + self.serving < self.limit {
            return;
        }
        let overdue = |(handle, since): &(SocketHandle, Instant)| {
            *since + HANDSHAKE <= now && state(sockets, *handle) == State::SynReceived
        };
        let oldest = self.waiting.iter().position(overdue);
        if let Some((handle, _)) = oldest.and_then(|index| self.waiting.remove(index)) {
            sockets.remove(handle);
        }
    }

    fn listen(&mut self, sockets: &mut SocketSet<'static>) {
        if self.waiting.len() + self.serving >= self.limit {
            return;
        }
        // Without memory there is no listening socket until the next packet or the next connection that ends.
        self.listening = new_socket(self.buffers).and_then(|mut socket| {
            socket.listen(self.port).ok()?;
            Some(sockets.add(socket))
        });
    }

    /// The longest waiting connection that is complete.
    fn accept(
        &mut self,
        sockets: &SocketSet<'static>,
        context: &mut Context<'_>,
    ) -> Option<SocketHandle> {
        let complete = |(handle, _): &(SocketHandle, Instant)| {
            !matches!(state(sockets, *handle), State::SynReceived | State::Closed)
        };
        let longest = self.waiting.iter().position(complete);
        let accepted = longest.and_then(|index| self.waiting.remove(index));
        match accepted {
            Some(_) => self.serving += 1,
            None => self.acceptor = Some(context.waker().clone()),
        }
        accepted.map(|(handle, _)| handle)
    }
}

fn state(sockets: &SocketSet<'_>, handle: SocketHandle) -> State {
    sockets.get::<Socket<'_>>(handle).state()
}

fn new_socket(buffers: Buffers) -> Option<Socket<'static>> {
    let buffer = |length| Some(SocketBuffer::new(zeroed(length)?));
    let mut socket = Socket::new(buffer(buffers.receive)?, buffer(buffers.send)?);
    socket.set_timeout(Some(PEER_TIMEOUT));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    // Writers hand over what belongs together; waiting for more would only wait for the peer's delayed acknowledgement.
    socket.set_nagle_enabled(false);
    socket.set_congestion_control(CongestionControl::Reno);
    Some(socket)
}

fn zeroed(length: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).ok()?;
    bytes.resize(length, 0);
    Some(bytes)
}
