//! UDP sockets as futures.

use alloc::vec;
use core::fmt;
use core::future::poll_fn;
use core::task::Poll;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{
    PacketBuffer, PacketMetadata, RecvError, SendError, Socket, UdpMetadata,
};

use super::stack::Stack;

/// Why a datagram was not sent, or a socket not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpError {
    /// Another socket has the port, or it is 0.
    PortTaken,
    /// There is no way to that address from here.
    Unreachable,
    /// Longer than the socket's buffer.
    TooLong,
}

impl fmt::Display for UdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortTaken => "the port is taken",
            Self::Unreachable => "no route to that address",
            Self::TooLong => "the datagram is too long",
        })
    }
}

impl core::error::Error for UdpError {}

/// A UDP socket bound to a port.
pub struct UdpSocket {
    stack: &'static Stack,
    handle: SocketHandle,
}

impl UdpSocket {
    /// Receives what comes to `port`; up to `packets` datagrams, `bytes` together, wait in each direction.
    pub fn bind(
        stack: &'static Stack,
        port: u16,
        packets: usize,
        bytes: usize,
    ) -> Result<Self, UdpError> {
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; packets], vec![0; bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.bind(port).map_err(|_| UdpError::PortTaken)?;
        let handle = stack.with_inner(|inner| inner.sockets.add(socket));
        Ok(Self { stack, handle })
    }

    /// Waits for a datagram, shows it to `f` where it lies, and returns what `f` makes of it.
    pub async fn receive<R>(&self, mut f: impl FnMut(&[u8], UdpMetadata) -> R) -> R {
        poll_fn(|context| {
            self.stack
                .with_socket::<Socket<'_>, _>(self.handle, |socket| {
                    loop {
                        match socket.recv() {
                            Ok((bytes, from)) => return Poll::Ready(f(bytes, from)),
                            // It is dropped; the next may be whole.
                            Err(RecvError::Truncated) => {}
                            Err(RecvError::Exhausted) => {
                                socket.register_recv_waker(context.waker());
                                return Poll::Pending;
                            }
                        }
                    }
                })
        })
        .await
    }

    /// Sends a datagram, waiting for room.
    pub async fn send(&self, bytes: &[u8], to: UdpMetadata) -> Result<(), UdpError> {
        let result = poll_fn(|context| {
            self.stack
                .with_socket::<Socket<'_>, _>(self.handle, |socket| {
                    if bytes.len() > socket.payload_send_capacity() {
                        return Poll::Ready(Err(UdpError::TooLong));
                    }
                    match socket.send_slice(bytes, to) {
                        Ok(()) => Poll::Ready(Ok(())),
                        Err(SendError::Unaddressable) => Poll::Ready(Err(UdpError::Unreachable)),
                        Err(SendError::BufferFull) => {
                            socket.register_send_waker(context.waker());
                            Poll::Pending
                        }
                    }
                })
        })
        .await;
        self.stack.wake();
        result
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.stack
            .with_inner(|inner| inner.sockets.remove(self.handle));
    }
}
