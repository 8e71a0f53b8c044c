//! The echo service on port 7 (RFC 862), over TCP and UDP.

use alloc::vec::Vec;
use core::convert::Infallible;
use core::time::Duration;

use embedded_io_async::{Read, Write};

use super::clock::{Clock, within};
use super::connections::serve;
use super::stack::Stack;
use super::tcp::{Buffers, Listener, TcpError, TcpStream};
use super::udp::{UdpError, UdpSocket};

const PORT: u16 = 7;
const BUFFERS: Buffers = Buffers {
    receive: 16 * 1024,
    send: 16 * 1024,
};
const AT_ONCE: usize = 16;
const LIMIT: usize = 32;
/// A client that neither sends nor takes anything for so long is dropped.
const IDLE: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 2048;
const DATAGRAMS: usize = 32;
const DATAGRAM_BYTES: usize = 32 * 1024;

/// Echoes what TCP connections send.
pub async fn tcp(stack: &'static Stack, clock: impl Clock) -> Infallible {
    let listener = Listener::new(stack, PORT, BUFFERS, LIMIT);
    serve(&listener, AT_ONCE, |stream| async move {
        // A client that is gone needs no further care.
        let _ = echo(stream, clock).await;
    })
    .await
}

async fn echo(stream: TcpStream, clock: impl Clock) -> Result<(), TcpError> {
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let (mut reader, mut writer) = (&stream, &stream);
        let length = within(clock, IDLE, reader.read(&mut chunk))
            .await
            .ok_or(TcpError::Reset)??;
        if length == 0 {
            stream.close();
            return Ok(());
        }
        let bytes = chunk.get(..length).unwrap_or_default();
        within(clock, IDLE, writer.write_all(bytes))
            .await
            .ok_or(TcpError::Reset)??;
    }
}

/// Echoes datagrams.
pub async fn udp(stack: &'static Stack) -> Result<Infallible, UdpError> {
    let socket = UdpSocket::bind(stack, PORT, DATAGRAMS, DATAGRAM_BYTES)?;
    let mut datagram = Vec::new();
    loop {
        let from = socket
            .receive(|bytes, from| {
                datagram.clear();
                datagram.extend_from_slice(bytes);
                from
            })
            .await;
        // Two echo services would answer each other for ever, and a broadcast would be answered by everyone.
        let to_us = from.local_address.is_some_and(|local| stack.accepts(local));
        if from.endpoint.port != PORT && to_us {
            // There is nobody to tell if the sender cannot be reached.
            let _ = socket.send(&datagram, from).await;
        }
    }
}
