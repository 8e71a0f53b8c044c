//! The bytes that are measured.

use alloc::vec::Vec;
use core::cell::Cell;
use core::convert::Infallible;
use core::future::{pending, poll_fn};
use core::task::Poll;
use core::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use smoltcp::socket::udp::UdpMetadata;
use smoltcp::wire::IpAddress;

use super::PORT;
use super::parameters::Parameters;
use crate::net::clock::Clock;
use crate::net::stack::Stack;
use crate::net::tcp::{Buffers, TcpStream};
use crate::net::udp::{UdpError, UdpSocket};

/// A datagram begins with when it was sent, and its number, of up to eight bytes.
pub(super) const MIN_DATAGRAM_BYTES: usize = 16;
/// In front of a datagram's bytes, with the larger of the two IP headers.
pub(super) const UDP_HEADERS_BYTES: usize = 40 + 8;
/// Datagrams that wait in each direction.
const MAX_DATAGRAMS: usize = 256;
/// A client's greeting is four bytes long; this is the answer.
const GREETING_BYTES: usize = 4;
const ANSWER: &[u8; GREETING_BYTES] = b"6789";

/// What one stream moved.
#[derive(Default)]
pub(super) struct Counters {
    bytes: Cell<u64>,
    /// Of datagrams received: the highest number.
    packets: Cell<u64>,
    lost: Cell<u64>,
    /// How long the last datagram was on its way, by two clocks that don't agree: only differences mean something.
    transit: Cell<Option<i64>>,
    /// Sixteen times the jitter of RFC 3550, section 6.4.1, in nanoseconds.
    jitter: Cell<u64>,
}

impl Counters {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    pub(super) fn packets(&self) -> u64 {
        self.packets.get()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.get()
    }

    pub(super) fn jitter(&self) -> Duration {
        Duration::from_nanos(self.jitter.get() / 16)
    }

    fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
    }

    fn received(&self, datagram: &[u8], wide: bool, now: Duration) {
        self.add(datagram.len());
        let Some((sent, number)) = header(datagram, wide) else {
            return;
        };
        let highest = self.packets.get();
        if number > highest {
            self.packets.set(number);
            let missing = number - highest - 1;
            self.lost.set(self.lost.get().saturating_add(missing));
        } else {
            // It counted as lost when a later one came.
            self.lost.set(self.lost.get().saturating_sub(1));
        }
        let transit = (now.as_nanos() as i64).wrapping_sub(sent);
        if let Some(last) = self.transit.replace(Some(transit)) {
            let change = transit.wrapping_sub(last).unsigned_abs();
            let jitter = self.jitter.get();
            let rest = jitter - jitter / 16;
            self.jitter.set(rest.saturating_add(change));
        }
    }
}

/// When a datagram was sent, in nanoseconds of the sender's clock, and its number.
fn header(datagram: &[u8], wide: bool) -> Option<(i64, u64)> {
    let (seconds, rest) = datagram.split_first_chunk()?;
    let (micros, rest) = rest.split_first_chunk()?;
    let number = match wide {
        true => u64::from_be_bytes(*rest.first_chunk()?),
        false => u32::from_be_bytes(*rest.first_chunk()?).into(),
    };
    let seconds = i64::from(u32::from_be_bytes(*seconds));
    let micros = i64::from(u32::from_be_bytes(*micros));
    Some((seconds * 1_000_000_000 + micros * 1000, number))
}

/// Writes what [`header`] reads.
fn write_header(datagram: &mut [u8], wide: bool, now: Duration, number: u64) {
    let wide_number = number.to_be_bytes();
    let narrow_number = (number as u32).to_be_bytes();
    let number = match wide {
        true => wide_number.as_slice(),
        false => &narrow_number,
    };
    let seconds = (now.as_secs() as u32).to_be_bytes();
    let micros = now.subsec_micros().to_be_bytes();
    let header = seconds.iter().chain(&micros).chain(number);
    datagram
        .iter_mut()
        .zip(header)
        .for_each(|(to, from)| *to = *from);
}

/// The streams of one test.
pub(super) enum Streams {
    Tcp(Vec<TcpStream>),
    /// All by one socket, told apart by where they come from.
    Udp(UdpSocket, Vec<UdpMetadata>),
}

/// The socket for the datagrams of a test.
pub(super) fn datagram_socket(
    stack: &'static Stack,
    buffers: Buffers,
) -> Result<UdpSocket, UdpError> {
    UdpSocket::bind(stack, PORT, MAX_DATAGRAMS, buffers.receive)
}

/// Waits for so many greetings of this client and answers them. A stream is where a greeting came from.
pub(super) async fn greet(
    socket: &UdpSocket,
    client: IpAddress,
    count: usize,
) -> Result<Vec<UdpMetadata>, UdpError> {
    let mut streams: Vec<UdpMetadata> = Vec::new();
    while streams.len() < count {
        let (length, from) = socket.receive(|bytes, from| (bytes.len(), from)).await;
        if length != GREETING_BYTES || from.endpoint.addr != client {
            continue;
        }
        if !streams.iter().any(|known| known.endpoint == from.endpoint) {
            streams.push(from);
        }
        // Also of one whose answer was lost.
        socket.send(ANSWER, from).await?;
    }
    Ok(streams)
}

impl Streams {
    /// Moves bytes for as long as this is polled.
    pub(super) async fn run(
        &self,
        parameters: &Parameters,
        counters: &[Counters],
        clock: impl Clock,
    ) -> Infallible {
        match (self, parameters.reverse) {
            (Self::Tcp(streams), false) => {
                all(streams
                    .iter()
                    .zip(counters)
                    .map(|(stream, counters)| sink(stream, counters)))
                .await
            }
            (Self::Tcp(streams), true) => {
                let start = clock.now();
                all(streams.iter().zip(counters).map(|(stream, counters)| {
                    source(stream, counters, Pace::new(parameters, start), clock)
                }))
                .await
            }
            (Self::Udp(socket, streams), false) => {
                datagram_sink(socket, streams, parameters.wide_numbers, counters, clock).await
            }
            (Self::Udp(socket, streams), true) => {
                let start = clock.now();
                all(streams.iter().zip(counters).map(|(to, counters)| {
                    // Some may be lost: the client says when it has enough.
                    let pace = Pace {
                        limit: None,
                        ..Pace::new(parameters, start)
                    };
                    datagram_source(socket, *to, parameters, counters, pace, clock)
                }))
                .await
            }
        }
    }
}

/// Runs all of them, which may end.
async fn all(futures: impl Iterator<Item: Future<Output = ()>>) -> Infallible {
    let mut futures: FuturesUnordered<_> = futures.collect();
    while futures.next().await.is_some() {}
    pending().await
}

async fn sink(stream: &TcpStream, counters: &Counters) {
    // It ends when the client closes it. What that means the client says on the other connection.
    while let Ok(length @ 1..) = stream
        .read_in_place(|bytes| (bytes.len(), bytes.len()))
        .await
    {
        counters.add(length);
    }
}

async fn source(stream: &TcpStream, counters: &Counters, pace: Pace, clock: impl Clock) {
    loop {
        let Some(most) = pace.wait(counters.bytes(), clock).await else {
            return;
        };
        // What is sent is what the buffer holds, which nobody writes to.
        let sent = stream.write_in_place(|room| {
            let length = room.len().min(most);
            (length, length)
        });
        match sent.await {
            Ok(length) => counters.add(length),
            Err(_) => return,
        }
    }
}

async fn datagram_sink(
    socket: &UdpSocket,
    streams: &[UdpMetadata],
    wide: bool,
    counters: &[Counters],
    clock: impl Clock,
) -> Infallible {
    loop {
        socket
            .receive(|bytes, from| {
                let mut known = streams.iter().zip(counters);
                if let Some((_, counters)) =
                    known.find(|(known, _)| known.endpoint == from.endpoint)
                {
                    counters.received(bytes, wide, clock.now());
                }
            })
            .await;
    }
}

async fn datagram_source(
    socket: &UdpSocket,
    to: UdpMetadata,
    parameters: &Parameters,
    counters: &Counters,
    pace: Pace,
    clock: impl Clock,
) {
    let length = parameters.length;
    while let Some(most) = pace.wait(counters.bytes(), clock).await {
        let first = counters.packets() + 1;
        let write = |index: usize, datagram: &mut [u8]| {
            let number = first + index as u64;
            write_header(datagram, parameters.wide_numbers, clock.now(), number);
        };
        let count = most / length.max(1);
        let Ok(count) = socket.send_several(length, count, to, write).await else {
            return;
        };
        counters.packets.set(first + count as u64 - 1);
        counters.add(length * count);
    }
}

/// When a stream may send how much.
#[derive(Clone, Copy)]
struct Pace {
    rate: Option<u64>,
    limit: Option<u64>,
    block: usize,
    start: Duration,
}

impl Pace {
    fn new(parameters: &Parameters, start: Duration) -> Self {
        Self {
            rate: parameters.rate,
            limit: parameters.bytes,
            block: parameters.length,
            start,
        }
    }

    /// Waits until more than the `sent` bytes may be sent; says how many. `None`: no more.
    async fn wait(&self, sent: u64, clock: impl Clock) -> Option<usize> {
        let left = self
            .limit
            .map_or(u64::MAX, |limit| limit.saturating_sub(sent));
        if left == 0 {
            return None;
        }
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let Some(rate) = self.rate else {
            return Some(left);
        };
        let due = self.start + time_of(sent, rate);
        let now = clock.now();
        match due > now {
            true => clock.after(due - now).await,
            // One that is late all the time must not keep others from their turn.
            false => yield_once().await,
        }
        // Whoever is late catches up.
        let late = bytes_in(now.saturating_sub(self.start), rate).saturating_sub(sent);
        let late = usize::try_from(late).unwrap_or(usize::MAX);
        Some(left.min(self.block.max(late).max(1)))
    }
}

/// How long so many bytes take at so many bits in a second.
fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 2))
}

/// How many bytes so many bits in a second are in this time.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    let bytes = time.as_nanos() * u128::from(rate) / 8 / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| match core::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: u64, sent: Duration) -> [u8; 16] {
        let mut bytes = [0; 16];
        write_header(&mut bytes, true, sent, number);
        bytes
    }

    #[test]
    fn datagrams_that_are_lost_late_or_uneven_are_told() {
        let counters = Counters::default();
        let millis = Duration::from_millis;
        for (number, sent, came) in [(1, 100, 7), (2, 200, 107), (4, 400, 307), (6, 600, 507)] {
            counters.received(&datagram(number, millis(sent)), true, millis(came));
        }
        assert_eq!((counters.packets(), counters.lost()), (6, 2));
        assert_eq!(counters.jitter(), Duration::ZERO, "all took the same time");
        counters.received(&datagram(3, millis(300)), true, millis(515));
        assert_eq!((counters.packets(), counters.lost()), (6, 1));
        assert_eq!(counters.bytes(), 80);
        // It took 308 ms longer than the one before it.
        assert_eq!(counters.jitter(), Duration::from_micros(308_000 / 16));
        // Too short to be numbered.
        counters.received(&[0; 8], true, millis(600));
        assert_eq!((counters.packets(), counters.bytes()), (6, 88));
    }

    #[test]
    fn numbers_of_four_and_of_eight_bytes_are_read_as_written() {
        let (now, number) = (Duration::new(7, 8000), 0x1_0000_0002);
        let mut bytes = [0xff; 20];
        write_header(&mut bytes, false, now, number);
        assert_eq!(header(&bytes, false), Some((7_000_008_000, 2)));
        assert_eq!(bytes[12], 0xff);
        write_header(&mut bytes, true, now, number);
        assert_eq!(header(&bytes, true), Some((7_000_008_000, number)));
    }

    #[test]
    fn a_rate_is_a_time_for_each_byte() {
        assert_eq!(time_of(1_000_000, 8_000_000), Duration::from_secs(1));
        assert_eq!(time_of(u64::MAX, 1), Duration::from_nanos(u64::MAX / 2));
    }
}
