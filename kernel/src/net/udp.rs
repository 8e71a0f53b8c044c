//! UDP sockets as futures.

use core::fmt;
use core::future::poll_fn;
use core::num::NonZeroU16;
use core::task::Poll;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{
    PacketBuffer, PacketMetadata, RecvError, SendError, Socket, UdpMetadata,
};

use super::backlog::filled;
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
    /// No memory for the buffers.
    OutOfMemory,
}

impl fmt::Display for UdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortTaken => "the port is taken",
            Self::Unreachable => "no route to that address",
            Self::TooLong => "the datagram is too long",
            Self::OutOfMemory => "no memory for a socket",
        })
    }
}

impl core::error::Error for UdpError {}

/// The most datagrams that leave in one frame; hosts have a bound of their own (128 in Linux).
const MAX_SEGMENTS: usize = 64;
/// The longest datagram (RFC 768, over IPv4).
const MAX_DATAGRAM: usize = 65507;

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
        let buffer = || {
            let packets = filled(packets, PacketMetadata::EMPTY)?;
            Some(PacketBuffer::new(packets, filled(bytes, 0)?))
        };
        let (receive, send) = buffer().zip(buffer()).ok_or(UdpError::OutOfMemory)?;
        let mut socket = Socket::new(receive, send);
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
        self.send_in_place(bytes.len(), to, |room| room.copy_from_slice(bytes))
            .await
    }

    /// Waits for room for datagrams of `length` bytes each, up to `count`, and has `write` write them in place, where something is left
    /// over from earlier ones: it gets the index of each. Where the card can, they leave in one frame; else it is one.
    /// Says how many there were.
    pub async fn send_several(
        &self,
        length: usize,
        count: usize,
        to: UdpMetadata,
        mut write: impl FnMut(usize, &mut [u8]),
    ) -> Result<usize, UdpError> {
        let (mut to, mut count) = (to, count);
        count = match u16::try_from(length).ok().and_then(NonZeroU16::new) {
            Some(size) if count > 1 && self.stack.cuts_datagrams() => {
                to.meta.segmentation_offload_size = Some(size);
                count.min(MAX_SEGMENTS).min(MAX_DATAGRAM / length).max(1)
            }
            _ => 1,
        };
        self.send_in_place(length * count, to, |room| {
            let datagrams = room.chunks_exact_mut(length.max(1)).enumerate();
            datagrams.for_each(|(index, datagram)| write(index, datagram));
        })
        .await?;
        Ok(count)
    }

    /// Waits for room for a datagram of `length` bytes, which `f` writes in place. What it does not write is left over from an
    /// earlier datagram of this socket.
    pub async fn send_in_place(
        &self,
        length: usize,
        to: UdpMetadata,
        f: impl FnOnce(&mut [u8]),
    ) -> Result<(), UdpError> {
        let mut f = Some(f);
        let result = poll_fn(|context| {
            self.stack
                .with_socket::<Socket<'_>, _>(self.handle, |socket| {
                    if length > socket.payload_send_capacity() {
                        return Poll::Ready(Err(UdpError::TooLong));
                    }
                    match socket.send(length, to) {
                        Ok(room) => {
                            if let Some(f) = f.take() {
                                f(room);
                            }
                            Poll::Ready(Ok(()))
                        }
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
