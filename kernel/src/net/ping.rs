//! Asking another host for an echo (ICMP for IPv4 and IPv6).

use alloc::vec;
use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, Ipv6Address};

use super::clock::{Clock, within};
use super::stack::Stack;

/// The payload that `ping` sends everywhere.
const PAYLOAD_BYTES: usize = 56;
/// Room for a few answers, late ones among them.
const BUFFERED_PACKETS: usize = 4;
const BUFFERED_BYTES: usize = 2048;

/// Sends echo requests to one address.
pub struct Pinger<C: Clock> {
    stack: &'static Stack,
    clock: C,
    handle: SocketHandle,
    identifier: u16,
    target: IpAddress,
    payload: [u8; PAYLOAD_BYTES],
}

impl<C: Clock> Pinger<C> {
    /// `identifier` tells our answers from those of others; two pingers of one stack need different ones.
    pub fn new(stack: &'static Stack, clock: C, target: IpAddress, identifier: u16) -> Self {
        let buffer = || {
            PacketBuffer::new(
                vec![PacketMetadata::EMPTY; BUFFERED_PACKETS],
                vec![0; BUFFERED_BYTES],
            )
        };
        let mut socket = Socket::new(buffer(), buffer());
        // A fresh socket is not bound yet, and every identifier is a valid one.
        let bound = socket.bind(Endpoint::Ident(identifier));
        debug_assert!(bound.is_ok());
        Self {
            stack,
            clock,
            handle: stack.with_inner(|inner| inner.sockets.add(socket)),
            identifier,
            target,
            payload: core::array::from_fn(|index| index as u8),
        }
    }

    /// Sends one request and waits for its answer. The time it took, or `None` if none came within `patience`.
    pub async fn ask(&self, sequence: u16, patience: Duration) -> Option<Duration> {
        let start = self.clock.now();
        self.stack
            .with_socket(self.handle, |socket| self.send(socket, sequence))?;
        self.stack.wake();
        within(self.clock, patience, self.answer(sequence)).await?;
        Some(self.clock.now().saturating_sub(start))
    }

    fn send(&self, socket: &mut Socket<'static>, sequence: u16) -> Option<()> {
        let checksums = ChecksumCapabilities::default();
        match self.target {
            IpAddress::Ipv4(_) => {
                let request = Icmpv4Repr::EchoRequest {
                    ident: self.identifier,
                    seq_no: sequence,
                    data: &self.payload,
                };
                let bytes = socket.send(request.buffer_len(), self.target).ok()?;
                request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
            }
            IpAddress::Ipv6(target) => {
                let request = Icmpv6Repr::EchoRequest {
                    ident: self.identifier,
                    seq_no: sequence,
                    data: &self.payload,
                };
                let bytes = socket.send(request.buffer_len(), self.target).ok()?;
                // The stack fills in the source address, and with it the checksum, when it sends.
                let mut packet = Icmpv6Packet::new_unchecked(bytes);
                request.emit(&Ipv6Address::UNSPECIFIED, &target, &mut packet, &checksums);
            }
        }
        Some(())
    }

    async fn answer(&self, sequence: u16) {
        poll_fn(|context| {
            self.stack
                .with_socket::<Socket<'_>, _>(self.handle, |socket| {
                    while socket.can_recv() {
                        if let Ok((bytes, from)) = socket.recv()
                            && from == self.target
                            && self.is_answer(bytes, sequence)
                        {
                            return Poll::Ready(());
                        }
                    }
                    socket.register_recv_waker(context.waker());
                    Poll::Pending
                })
        })
        .await;
    }

    fn is_answer(&self, bytes: &[u8], sequence: u16) -> bool {
        // The stack has verified the checksum.
        let unverified = ChecksumCapabilities::ignored();
        let (number, echoed) = match self.target {
            IpAddress::Ipv4(_) => match Icmpv4Packet::new_checked(bytes)
                .and_then(|p| Icmpv4Repr::parse(&p, &unverified))
            {
                Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) => (seq_no, data),
                _ => return false,
            },
            IpAddress::Ipv6(target) => {
                let parse = |packet| Icmpv6Repr::parse(&target, &target, &packet, &unverified);
                match Icmpv6Packet::new_checked(bytes).and_then(parse) {
                    Ok(Icmpv6Repr::EchoReply { seq_no, data, .. }) => (seq_no, data),
                    _ => return false,
                }
            }
        };
        number == sequence && echoed == self.payload
    }
}

impl<C: Clock> Drop for Pinger<C> {
    fn drop(&mut self) {
        self.stack
            .with_inner(|inner| inner.sockets.remove(self.handle));
    }
}
