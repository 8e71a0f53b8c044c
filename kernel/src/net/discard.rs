//! The discard service on port 9 (RFC 863), over TCP and UDP: it takes whatever comes, as fast as it comes.

use core::convert::Infallible;
use core::time::Duration;

use super::clock::{Clock, within};
use super::connections::serve;
use super::stack::Stack;
use super::tcp::{Buffers, Listener};
use super::udp::{UdpError, UdpSocket};

const PORT: u16 = 9;
const AT_ONCE: usize = 4;
const LIMIT: usize = 8;
/// A client that sends nothing for so long is dropped.
const IDLE: Duration = Duration::from_secs(60);
const DATAGRAMS: usize = 128;
const DATAGRAM_BYTES: usize = 64 * 1024;

/// Takes what TCP connections send.
pub async fn tcp(stack: &'static Stack, clock: impl Clock, buffers: Buffers) -> Infallible {
    let listener = Listener::new(stack, PORT, buffers, LIMIT);
    serve(&listener, AT_ONCE, |stream| async move {
        let more = || stream.read_in_place(|bytes| (bytes.len(), bytes.len()));
        while let Some(Ok(1..)) = within(clock, IDLE, more()).await {}
        stream.close();
    })
    .await
}

/// Takes datagrams.
pub async fn udp(stack: &'static Stack) -> Result<Infallible, UdpError> {
    let socket = UdpSocket::bind(stack, PORT, DATAGRAMS, DATAGRAM_BYTES)?;
    loop {
        socket.receive(|_, _| ()).await;
    }
}
