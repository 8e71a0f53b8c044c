//! smoltcp on the network driver: two machines, each with a card of its own, and the wire between them in the test's hand.

#![cfg(feature = "smoltcp")]

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpAddress, IpCidr};
use vringlet::Transport;
use vringlet::fake::{FakeDevice, FakeNic, FakeTransport, Memory, Pace, Random};
use vringlet::net::{Features, Net, Options};

type Card = FakeDevice<FakeNic>;
type Driver = Net<FakeTransport<FakeNic>>;

fn nic(mac: [u8; 6]) -> FakeNic {
    let mut nic = FakeNic::new();
    nic.mac = mac;
    nic
}

/// That the adapter can be handed to code that takes any device.
fn capabilities<T: Transport>(net: &Net<T>) -> (usize, Option<usize>, Medium) {
    let capabilities = net.capabilities();
    (
        capabilities.max_transmission_unit,
        capabilities.max_burst_size,
        capabilities.medium,
    )
}

#[test]
fn capabilities_are_what_the_device_can_do() {
    let memory = Memory::fresh();
    for (mtu, buffers, expected) in [
        (1500, 256, (1514, Some(256))),
        (1280, 16, (1294, Some(16))),
        // Two buffers each.
        (4000, 64, (4014, Some(32))),
    ] {
        let mut nic = FakeNic::new();
        nic.mtu = mtu;
        let card = FakeDevice::new(nic);
        let options = Options {
            receive_buffers: buffers,
            ..Options::default()
        };
        let net: Driver = Net::new(card.transport(), options).expect("an honest device");
        let (longest, burst) = expected;
        assert_eq!(capabilities(&net), (longest, burst, Medium::Ethernet));
    }
    memory.assert_clean();
}

#[test]
fn dropped_tokens_leak_nothing() {
    let memory = Memory::fresh();
    let card = FakeDevice::new(FakeNic::new());
    let mut net: Driver = Net::new(card.transport(), Options::default()).expect("a device");
    let now = Instant::ZERO;
    card.set_pace(Pace::Manual);
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&FakeNic::new().mac);
    for _ in 0..2000 {
        card.with(|nic| nic.inject(frame.clone()));
        card.pump();
        drop(Device::receive(&mut net, now).expect("a frame"));
        let _not_used = Device::transmit(&mut net, now).expect("room");
        net.flush();
    }
    card.pump();
    assert_eq!(card.with(|nic| nic.posted()), 256);
    assert_eq!(net.transmit_stats().packets, 0);
    // All of the transmit buffers are still there, and no more.
    for _ in 0..256 {
        Device::transmit(&mut net, now)
            .expect("room")
            .consume(60, |frame| frame.fill(1));
    }
    assert!(Device::transmit(&mut net, now).is_none());
    drop(net);
    memory.assert_clean();
}

#[test]
fn a_frame_is_taken_even_when_no_answer_can_be_sent() {
    let memory = Memory::fresh();
    let card = FakeDevice::new(FakeNic::new());
    let mut net: Driver = Net::new(card.transport(), Options::default()).expect("a device");
    let now = Instant::ZERO;
    card.set_pace(Pace::Manual);
    while let Some(token) = Device::transmit(&mut net, now) {
        token.consume(60, |frame| frame.fill(1));
    }
    let mut frame = vec![7; 60];
    frame[..6].copy_from_slice(&FakeNic::new().mac);
    card.with(|nic| nic.inject(frame.clone()));
    assert_eq!(card.complete(0, 1), 0);
    let (received, answer) = Device::receive(&mut net, now).expect("a frame");
    received.consume(|bytes| assert_eq!(bytes, frame));
    answer.consume(100, |bytes| assert_eq!(bytes.len(), 100));
    assert_eq!(net.transmit_stats().full, 1);
    // A stack that does not keep to the capabilities gets its memory too, and nothing is sent.
    card.pump();
    Device::transmit(&mut net, now)
        .expect("room")
        .consume(5000, |bytes| assert_eq!(bytes.len(), 5000));
    assert_eq!(net.transmit_stats().too_long, 1);
    drop(net);
    memory.assert_clean();
}

/// A machine on the wire.
struct Machine {
    card: Card,
    net: Driver,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

impl Machine {
    fn new(number: u8, options: Options) -> Self {
        let mac = [2, 0, 0, 0, 0, number];
        let card = FakeDevice::new(nic(mac));
        card.set_pace(Pace::Manual);
        let mut net: Driver = Net::new(card.transport(), options).expect("an honest device");
        let mut interface = Interface::new(Config::new(net.mac().into()), &mut net, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::v4(10, 0, 0, number), 24);
            addresses.push(address).expect("room for one");
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
        let mut sockets = SocketSet::new(vec![]);
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self {
            card,
            net,
            interface,
            sockets,
            socket,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn poll(&mut self, now: Instant) {
        self.interface.poll(now, &mut self.net, &mut self.sockets);
    }

    /// One of the things that can happen at any time.
    fn step(&mut self, random: &mut Random, now: Instant) {
        match random.below(6) {
            0 => self.card.pump(),
            1 => {
                self.card.pump_notified();
            }
            2 => {
                // The buffers of one frame come back together (spec 5.1.6.4.1).
                let limit = match self.net.receive_buffers() {
                    (_, ..1526) => usize::MAX,
                    _ => random.below(4),
                };
                self.card.complete(0, limit);
            }
            3 => {
                self.card.complete(1, random.below(4));
            }
            4 => self.net.flush(),
            _ => self.poll(now),
        }
    }
}

/// Carries what `from` sent to `to`, and loses some of it.
fn carry(from: &Card, to: &Card, random: &mut Random, loss: usize) {
    for frame in from.with(FakeNic::take_sent) {
        if random.below(100) >= loss {
            to.with(|nic| nic.inject(frame));
        }
    }
}

fn transfer(seed: u64, bytes: usize, loss: usize, options: Options) -> [Machine; 2] {
    let mut random = Random::new(seed);
    let [mut client, mut server] = [1, 2].map(|number| Machine::new(number, options));
    server.socket().listen(7).expect("a port");
    let remote = (IpAddress::v4(10, 0, 0, 2), 7);
    let socket = client.sockets.get_mut::<tcp::Socket<'_>>(client.socket);
    socket
        .connect(client.interface.context(), remote, 50000)
        .expect("a route");

    let mut data = vec![0; bytes];
    random.fill(&mut data);
    let (mut sent, mut received) = (0, Vec::new());
    let mut now = Instant::ZERO;
    for _ in 0..2_000_000 {
        if received.len() == bytes {
            assert!(received == data, "seed {seed}: other bytes than were sent");
            return [client, server];
        }
        now += Duration::from_micros(random.below(3000) as u64);
        let socket = client.socket();
        if socket.can_send() && sent < bytes {
            sent += socket.send_slice(&data[sent..]).expect("an open socket");
        }
        let socket = server.socket();
        if socket.can_recv() {
            let taken = socket
                .recv(|part| (part.len(), part.to_vec()))
                .expect("an open socket");
            received.extend(taken);
        }
        match random.below(3) {
            0 => client.step(&mut random, now),
            1 => server.step(&mut random, now),
            _ => {
                carry(&client.card, &server.card, &mut random, loss);
                carry(&server.card, &client.card, &mut random, loss);
            }
        }
    }
    panic!("seed {seed}: {} of {bytes} bytes arrived", received.len());
}

#[test]
fn a_transfer_arrives_whatever_happens_when() {
    for seed in 0..12 {
        let memory = Memory::fresh();
        let options = Options {
            receive_queue_size: 4 << (seed % 5),
            transmit_queue_size: 2 << (seed % 6),
            receive_buffer_len: [2048, 300, 128][seed as usize % 3],
            declined: match seed % 2 {
                0 => 0,
                _ => Features::MRG_RXBUF.bits(),
            },
            ..Options::default()
        };
        let loss = if seed % 4 == 0 { 3 } else { 0 };
        let machines = transfer(seed, 200_000, loss, options);
        for machine in &machines {
            assert_eq!(machine.net.failure(), None);
            assert_eq!(
                machine.net.receive_stats().dropped(),
                0,
                "seed {seed} {:?}",
                machine.net.receive_stats()
            );
        }
        drop(machines);
        memory.assert_clean();
    }
}
