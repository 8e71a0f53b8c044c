//! Two machines on a wire made of memory, with a clock that only moves when everything else has come to rest.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::string::{String, ToString};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::vec;
use std::vec::Vec;

use chrono::{DateTime, Utc};
use embedded_io_async::{Read, Write};
use futures_util::stream::{FuturesUnordered, StreamExt};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::*;

use super::clock::{Clock, within};
use super::fetch::{Url, fetch};
use super::loopback::Loopback;
use super::ping::Pinger;
use super::stack::{SocketSummary, Stack};
use super::target::TargetError;
use super::tcp::{Buffers, Listener, TcpError, TcpStream};
use super::udp::UdpSocket;
use super::{Ipv4Setup, echo, http};

mod services;
mod web;

std::thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static SLEEPERS: RefCell<Vec<(Duration, Waker)>> = const { RefCell::new(Vec::new()) };
}

/// The test's clock: see [`World::run`].
#[derive(Clone, Copy)]
struct TestClock;

impl Clock for TestClock {
    fn now(self) -> Duration {
        NOW.get()
    }

    /// The example of RFC 9110.
    fn date(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(784_111_777, 0)
    }

    fn idle(self) -> Duration {
        Duration::ZERO
    }

    async fn after(self, duration: Duration) {
        let due = NOW.get() + duration;
        poll_fn(|context| {
            if NOW.get() >= due {
                return Poll::Ready(());
            }
            SLEEPERS.with_borrow_mut(|sleepers| sleepers.push((due, context.waker().clone())));
            Poll::Pending
        })
        .await;
    }
}

type Frames = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of a wire.
struct Port {
    incoming: Frames,
    outgoing: Frames,
}

impl Device for Port {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Room<'_>)> {
        let frame = self.incoming.borrow_mut().pop_front()?;
        Some((Frame(frame), Room(&self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Frame(Vec<u8>);

impl phy::RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Room<'a>(&'a Frames);

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.borrow_mut().push_back(frame);
        result
    }
}

/// A machine's network card, or its loopback.
enum Card {
    Wire(Port),
    Loopback(Loopback),
}

struct Machine {
    stack: &'static Stack,
    card: Card,
    link: bool,
    next: Option<Instant>,
    polls: usize,
}

impl Machine {
    fn poll(&mut self, now: Instant) {
        self.polls += 1;
        self.next = match &mut self.card {
            Card::Wire(port) => self.stack.poll(port, self.link, now),
            Card::Loopback(loopback) => self.stack.poll(loopback, true, now),
        };
    }

    fn has_work(&self, now: Instant) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let received = match &self.card {
            Card::Wire(port) => !port.incoming.borrow().is_empty(),
            Card::Loopback(loopback) => !loopback.is_empty(),
        };
        let due = self.next.is_some_and(|next| next <= now);
        self.stack.poll_woken(&mut context).is_ready() || received || due
    }
}

/// The machines and their tasks.
#[derive(Default)]
struct World {
    machines: Vec<Machine>,
    dhcp: Option<Rc<RefCell<DhcpServer>>>,
    tasks: FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = ()>>>>,
}

impl World {
    fn new() -> Self {
        NOW.set(Duration::from_secs(1));
        SLEEPERS.take();
        Self::default()
    }

    fn now() -> Instant {
        Instant::from_micros(NOW.get().as_micros() as i64)
    }

    fn join(&mut self, mut port: Port, number: u8, setup: Ipv4Setup) -> &'static Stack {
        let mac = EthernetAddress([2, 0, 0, 0, 0, number]);
        let name = std::format!("net{number}");
        let stack = Stack::ethernet(
            &name,
            &mut port,
            mac,
            setup,
            7 + u64::from(number),
            Self::now(),
        )
        .unwrap();
        self.add(stack, Card::Wire(port))
    }

    fn add(&mut self, stack: Stack, card: Card) -> &'static Stack {
        let stack = Box::leak(Box::new(stack));
        self.machines.push(Machine {
            stack,
            card,
            link: true,
            next: None,
            polls: 0,
        });
        stack
    }

    /// Machines 10.0.0.1 and 10.0.0.2 on one wire.
    fn pair() -> (Self, &'static Stack, &'static Stack) {
        let mut world = Self::new();
        let (left, right) = wire();
        let one = world.join(left, 1, "10.0.0.1/24".parse().unwrap());
        let two = world.join(right, 2, "10.0.0.2/24".parse().unwrap());
        // The addresses are there once the link is known to be up.
        world.pass(1);
        (world, one, two)
    }

    fn spawn<T>(&self, future: impl Future<Output = T> + 'static) {
        self.tasks.push(Box::pin(async move {
            future.await;
        }));
    }

    /// Runs until the future is done. Panics if that takes longer than an hour of the test's time.
    fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        let end = NOW.get() + Duration::from_secs(3600);
        loop {
            loop {
                if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                    return result;
                }
                let _ = self.tasks.poll_next_unpin(&mut context);
                let now = Self::now();
                let mut idle = true;
                for machine in self
                    .machines
                    .iter_mut()
                    .filter(|machine| machine.has_work(now))
                {
                    machine.poll(now);
                    idle = false;
                }
                let served = self
                    .dhcp
                    .as_ref()
                    .is_some_and(|server| server.borrow_mut().serve());
                if idle && !served {
                    break;
                }
            }
            self.sleep();
            assert!(NOW.get() < end, "this takes for ever");
        }
    }

    /// Lets the time pass until something is due.
    fn sleep(&mut self) {
        let timers = self.machines.iter().filter_map(|machine| machine.next);
        let timers = timers.map(|next| Duration::from_micros(next.total_micros() as u64));
        let sleepers =
            SLEEPERS.with_borrow(|sleepers| sleepers.iter().map(|sleeper| sleeper.0).min());
        let server = self.dhcp.as_ref().and_then(|server| server.borrow().next());
        let next = timers
            .chain(sleepers)
            .chain(server)
            .min()
            .expect("everybody waits, and for nothing");
        NOW.set(next.max(NOW.get()));
        let due = SLEEPERS.with_borrow_mut(|sleepers| {
            sleepers
                .extract_if(.., |sleeper| sleeper.0 <= next)
                .collect::<Vec<_>>()
        });
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn pass(&mut self, seconds: u64) {
        self.run(TestClock.after(Duration::from_secs(seconds)));
    }
}

fn wire() -> (Port, Port) {
    let (one, two) = (Frames::default(), Frames::default());
    let left = Port {
        incoming: one.clone(),
        outgoing: two.clone(),
    };
    (
        left,
        Port {
            incoming: two,
            outgoing: one,
        },
    )
}

fn address(text: &str) -> IpAddress {
    text.parse().unwrap()
}

fn endpoint(text: &str, port: u16) -> IpEndpoint {
    IpEndpoint::new(address(text), port)
}

const SMALL: Buffers = Buffers {
    receive: 1024,
    send: 1024,
};

fn serve_http(world: &World, stack: &'static Stack) -> &'static http::Web {
    let web: &'static http::Web = Box::leak(Box::default());
    world.spawn(http::serve_status(stack, TestClock, web, || {
        "{\"answer\":42}".to_string()
    }));
    web
}

async fn connect(stack: &'static Stack, port: u16) -> TcpStream {
    TcpStream::connect(stack, endpoint("10.0.0.2", port), SMALL)
        .await
        .unwrap()
}

/// Sends a request and reads until the server closes.
async fn talk(stack: &'static Stack, request: &str) -> String {
    let stream = connect(stack, 80).await;
    (&stream).write_all(request.as_bytes()).await.unwrap();
    rest(&stream).await
}

async fn rest(mut stream: &TcpStream) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 512];
    loop {
        match stream
            .read(&mut chunk)
            .await
            .expect("the connection ends in order")
        {
            0 => return String::from_utf8(all).unwrap(),
            length => all.extend_from_slice(&chunk[..length]),
        }
    }
}

#[test]
fn an_address_is_known_by_its_interface() {
    let (mut world, one, two) = World::pair();
    let lo: &'static Stack = Box::leak(Box::new(
        Stack::loopback("lo", &mut Loopback::default(), 1, World::now()).unwrap(),
    ));
    world.pass(1);
    let route = |text: &str| {
        text.parse::<super::target::Target>()?
            .route(&[one, two], lo)
            .map(Stack::name)
    };
    assert_eq!(route("127.0.0.1"), Ok("lo"));
    assert_eq!(route("10.0.0.2"), Ok("lo"), "our own");
    assert_eq!(route("10.0.0.9"), Ok("net1"));
    assert_eq!(route("10.0.0.9%net2"), Ok("net2"));
    assert_eq!(
        route("10.0.0.9%net3"),
        Err(TargetError::NoInterface("net3".to_string()))
    );
    assert_eq!(route("192.168.1.1"), Err(TargetError::NoRoute));
    assert_eq!(route("fe80::1"), Err(TargetError::WhichInterface));
    assert_eq!(route("fe80::1%net2"), Ok("net2"));
    assert_eq!(route("255.255.255.255"), Err(TargetError::NotUnicast));
    assert_eq!(route("ff02::1"), Err(TargetError::NotUnicast));
}

#[test]
fn pings_are_answered_over_ipv4_and_ipv6_and_silence_is_noticed() {
    let (mut world, one, _) = World::pair();
    world.pass(1);
    for target in ["10.0.0.2", "fe80::ff:fe00:2"] {
        let pinger = Pinger::new(one, TestClock, address(target), 99);
        // smoltcp drops an answer for which it must look for the neighbour first; who asks knows the neighbour already.
        world.run(pinger.ask(0, Duration::from_secs(3)));
        for sequence in 1..4 {
            assert!(
                world
                    .run(pinger.ask(sequence, Duration::from_secs(3)))
                    .is_some(),
                "{target}"
            );
        }
    }
    let nobody = Pinger::new(one, TestClock, address("10.0.0.3"), 99);
    let before = NOW.get();
    assert_eq!(world.run(nobody.ask(0, Duration::from_secs(3))), None);
    assert_eq!(NOW.get() - before, Duration::from_secs(3));
}

#[test]
fn an_idle_interface_is_not_polled() {
    let (mut world, ..) = World::pair();
    // Three router solicitations, eight seconds in all, and then nothing is left to do.
    world.pass(60);
    let polls: Vec<usize> = world.machines.iter().map(|machine| machine.polls).collect();
    world.pass(3000);
    assert_eq!(
        world
            .machines
            .iter()
            .map(|machine| machine.polls)
            .collect::<Vec<_>>(),
        polls
    );
    assert!(polls.iter().all(|polls| *polls < 30), "{polls:?}");
}

#[test]
fn everything_is_echoed_over_tcp() {
    let (mut world, one, two) = World::pair();
    world.spawn(echo::tcp(two, TestClock));
    let sent: Vec<u8> = (0..300_000u32)
        .map(|index| (index * 7 % 251) as u8)
        .collect();
    let received = world.run(async {
        let stream = connect(one, 7).await;
        let mut received = Vec::new();
        let (mut reader, mut writer) = (&stream, &stream);
        let read = async {
            let mut chunk = [0; 700];
            while received.len() < sent.len() {
                let length = reader.read(&mut chunk).await.unwrap();
                assert_ne!(length, 0);
                received.extend_from_slice(&chunk[..length]);
            }
        };
        embassy_futures::join::join(read, async { writer.write_all(&sent).await.unwrap() }).await;
        stream.close();
        received
    });
    assert!(received == sent);
    world.pass(30);
    for stack in [one, two] {
        let left: Vec<_> = stack
            .sockets()
            .into_iter()
            .filter(|socket| socket.protocol == "tcp")
            .collect();
        assert!(
            left.iter()
                .all(|socket| socket.state == Some(State::Listen)),
            "connections are forgotten after the end"
        );
    }
}

#[test]
fn datagrams_are_echoed_but_not_to_another_echo_service() {
    let (mut world, one, two) = World::pair();
    world.spawn(echo::udp(two));
    let answer = |world: &mut World, port| {
        world.run(async move {
            let socket = UdpSocket::bind(one, port, 4, 1024).unwrap();
            socket
                .send(b"hello", endpoint("10.0.0.2", 7).into())
                .await
                .unwrap();
            within(
                TestClock,
                Duration::from_secs(5),
                socket.receive(|bytes, _| bytes.to_vec()),
            )
            .await
        })
    };
    assert_eq!(answer(&mut world, 4000).as_deref(), Some(&b"hello"[..]));
    assert_eq!(answer(&mut world, 7), None);
}

#[test]
fn the_longest_ping_is_answered_and_lost_fragments_keep_nobody_out() {
    let (mut world, one, two) = World::pair();
    let know = Pinger::new(one, TestClock, address("10.0.0.2"), 99);
    world.run(know.ask(0, Duration::from_secs(3)));
    // The payload of the longest packet there is, and others in order, backwards and twice.
    for length in [1473, 4080, 8000, 65507] {
        for order in [
            |_: &mut Vec<Vec<u8>>| {},
            |fragments: &mut Vec<Vec<u8>>| fragments.reverse(),
            |fragments: &mut Vec<Vec<u8>>| fragments.extend_from_within(..1),
        ] {
            let mut fragments = fragments_of_ping(length, 1);
            order(&mut fragments);
            let answers = in_place_of_one(&mut world, fragments);
            assert_eq!(length_of_pong(&answers), Some(length), "{length}");
        }
    }
    // Forty pings without an end, and one that is longer than a packet can be.
    for identifier in 0..40 {
        let beginning = fragments_of_ping(2000, 100 + identifier).swap_remove(0);
        assert!(in_place_of_one(&mut world, vec![beginning]).is_empty());
    }
    let fragments = fragments_of_ping(65507 + 8, 200);
    assert_eq!(
        length_of_pong(&in_place_of_one(&mut world, fragments)),
        None
    );
    let answers = in_place_of_one(&mut world, fragments_of_ping(2000, 300));
    assert_eq!(length_of_pong(&answers), Some(2000));
    let drops = two.summary().drops;
    assert!(drops.unassembled >= 36, "{drops:?}");
    assert_eq!(drops.unsent, 0);
}

/// A ping of machine 1's with this much payload, in as many fragments as it needs.
fn fragments_of_ping(length: usize, identifier: u16) -> Vec<Vec<u8>> {
    const FRAGMENT: usize = 1480;
    let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
    let ping = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: 1,
        data: &payload,
    };
    let mut message = vec![0; ping.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    ping.emit(&mut Icmpv4Packet::new_unchecked(&mut message), &checksums);
    let last = (message.len() - 1) / FRAGMENT;
    let fragment = |(index, piece): (usize, &[u8])| {
        let header = Ipv4Repr {
            src_addr: Ipv4Address::new(10, 0, 0, 1),
            dst_addr: Ipv4Address::new(10, 0, 0, 2),
            next_header: IpProtocol::Icmp,
            payload_len: piece.len(),
            hop_limit: 64,
        };
        let mut frame = ipv4_frame(mac(1), mac(2), &header, |bytes| {
            bytes.copy_from_slice(piece)
        });
        let mut frame_out = EthernetFrame::new_unchecked(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame_out.payload_mut());
        packet.set_ident(identifier);
        packet.set_more_frags(index < last);
        packet.set_frag_offset((index * FRAGMENT) as u16);
        packet.fill_checksum();
        frame
    };
    message.chunks(FRAGMENT).enumerate().map(fragment).collect()
}

/// How much payload the answer to a ping has, put together from its fragments.
fn length_of_pong(frames: &[Vec<u8>]) -> Option<usize> {
    let mut message = Vec::new();
    let mut more = true;
    for frame in frames {
        let frame = EthernetFrame::new_checked(&frame[..]).ok()?;
        let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
        assert_eq!(usize::from(packet.frag_offset()), message.len());
        message.extend_from_slice(packet.payload());
        more = packet.more_frags();
    }
    let icmp = Icmpv4Packet::new_checked(&message[..]).ok()?;
    match Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoReply { data, .. } if !more => Some(data.len()),
        _ => None,
    }
}

#[test]
fn datagrams_for_which_there_is_no_room_are_counted() {
    let (mut world, one, two) = World::pair();
    world.spawn(echo::udp(two));
    let socket = UdpSocket::bind(one, 4000, 8, 8000).unwrap();
    world.run(async {
        socket
            .send(b"hello", endpoint("10.0.0.2", 7).into())
            .await
            .unwrap();
        socket.receive(|_, _| ()).await;
    });
    // At once, and more than fit.
    let echoed = flood(&mut world, 300);
    let dropped = |stack: &Stack| -> u64 {
        let sockets = stack.sockets().into_iter();
        sockets.map(|socket| socket.dropped).sum()
    };
    assert!(dropped(two) > 0);
    assert_eq!(echoed + dropped(two), 300);
}

#[test]
fn what_nobody_takes_is_counted_by_its_reason() {
    let (mut world, _, two) = World::pair();
    let datagram = |change: fn(&mut Vec<u8>)| {
        let mut frame = udp_frame(4001, 7, b"hello");
        change(&mut frame);
        frame
    };
    let fill_checksum = |frame: &mut Vec<u8>| {
        let mut frame = EthernetFrame::new_unchecked(frame);
        Ipv4Packet::new_unchecked(frame.payload_mut()).fill_checksum();
    };
    let other_host = |frame: &mut Vec<u8>| frame[14 + 19] = 77;
    let mut foreign = datagram(other_host);
    fill_checksum(&mut foreign);
    let mut source = datagram(|frame| frame[14 + 12] = 224);
    fill_checksum(&mut source);
    let drops = |world: &mut World, frames| {
        let before = two.summary().drops;
        in_place_of_one(world, frames);
        let after = two.summary().drops;
        [
            after.malformed - before.malformed,
            after.foreign - before.foreign,
            after.unheard - before.unheard,
        ]
    };
    let world = &mut world;
    // Cut in each of its headers, with wrong checksums, from a host that can't be.
    let malformed = vec![
        datagram(|frame| frame.truncate(10)),
        datagram(|frame| frame.truncate(14 + 10)),
        datagram(|frame| frame.truncate(14 + 20 + 4)),
        datagram(|frame| frame[14 + 8] ^= 1),
        datagram(|frame| frame[14 + 20 + 8] ^= 1),
        source,
    ];
    assert_eq!(drops(world, malformed), [6, 0, 0]);
    // For another card, and for another host.
    let foreign = vec![datagram(|frame| frame[5] ^= 1), foreign];
    assert_eq!(drops(world, foreign), [0, 2, 0]);
    // To a port and of a protocol that nobody listens to.
    let unheard = vec![datagram(|_| {}), datagram(|frame| frame[12] = 0x99)];
    assert_eq!(drops(world, unheard), [0, 0, 2]);
}

/// Has machine 2's echo service get `count` datagrams between two polls. Returns how many came back.
fn flood(world: &mut World, count: usize) -> u64 {
    let datagram = udp_frame(4001, 7, b"hello");
    let answers = in_place_of_one(world, vec![datagram; count]);
    answers.iter().filter(|frame| is_udp_from(frame, 7)).count() as u64
}

/// Sends frames to machine 2 as machine 1 would, and returns what it answers.
fn in_place_of_one(world: &mut World, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let [_, two] = &mut world.machines[..] else {
        unreachable!()
    };
    let Card::Wire(port) = &two.card else {
        unreachable!()
    };
    let outgoing = port.outgoing.clone();
    port.incoming.borrow_mut().extend(frames);
    let mut answers = Vec::new();
    loop {
        let _ = world
            .tasks
            .poll_next_unpin(&mut Context::from_waker(Waker::noop()));
        if !two.has_work(World::now()) {
            return answers;
        }
        two.poll(World::now());
        answers.extend(outgoing.borrow_mut().drain(..));
    }
}

#[test]
fn a_closed_port_refuses_and_an_absent_host_does_not_keep_us() {
    let (mut world, one, _) = World::pair();
    let result = world.run(TcpStream::connect(one, endpoint("10.0.0.2", 81), SMALL));
    assert_eq!(result.err(), Some(TcpError::Refused));
    let result = world.run(TcpStream::connect(one, endpoint("10.0.0.77", 80), SMALL));
    assert_eq!(result.err(), Some(TcpError::Refused));
    let result = world.run(TcpStream::connect(one, endpoint("192.168.0.1", 80), SMALL));
    assert_eq!(result.err(), Some(TcpError::Refused));
}

#[test]
fn half_open_connections_do_not_keep_others_out() {
    let (mut world, _, two) = World::pair();
    let listener = Listener::new(two, 9, SMALL, 4);
    world.pass(1);
    let Card::Wire(port) = &world.machines[1].card else {
        unreachable!()
    };
    let incoming = port.incoming.clone();
    for number in 0..50u16 {
        incoming.borrow_mut().push_back(syn(1000 + number, 9));
    }
    world.pass(1);
    let one = world.machines[0].stack;
    world.run(async {
        let stream = connect(one, 9).await;
        let accepted = poll_fn(|context| listener.poll_accept(context)).await;
        assert_eq!(accepted.remote().unwrap().addr, address("10.0.0.1"));
        stream.close();
    });
}

fn mac(number: u8) -> EthernetAddress {
    EthernetAddress([2, 0, 0, 0, 0, number])
}

/// A datagram from machine 1 to machine 2.
fn udp_frame(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let ports = UdpRepr {
        src_port: from,
        dst_port: to,
    };
    let header = Ipv4Repr {
        src_addr: Ipv4Address::new(10, 0, 0, 1),
        dst_addr: Ipv4Address::new(10, 0, 0, 2),
        next_header: IpProtocol::Udp,
        payload_len: ports.header_len() + payload.len(),
        hop_limit: 64,
    };
    ipv4_frame(mac(1), mac(2), &header, |bytes| {
        ports.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &header.src_addr.into(),
            &header.dst_addr.into(),
            payload.len(),
            |bytes| bytes.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

fn is_udp_from(frame: &[u8], port: u16) -> bool {
    let udp = |frame| {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
        let udp = UdpPacket::new_checked(packet.payload()).ok()?;
        (packet.next_header() == IpProtocol::Udp).then_some(udp.src_port())
    };
    udp(frame) == Some(port)
}

/// A TCP segment from machine 1 to port 80 of machine 2.
fn segment(from: u16, control: TcpControl, seq: u32, ack: Option<u32>, payload: &[u8]) -> Vec<u8> {
    segment_to(80, from, control, seq, ack, payload)
}

/// A TCP segment from machine 1 to this port of machine 2.
fn segment_to(
    port: u16,
    from: u16,
    control: TcpControl,
    seq: u32,
    ack: Option<u32>,
    payload: &[u8],
) -> Vec<u8> {
    let number = |number: u32| TcpSeqNumber(number as i32);
    let segment = TcpRepr {
        src_port: from,
        dst_port: port,
        control,
        seq_number: number(seq),
        ack_number: ack.map(number),
        window_len: 20_000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let header = Ipv4Repr {
        src_addr: Ipv4Address::new(10, 0, 0, 1),
        dst_addr: Ipv4Address::new(10, 0, 0, 2),
        next_header: IpProtocol::Tcp,
        payload_len: segment.buffer_len(),
        hop_limit: 64,
    };
    ipv4_frame(mac(1), mac(2), &header, |bytes| {
        segment.emit(
            &mut TcpPacket::new_unchecked(bytes),
            &header.src_addr.into(),
            &header.dst_addr.into(),
            &ChecksumCapabilities::default(),
        );
    })
}

/// Of a segment in a frame: its sequence number, the one after it, its acknowledgement, and whether it is a SYN.
fn read_segment(frame: &[u8]) -> Option<(u32, u32, u32, bool)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    (packet.next_header() == IpProtocol::Tcp).then_some((
        tcp.seq_number().0 as u32,
        (tcp.seq_number() + tcp.segment_len()).0 as u32,
        tcp.ack_number().0 as u32,
        tcp.syn(),
    ))
}

/// Opens a connection from this port. The sequence number of the answer to the SYN, or what was acknowledged instead.
fn open(world: &mut World, from: u16, seq: u32) -> core::result::Result<u32, u32> {
    let answers = in_place_of_one(world, vec![segment(from, TcpControl::Syn, seq, None, b"")]);
    let (answer, _, ack, syn) = answers
        .iter()
        .find_map(|frame| read_segment(frame))
        .expect("an answer to a SYN");
    if syn { Ok(answer) } else { Err(ack) }
}

/// Asks for the page's data and lets the server close: it is in TIME-WAIT afterwards.
fn ask_and_close(world: &mut World, from: u16, seq: u32) {
    let first = open(world, from, seq).unwrap();
    let request = b"GET /status.json HTTP/1.0\r\n\r\n";
    let ask = segment(
        from,
        TcpControl::Psh,
        seq + 1,
        Some(first.wrapping_add(1)),
        request,
    );
    let answers = in_place_of_one(world, vec![ask]);
    let end = answers
        .iter()
        .filter_map(|frame| read_segment(frame))
        .next_back()
        .unwrap()
        .1;
    let seq = seq + 1 + request.len() as u32;
    in_place_of_one(
        world,
        vec![segment(from, TcpControl::Fin, seq, Some(end), b"")],
    );
}

fn states(stack: &Stack, remote: &str) -> Vec<String> {
    let sockets = stack.sockets().into_iter();
    let of_remote = sockets.filter(|socket| socket.remote.to_string() == remote);
    let state = |socket: SocketSummary| socket.state.map(|state| state.to_string());
    of_remote.filter_map(state).collect()
}

#[test]
fn a_client_may_use_its_port_again_at_once() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    world.run(talk(one, "GET / HTTP/1.0\r\n\r\n"));
    ask_and_close(&mut world, 4000, 1000);
    assert_eq!(states(two, "10.0.0.1:4000"), ["TIME-WAIT"]);
    ask_and_close(&mut world, 4000, 5_000_000);
    assert_eq!(states(two, "10.0.0.1:4000"), ["TIME-WAIT"]);
    // What could be a SYN of the past is answered by what was acknowledged last; a client that has begun anew ends
    // the old connection for that, and asks again.
    let last = open(&mut world, 4000, 77).unwrap_err();
    in_place_of_one(
        &mut world,
        vec![segment(4000, TcpControl::Rst, last, None, b"")],
    );
    ask_and_close(&mut world, 4000, 77);
    assert_eq!(states(two, "10.0.0.1:4000"), ["TIME-WAIT"]);
}

#[test]
fn a_syn_that_comes_twice_opens_one_connection() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    // Whichever place the next listening socket has among the sockets.
    for from in 4000..4010 {
        world.run(talk(one, "GET / HTTP/1.0\r\n\r\n"));
        world.pass(if from % 2 == 0 { 0 } else { 20 });
        assert!(open(&mut world, from, 1000).is_ok());
        in_place_of_one(
            &mut world,
            vec![segment(from, TcpControl::Syn, 1000, None, b"")],
        );
        assert_eq!(states(two, &std::format!("10.0.0.1:{from}")).len(), 1);
    }
}

/// A SYN to machine 2 from an address that never answers.
fn syn(from: u16, to: u16) -> Vec<u8> {
    let header = Ipv4Repr {
        src_addr: Ipv4Address::new(10, 0, 0, 99),
        dst_addr: Ipv4Address::new(10, 0, 0, 2),
        next_header: IpProtocol::Tcp,
        payload_len: 20,
        hop_limit: 64,
    };
    let mut bytes = vec![0; 14 + 20 + 20];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(EthernetAddress([2, 0, 0, 0, 0, 99]));
    frame.set_dst_addr(EthernetAddress([2, 0, 0, 0, 0, 2]));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    header.emit(&mut packet, &ChecksumCapabilities::default());
    let mut tcp = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.set_src_port(from);
    tcp.set_dst_port(to);
    tcp.set_header_len(20);
    tcp.clear_flags();
    tcp.set_syn(true);
    tcp.set_window_len(1000);
    tcp.fill_checksum(&header.src_addr.into(), &header.dst_addr.into());
    bytes
}

#[test]
fn our_own_addresses_are_reached_through_loopback() {
    let mut world = World::new();
    let mut device = Loopback::default();
    let stack = Stack::loopback("lo", &mut device, 1, World::now()).unwrap();
    let lo = world.add(stack, Card::Loopback(device));
    serve_http(&world, lo);
    for host in ["127.0.0.1", "10.0.2.15", "[::1]", "[fec0::15]"] {
        let url: Url = std::format!("http://{host}/").parse().unwrap();
        let response = world
            .run(fetch(
                lo,
                TestClock,
                url.target.address,
                &url,
                |_: &[u8]| {},
            ))
            .unwrap();
        assert_eq!(response.status, 200, "{host}");
        let pinger = Pinger::new(lo, TestClock, url.target.address, 5);
        assert!(
            world.run(pinger.ask(0, Duration::from_secs(1))).is_some(),
            "{host}"
        );
    }
}

/// What a DHCP server on the other end of the wire does with each message that it hears.
struct DhcpServer {
    port: Port,
    /// The messages heard, and when.
    heard: Vec<(DhcpMessageType, u64)>,
    your_ip: Ipv4Address,
    router: Ipv4Address,
    mask: Option<Ipv4Address>,
    lease: u32,
    answers: bool,
    /// It offers, and refuses what is then requested.
    refuses: bool,
    /// Another server on the same wire refuses what is requested of this one.
    rival: bool,
    /// How long it thinks about a message; the next one waits.
    thinks: Duration,
    /// Its answers, and when they are ready.
    answering: VecDeque<(Duration, Vec<u8>)>,
}

impl DhcpServer {
    const ADDRESS: Ipv4Address = Ipv4Address::new(10, 9, 0, 1);
    const RIVAL: Ipv4Address = Ipv4Address::new(10, 9, 0, 7);

    fn serve(&mut self) -> bool {
        let heard = self.port.receive(World::now()).map(|(frame, _)| frame);
        if let Some(frame) = &heard {
            self.answer(&frame.0);
        }
        // A flood would never let the time pass.
        assert!(self.heard.len() < 10_000, "{:?}", &self.heard[9_990..]);
        let ready = self.answering.pop_front_if(|(when, _)| *when <= NOW.get());
        let worked = heard.is_some() || ready.is_some();
        if let Some((_, answer)) = ready {
            self.port.outgoing.borrow_mut().push_back(answer);
        }
        worked
    }

    /// When the next answer is ready.
    fn next(&self) -> Option<Duration> {
        self.answering.front().map(|(when, _)| *when)
    }

    fn answer(&mut self, frame: &[u8]) {
        let Some((request, bytes)) = self.hear(frame) else {
            return;
        };
        let last = self.answering.back().map_or(NOW.get(), |(when, _)| *when);
        let ready = if request { last + self.thinks } else { last };
        self.answering
            .extend(bytes.into_iter().map(|bytes| (ready, bytes)));
    }

    /// Whether that was a DHCP message, and what is to be said to it.
    fn hear(&mut self, frame: &[u8]) -> Option<(bool, Vec<Vec<u8>>)> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.ethertype() == EthernetProtocol::Arp {
            return Some((
                false,
                self.answer_arp(ethernet.payload()).into_iter().collect(),
            ));
        }
        let frame = ethernet;
        if let Some(pong) = self.answer_ping(&frame) {
            return Some((false, vec![pong]));
        }
        let packet = Ipv4Packet::new_checked(frame.payload())
            .ok()
            .filter(|packet| packet.next_header() == IpProtocol::Udp)?;
        let udp = UdpPacket::new_checked(packet.payload())
            .ok()
            .filter(|udp| udp.dst_port() == 67)?;
        let dhcp = DhcpPacket::new_checked(udp.payload()).ok()?;
        let request = DhcpRepr::parse(&dhcp).ok()?;
        self.heard.push((request.message_type, NOW.get().as_secs()));
        let asked = request.message_type == DhcpMessageType::Request;
        let answer = DhcpRepr {
            message_type: match request.message_type {
                DhcpMessageType::Discover => DhcpMessageType::Offer,
                _ if self.refuses => DhcpMessageType::Nak,
                _ => DhcpMessageType::Ack,
            },
            your_ip: self.your_ip,
            router: Some(self.router),
            subnet_mask: self.mask,
            server_identifier: Some(Self::ADDRESS),
            lease_duration: Some(self.lease),
            dns_servers: Some([Self::ADDRESS].into_iter().collect()),
            client_identifier: None,
            requested_ip: None,
            parameter_request_list: None,
            max_size: None,
            ..request.clone()
        };
        let rival = DhcpRepr {
            message_type: DhcpMessageType::Nak,
            server_identifier: Some(Self::RIVAL),
            ..answer.clone()
        };
        let mut answers = Vec::new();
        if self.rival && asked {
            answers.push(dhcp_frame(Self::RIVAL, &rival));
        }
        if self.answers {
            answers.push(dhcp_frame(Self::ADDRESS, &answer));
        }
        if self.rival && asked {
            answers.push(dhcp_frame(Self::RIVAL, &rival));
        }
        Some((true, answers))
    }

    /// It is the way to everywhere, and everybody there answers.
    fn answer_ping(&self, frame: &EthernetFrame<&[u8]>) -> Option<Vec<u8>> {
        let packet = Ipv4Packet::new_checked(frame.payload())
            .ok()
            .filter(|packet| packet.next_header() == IpProtocol::Icmp)?;
        let checksums = ChecksumCapabilities::default();
        let icmp = Icmpv4Packet::new_checked(packet.payload()).ok()?;
        let Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        } = Icmpv4Repr::parse(&icmp, &checksums).ok()?
        else {
            return None;
        };
        let pong = Icmpv4Repr::EchoReply {
            ident,
            seq_no,
            data,
        };
        let header = Ipv4Repr {
            src_addr: packet.dst_addr(),
            dst_addr: packet.src_addr(),
            next_header: IpProtocol::Icmp,
            payload_len: pong.buffer_len(),
            hop_limit: 64,
        };
        Some(ipv4_frame(
            SERVER_MAC,
            frame.src_addr(),
            &header,
            |payload| {
                pong.emit(&mut Icmpv4Packet::new_unchecked(payload), &checksums);
            },
        ))
    }

    fn answer_arp(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let ArpRepr::EthernetIpv4 {
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
        else {
            return None;
        };
        let answer = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: SERVER_MAC,
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        let mut bytes = vec![0; 14 + answer.buffer_len()];
        let mut out = EthernetFrame::new_unchecked(&mut bytes);
        out.set_src_addr(SERVER_MAC);
        out.set_dst_addr(source_hardware_addr);
        out.set_ethertype(EthernetProtocol::Arp);
        answer.emit(&mut ArpPacket::new_unchecked(out.payload_mut()));
        [Self::ADDRESS, self.router]
            .contains(&target_protocol_addr)
            .then_some(bytes)
    }
}

const SERVER_MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 0xdd]);

fn dhcp_frame(server: Ipv4Address, answer: &DhcpRepr<'_>) -> Vec<u8> {
    let ports = UdpRepr {
        src_port: 67,
        dst_port: 68,
    };
    let header = Ipv4Repr {
        src_addr: server,
        dst_addr: Ipv4Address::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: ports.header_len() + answer.buffer_len(),
        hop_limit: 64,
    };
    ipv4_frame(SERVER_MAC, EthernetAddress::BROADCAST, &header, |payload| {
        ports.emit(
            &mut UdpPacket::new_unchecked(payload),
            &header.src_addr.into(),
            &header.dst_addr.into(),
            answer.buffer_len(),
            |payload| {
                answer
                    .emit(&mut DhcpPacket::new_unchecked(payload))
                    .unwrap();
            },
            &ChecksumCapabilities::default(),
        );
    })
}

fn ipv4_frame(
    from: EthernetAddress,
    to: EthernetAddress,
    header: &Ipv4Repr,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; 14 + header.buffer_len() + header.payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(from);
    frame.set_dst_addr(to);
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    header.emit(&mut packet, &ChecksumCapabilities::default());
    fill(packet.payload_mut());
    bytes
}

/// A machine that asks for its address, and the server at the other end, to be changed while the world turns.
fn with_dhcp() -> (World, &'static Stack, Rc<RefCell<DhcpServer>>) {
    let mut world = World::new();
    let (left, right) = wire();
    let stack = world.join(left, 1, Ipv4Setup::Dhcp);
    let server = Rc::new(RefCell::new(DhcpServer {
        port: right,
        heard: Vec::new(),
        your_ip: Ipv4Address::new(10, 9, 0, 15),
        router: DhcpServer::ADDRESS,
        mask: Some(Ipv4Address::new(255, 255, 255, 0)),
        lease: 1000,
        answers: true,
        refuses: false,
        rival: false,
        thinks: Duration::ZERO,
        answering: VecDeque::new(),
    }));
    world.dhcp = Some(server.clone());
    (world, stack, server)
}

fn leased(stack: &Stack) -> Option<String> {
    stack.summary().lease.map(|lease| lease.address.to_string())
}

#[test]
fn a_lease_is_obtained_renewed_lost_and_obtained_again() {
    let (mut world, stack, server) = with_dhcp();
    world.pass(2);
    let lease = stack.summary().lease.unwrap();
    assert_eq!(lease.address.to_string(), "10.9.0.15/24");
    assert_eq!(lease.gateway, Some(Ipv4Address::new(10, 9, 0, 1)));
    assert_eq!(lease.dns, [Ipv4Address::new(10, 9, 0, 1)]);
    assert_eq!(
        lease.duration,
        Some(smoltcp::time::Duration::from_secs(1000))
    );
    assert!(stack.accepts(address("10.9.0.15")) && stack.has_route(address("8.8.8.8")));
    // Half of the lease later it is renewed; nothing is said in between.
    world.pass(600);
    let heard: Vec<_> = server
        .borrow()
        .heard
        .iter()
        .map(|(kind, _)| *kind)
        .collect();
    assert_eq!(
        heard,
        [
            DhcpMessageType::Discover,
            DhcpMessageType::Request,
            DhcpMessageType::Request
        ]
    );
    assert!(
        (500..505).contains(&server.borrow().heard[2].1),
        "{:?}",
        server.borrow().heard
    );
    assert_eq!(stack.summary().lease.unwrap().renewals, 1);
    // The server falls silent: the lease runs out, a thousand seconds after it was renewed.
    server.borrow_mut().answers = false;
    world.pass(880);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.15/24"));
    world.pass(60);
    assert_eq!(leased(stack), None);
    assert!(!stack.accepts(address("10.9.0.15")) && !stack.has_route(address("8.8.8.8")));
    server.borrow_mut().answers = true;
    server.borrow_mut().your_ip = Ipv4Address::new(10, 9, 0, 16);
    world.pass(10);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.16/24"));
}

fn set_link(world: &mut World, machine: usize, up: bool) {
    world.machines[machine].link = up;
    world.machines[machine].stack.wake();
    world.pass(1);
}

#[test]
fn a_link_that_stays_down_takes_the_addresses_with_it() {
    let (mut world, stack, server) = with_dhcp();
    world.pass(2);
    assert!(leased(stack).is_some());
    set_link(&mut world, 0, false);
    assert!(!stack.summary().link);
    assert!(leased(stack).is_some(), "it may be back in a moment");
    world.pass(10);
    assert_eq!(leased(stack), None);
    assert!(stack.summary().addresses.is_empty());
    server.borrow_mut().your_ip = Ipv4Address::new(10, 9, 0, 17);
    set_link(&mut world, 0, true);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.17/24"));
}

#[test]
fn a_link_that_comes_back_elsewhere_gets_an_address_of_that_network() {
    let (mut world, stack, server) = with_dhcp();
    world.pass(2);
    set_link(&mut world, 0, false);
    server.borrow_mut().your_ip = Ipv4Address::new(10, 9, 0, 18);
    set_link(&mut world, 0, true);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.18/24"));
    // Nobody there who would confirm it.
    set_link(&mut world, 0, false);
    server.borrow_mut().answers = false;
    set_link(&mut world, 0, true);
    assert!(leased(stack).is_some());
    world.pass(10);
    assert_eq!(leased(stack), None);
}

#[test]
fn a_connection_survives_a_short_outage() {
    let (mut world, one, two) = World::pair();
    world.spawn(echo::tcp(two, TestClock));
    let stream = world.run(connect(one, 7));
    set_link(&mut world, 1, false);
    set_link(&mut world, 1, true);
    let echoed = world.run(async {
        (&stream).write_all(b"still here").await.unwrap();
        let mut echoed = [0; 10];
        (&stream).read_exact(&mut echoed).await.unwrap();
        echoed
    });
    assert_eq!(&echoed, b"still here");
}

#[test]
fn a_lease_that_no_host_can_have_is_not_taken() {
    for bad in [
        Ipv4Address::BROADCAST,
        Ipv4Address::UNSPECIFIED,
        Ipv4Address::new(224, 0, 0, 1),
    ] {
        let (mut world, stack, server) = with_dhcp();
        server.borrow_mut().your_ip = bad;
        world.pass(20);
        assert_eq!(leased(stack), None, "{bad}");
    }
    let (mut world, stack, server) = with_dhcp();
    server.borrow_mut().router = Ipv4Address::BROADCAST;
    world.pass(2);
    assert_eq!(stack.summary().lease.unwrap().gateway, None);
}

#[test]
fn a_router_is_reached_wherever_its_address_is() {
    for (mask, router) in [
        (Some("255.255.255.255"), "10.9.0.1"),
        (Some("255.255.255.0"), "10.77.0.1"),
        (None, "10.9.0.1"),
    ] {
        let (mut world, stack, server) = with_dhcp();
        server.borrow_mut().mask = mask.map(|mask| mask.parse().unwrap());
        server.borrow_mut().router = router.parse().unwrap();
        world.pass(2);
        for target in [router, "8.8.8.8"] {
            let pinger = Pinger::new(stack, TestClock, address(target), 5);
            let answer = world.run(pinger.ask(0, Duration::from_secs(3)));
            assert!(answer.is_some(), "{target} by {router}, mask {mask:?}");
        }
    }
}

#[test]
fn a_server_that_says_no_mask_means_that_of_the_class() {
    let (mut world, stack, server) = with_dhcp();
    server.borrow_mut().mask = None;
    world.pass(2);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.15/8"));
}

#[test]
fn a_renewal_that_says_no_mask_keeps_the_one_before() {
    let (mut world, stack, server) = with_dhcp();
    world.pass(2);
    server.borrow_mut().mask = None;
    world.pass(600);
    assert_eq!(stack.summary().lease.unwrap().renewals, 1);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.15/24"));
}

#[test]
fn a_slow_server_is_waited_for() {
    for millis in [2500, 3500, 5000] {
        let (mut world, stack, server) = with_dhcp();
        server.borrow_mut().thinks = Duration::from_millis(millis);
        world.pass(40);
        assert_eq!(
            leased(stack).as_deref(),
            Some("10.9.0.15/24"),
            "{millis} ms"
        );
        // Its answers to what was repeated meanwhile are late, and no renewals.
        assert_eq!(stack.summary().lease.unwrap().renewals, 0);
    }
}

#[test]
fn another_server_cannot_refuse() {
    let (mut world, stack, server) = with_dhcp();
    server.borrow_mut().rival = true;
    world.pass(600);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.15/24"));
    let kinds = server
        .borrow()
        .heard
        .iter()
        .map(|(kind, _)| *kind)
        .collect::<Vec<_>>();
    let renewal = DhcpMessageType::Request;
    assert_eq!(
        kinds,
        [DhcpMessageType::Discover, DhcpMessageType::Request, renewal]
    );
}

#[test]
fn a_server_is_not_flooded_whatever_it_answers() {
    let count = |set: fn(&mut DhcpServer)| {
        let (mut world, stack, server) = with_dhcp();
        set(&mut server.borrow_mut());
        world.pass(600);
        assert_eq!(leased(stack), None);
        let heard = server.borrow().heard.len();
        // It asks on, without end.
        world.pass(200);
        assert!(server.borrow().heard.len() > heard);
        heard
    };
    // A message at 0, 3, 9, 21, 45, 93 seconds and once a minute from then on, with a request each if one is offered.
    let silent = count(|server| server.answers = false);
    let refuses = count(|server| server.refuses = true);
    let nothing = count(|server| server.lease = 0);
    assert!((10..=16).contains(&silent), "{silent}");
    assert!((20..=32).contains(&refuses), "{refuses}");
    assert!((10..=16).contains(&nothing), "{nothing}");
}

#[test]
fn the_shortest_lease_is_renewed_and_the_longest_never_ends() {
    let (mut world, stack, server) = with_dhcp();
    server.borrow_mut().lease = 1;
    world.pass(60);
    assert_eq!(leased(stack).as_deref(), Some("10.9.0.15/24"));
    assert!(
        server.borrow().heard.len() < 200,
        "{}",
        server.borrow().heard.len()
    );
    let (mut world, stack, server) = with_dhcp();
    server.borrow_mut().lease = u32::MAX;
    world.pass(1000);
    assert_eq!(stack.summary().lease.unwrap().duration, None);
    assert_eq!(server.borrow().heard.len(), 2);
}

#[test]
fn garbage_on_the_wire_harms_nobody() {
    let (mut world, one, two) = World::pair();
    serve_http(&world, two);
    world.spawn(echo::udp(two));
    world.pass(1);
    let Card::Wire(port) = &world.machines[1].card else {
        unreachable!()
    };
    let incoming = port.incoming.clone();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..20_000 {
        let mut frame = syn(next() as u16, [80, 7, 9][round % 3]);
        frame.extend((0..next() % 64).map(|_| 0));
        // Most keep a valid beginning, so that they get past the first check.
        for _ in 0..=next() % 4 {
            let at = next() as usize % frame.len();
            frame[at] = next() as u8;
        }
        frame.truncate(frame.len() - next() as usize % 8);
        incoming.borrow_mut().push_back(frame);
    }
    world.pass(60);
    let answer = world.run(talk(one, "GET /status.json HTTP/1.0\r\n\r\n"));
    assert!(answer.ends_with("{\"answer\":42}"));
}
