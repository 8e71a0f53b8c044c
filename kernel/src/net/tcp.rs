//! TCP connections as futures, with the `embedded-io-async` traits, and listeners with a backlog.
//!
//! See [`backlog`](super::backlog) for how connections wait to be accepted.

use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll};

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, State};
use smoltcp::wire::IpEndpoint;

use super::backlog::{Backlog, new_socket};
use super::stack::Stack;

pub use super::backlog::Buffers;

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
                // What came before a reset can still be read.
                State::Closed if socket.recv_queue() == 0 => Poll::Ready(Err(TcpError::Refused)),
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

    /// Waits for bytes and shows `f` those that lie in one piece, which returns how many of them it took. Without bytes when
    /// the peer will send no more.
    pub async fn read_in_place<R>(
        &self,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, TcpError> {
        let mut f = Some(f);
        let result = poll_fn(|context| {
            self.with(|socket| {
                if socket.may_recv() && !socket.can_recv() {
                    socket.register_recv_waker(context.waker());
                    return Poll::Pending;
                }
                let Some(f) = f.take() else {
                    return Poll::Ready(Err(TcpError::Reset));
                };
                if !socket.can_recv() {
                    // Which of the two it is, a look for no bytes says.
                    return Poll::Ready(match socket.peek(0) {
                        Err(RecvError::InvalidState) => Err(TcpError::Reset),
                        Ok(_) | Err(RecvError::Finished) => Ok(f(&[]).1),
                    });
                }
                let read = socket.recv(|bytes| f(bytes));
                Poll::Ready(read.map_err(|_| TcpError::Reset))
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
            inner.close(self.handle);
            if let Some(backlog) = self
                .listener
                .and_then(|index| inner.backlogs.get_mut(index))
            {
                backlog.served();
            }
            inner.update_backlogs();
        });
    }
}

impl ErrorType for &TcpStream {
    type Error = TcpError;
}

impl Read for &TcpStream {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TcpError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.read_in_place(|bytes| {
            let length = bytes.len().min(buffer.len());
            let (room, bytes) = (buffer.get_mut(..length), bytes.get(..length));
            if let (Some(room), Some(bytes)) = (room, bytes) {
                room.copy_from_slice(bytes);
            }
            (length, length)
        })
        .await
    }
}

impl Write for &TcpStream {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, TcpError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.write_in_place(|room| {
            let length = room.len().min(bytes.len());
            let (room, bytes) = (room.get_mut(..length), bytes.get(..length));
            if let (Some(room), Some(bytes)) = (room, bytes) {
                room.copy_from_slice(bytes);
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
            inner.backlogs.push(Backlog::new(port, buffers, limit));
            inner.update_backlogs();
            inner.backlogs.len() - 1
        });
        Self { stack, index }
    }

    /// Whether connections wait for somebody to serve them.
    pub fn is_crowded(&self) -> bool {
        let crowded = self
            .stack
            .with_backlog(self.index, |backlog, _| Some(backlog.is_crowded()));
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
