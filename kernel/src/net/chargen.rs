//! The character generator on port 19 (RFC 864): lines of 72 characters, over TCP without end, over UDP one for each datagram.

use core::convert::Infallible;
use core::time::Duration;

use super::clock::{Clock, within};
use super::connections::serve;
use super::stack::Stack;
use super::tcp::{Buffers, Listener};
use super::udp::{UdpError, UdpSocket};

const PORT: u16 = 19;
/// What is received is thrown away.
const BUFFERS: Buffers = Buffers {
    receive: 4096,
    send: 16 * 1024,
};
const AT_ONCE: usize = 4;
const LIMIT: usize = 8;
/// A client that takes nothing for so long is dropped.
const IDLE: Duration = Duration::from_secs(60);
const DATAGRAMS: usize = 32;
const DATAGRAM_BYTES: usize = 8 * 1024;
/// Below it there are services, some of which answer everything.
const FIRST_USER_PORT: u16 = 1024;

/// All printable characters, in order.
const FIRST: u8 = b' ';
const COUNT: usize = 95;
const WIDTH: usize = 72;
const LINE_BYTES: usize = WIDTH + 2;
/// After so many bytes everything repeats: each line begins with the next character.
const PERIOD: usize = COUNT * LINE_BYTES;

/// The byte at `position` of the endless text.
fn character(position: usize) -> u8 {
    let (line, column) = (position / LINE_BYTES, position % LINE_BYTES);
    match column {
        WIDTH => b'\r',
        column if column > WIDTH => b'\n',
        column => FIRST + ((line + column) % COUNT) as u8,
    }
}

/// Sends the text to everyone who connects.
pub async fn tcp(stack: &'static Stack, clock: impl Clock) -> Infallible {
    let listener = Listener::new(stack, PORT, BUFFERS, LIMIT);
    serve(&listener, AT_ONCE, |stream| async move {
        let mut position = 0;
        loop {
            let write = stream.write_in_place(|room| {
                for (index, byte) in room.iter_mut().enumerate() {
                    *byte = character(position + index);
                }
                (room.len(), room.len())
            });
            match within(clock, IDLE, write).await {
                Some(Ok(written)) => position = (position + written) % PERIOD,
                _ => return,
            }
        }
    })
    .await
}

/// Sends a line to everyone from whom a datagram comes.
pub async fn udp(stack: &'static Stack) -> Result<Infallible, UdpError> {
    let socket = UdpSocket::bind(stack, PORT, DATAGRAMS, DATAGRAM_BYTES)?;
    let mut position = 0;
    loop {
        let from = socket.receive(|_, from| from).await;
        // Two such services, or this one and an echo, would answer each other for ever.
        let to_us = from.local_address.is_some_and(|local| stack.accepts(local));
        if from.endpoint.port < FIRST_USER_PORT || !to_us {
            continue;
        }
        let line = |room: &mut [u8]| {
            for (index, byte) in room.iter_mut().enumerate() {
                *byte = character(position + index);
            }
        };
        // There is nobody to tell if the sender cannot be reached.
        let _ = socket.send_in_place(LINE_BYTES, from, line).await;
        position = (position + LINE_BYTES) % PERIOD;
    }
}
