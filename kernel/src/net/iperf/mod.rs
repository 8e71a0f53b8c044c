//! A server for the clients of iperf3, on port 5201: they measure what goes over a network in one direction, by TCP or UDP.
//!
//! ```text
//!   door           who comes in: each connection says by its cookie which test it belongs to
//!   control        the test's own connection: states, and JSON with its length before it
//!   parameters     what the client asks for, and what is refused
//!   streams        the bytes that are measured: sources and sinks, their counters
//!   results        what both sides counted
//! ```
//!
//! A test goes like this (the client's part on the left):
//!
//! ```text
//!   cookie               ->
//!                        <-  PARAM_EXCHANGE
//!   parameters           ->
//!                        <-  CREATE_STREAMS
//!   streams: TCP with the cookie again, UDP with a greeting that is answered
//!                        <-  TEST_START, TEST_RUNNING
//!   bytes, one way or the other
//!   TEST_END             ->
//!                        <-  EXCHANGE_RESULTS
//!   results              ->
//!                        <-  results, DISPLAY_RESULTS
//!   IPERF_DONE           ->
//! ```
//!
//! There is one test at a time. Whoever comes meanwhile is told so (ACCESS_DENIED), and a client that asks for what this
//! server does not do gets an error that names it (SERVER_ERROR).

mod control;
mod door;
mod parameters;
mod results;
mod streams;

use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use embassy_futures::select::{Either, Either3, select, select3};
use smoltcp::wire::IpAddress;

use self::control::{Control, State};
use self::door::{Door, Visitor};
use self::parameters::{Parameters, Transport};
use self::streams::{Counters, Streams};
use super::clock::{Clock, within};
use super::stack::Stack;
use super::tcp::{Buffers, Listener, TcpError};
use super::udp::UdpError;

/// Where clients look for a server.
pub(super) const PORT: u16 = 5201;
/// Streams of one test.
const MAX_STREAMS: usize = 16;
/// A client gets so long for each step that it does not need to think about.
const STEP: Duration = Duration::from_secs(10);
/// What a test may take longer than the client said.
const GRACE: Duration = Duration::from_secs(40);
/// A test whose client names its bytes and no time. It is also the longest time that the client can name.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How long what the client has sent may be on its way at the end. Of datagrams some may be lost: those are not waited for
/// as long.
const ARRIVAL: Duration = Duration::from_secs(10);
const DATAGRAMS_ARRIVAL: Duration = Duration::from_secs(1);

/// Why a test came to no good end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The client's connection broke.
    Lost(TcpError),
    /// The client hung up, or said that it gives up.
    Gone,
    /// This server does not do what the client asks for, or understands it not. What is wrong and iperf3's number for it,
    /// which the client is told.
    Refused(&'static str, u32),
}

/// iperf3's numbers for what is wrong.
mod code {
    pub(super) const TOO_LONG: u32 = 5;
    pub(super) const TOO_MANY_STREAMS: u32 = 6;
    pub(super) const OMIT: u32 = 12;
    pub(super) const NOT_IMPLEMENTED: u32 = 13;
    pub(super) const DATAGRAM_LENGTH: u32 = 20;
    pub(super) const UNKNOWN_MESSAGE: u32 = 110;
    pub(super) const PARAMETERS: u32 = 114;
    pub(super) const RESULTS: u32 = 117;
    pub(super) const SEGMENT_LENGTH: u32 = 123;
    pub(super) const SERVICE_TYPE: u32 = 125;
    pub(super) const FLOW_LABEL: u32 = 127;
    pub(super) const PROTOCOL: u32 = 131;
    pub(super) const CONGESTION: u32 = 134;
    pub(super) const PACING: u32 = 140;
    pub(super) const BUFFER: u32 = 141;
    pub(super) const STREAM_MISSING: u32 = 204;
}

impl From<TcpError> for Failure {
    fn from(error: TcpError) -> Self {
        Self::Lost(error)
    }
}

impl From<UdpError> for Failure {
    fn from(_: UdpError) -> Self {
        Self::Refused("no socket for the datagrams", code::BUFFER)
    }
}

/// Serves one test after the other. `buffers` is what each stream has.
pub async fn serve(stack: &'static Stack, clock: impl Clock, buffers: Buffers) -> Infallible {
    let listener = Listener::new(stack, PORT, buffers, door::LIMIT);
    let mut door = Door::new(&listener, clock);
    loop {
        let visitor = door.next().await;
        let control = Control::new(visitor.stream, clock);
        let test = Test {
            stack,
            clock,
            buffers,
            cookie: visitor.cookie,
            control: &control,
        };
        match test.run(&mut door).await {
            Ok(()) => {}
            Err(Failure::Refused(what, code)) => {
                log::debug!("{}: iperf3: refused: {what}", stack.name());
                control.refuse(code).await;
            }
            Err(failure) => log::debug!("{}: iperf3: {failure:?}", stack.name()),
        }
        control.close();
    }
}

struct Test<'a, C> {
    stack: &'static Stack,
    clock: C,
    buffers: Buffers,
    cookie: door::Cookie,
    control: &'a Control<C>,
}

impl<C: Clock> Test<'_, C> {
    async fn run(self, door: &mut Door<'_, C>) -> Result<(), Failure> {
        let (control, clock) = (self.control, self.clock);
        control.say(State::ParamExchange).await?;
        let limits = parameters::Limits {
            buffer: self.buffers.receive.min(self.buffers.send),
            packet: match control.client().ok_or(Failure::Gone)?.addr {
                IpAddress::Ipv4(_) => usize::from(u16::MAX),
                // No fragments are made for IPv6.
                IpAddress::Ipv6(_) => self.stack.summary().mtu,
            },
        };
        let parameters = door
            .turn_away_during(control.read_json(parameters::MAX_BYTES))
            .await?;
        let parameters = Parameters::parse(&parameters, limits)?;

        let streams = match select(self.create(door, &parameters), control.read_state()).await {
            Either::First(streams) => streams?,
            // It has nothing to say before the test begins.
            Either::Second(_) => return Err(Failure::Gone),
        };
        let counters: Vec<Counters> = (0..parameters.streams)
            .map(|_| Counters::default())
            .collect();
        door.turn_away_during(self.measure(&parameters, &streams, &counters))
            .await?;
        // Whether the client says so or hangs up, this is the end.
        let _ = within(clock, STEP, control.read_state()).await;
        Ok(())
    }

    /// Has the client make its streams.
    async fn create(
        &self,
        door: &mut Door<'_, C>,
        parameters: &Parameters,
    ) -> Result<Streams, Failure> {
        let missing = Failure::Refused("streams that did not come", code::STREAM_MISSING);
        match parameters.transport {
            Transport::Tcp => {
                self.control.say(State::CreateStreams).await?;
                let streams = self.gather(door, parameters.streams);
                let streams = within(self.clock, STEP, streams).await.ok_or(missing)?;
                Ok(Streams::Tcp(streams))
            }
            Transport::Udp => {
                let socket = streams::datagram_socket(self.stack, self.buffers)?;
                // It is there before the client knows that it may greet.
                self.control.say(State::CreateStreams).await?;
                let client = self.control.client().ok_or(Failure::Gone)?;
                let greeted = streams::greet(&socket, client.addr, parameters.streams);
                let greeted = door
                    .turn_away_during(within(self.clock, STEP, greeted))
                    .await;
                Ok(Streams::Udp(socket, greeted.ok_or(missing)??))
            }
        }
    }

    /// The connections that have the test's cookie, in the order in which they came: by that both sides number them.
    async fn gather(&self, door: &mut Door<'_, C>, count: usize) -> Vec<super::tcp::TcpStream> {
        let mut visitors: Vec<Visitor> = Vec::new();
        while visitors.len() < count {
            let visitor = door.next().await;
            match visitor.cookie == self.cookie {
                true => {
                    let later = |other: &Visitor| other.number > visitor.number;
                    let place = visitors.iter().position(later);
                    visitors.insert(place.unwrap_or(visitors.len()), visitor);
                }
                false => visitor.turn_away().await,
            }
        }
        visitors.into_iter().map(|visitor| visitor.stream).collect()
    }

    /// From the first byte to the exchange of what was counted.
    async fn measure(
        &self,
        parameters: &Parameters,
        streams: &Streams,
        counters: &[Counters],
    ) -> Result<(), Failure> {
        let (control, clock) = (self.control, self.clock);
        control.say(State::TestStart).await?;
        let (start, idle) = (clock.now(), clock.idle());
        control.say(State::TestRunning).await?;
        let mut moved = pin!(streams.run(parameters, counters, clock));
        let limit = clock.after(parameters.time.map_or(MAX_TIME, |time| time + GRACE));
        match select3(moved.as_mut(), control.read_state(), limit).await {
            Either3::First(never) => match never {},
            Either3::Second(state) => match state? {
                State::TestEnd => {}
                State::ClientTerminate => return Err(Failure::Gone),
                _ => return Err(Failure::Refused("a state", code::UNKNOWN_MESSAGE)),
            },
            Either3::Third(()) => return Err(Failure::Refused("a longer test", code::TOO_LONG)),
        }
        let mut took = clock.now().saturating_sub(start);
        control.say(State::ExchangeResults).await?;
        let theirs = select(moved.as_mut(), control.read_json(results::MAX_BYTES)).await;
        let theirs = match theirs {
            Either::First(never) => match never {},
            Either::Second(theirs) => theirs?,
        };
        if !parameters.reverse {
            // What the client counted as sent and has not come yet is still on its way.
            let sent = results::Sent::parse(&theirs)?;
            let arrived = poll_fn(|context| {
                let _ = moved.as_mut().poll(context);
                match sent.arrived(parameters.transport, counters) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            });
            let patience = match parameters.transport {
                Transport::Tcp => ARRIVAL,
                Transport::Udp => DATAGRAMS_ARRIVAL,
            };
            if within(clock, patience, arrived).await.is_some() {
                took = clock.now().saturating_sub(start);
            }
        }
        let idle = clock.idle().saturating_sub(idle);
        let ours = results::of(parameters, counters, took, idle);
        control.write_json(&ours).await?;
        control.say(State::DisplayResults).await
    }
}
