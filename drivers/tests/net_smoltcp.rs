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

/// What machines talk by.
#[derive(Clone, Copy)]
struct Wire {
    offloads: bool,
    ipv6: bool,
    /// Of a hundred frames.
    loss: usize,
}

impl Wire {
    fn nic(self, mac: [u8; 6]) -> FakeNic {
        let mut nic = match self.offloads {
            true => FakeNic::offloading(),
            false => FakeNic::new(),
        };
        nic.mac = mac;
        // Neighbours are looked for by multicast.
        nic.modes[1] = true;
        nic
    }

    fn address(self, number: u8) -> IpAddress {
        match self.ipv6 {
            true => IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, number.into()),
            false => IpAddress::v4(10, 0, 0, number),
        }
    }
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
    fn new(number: u8, options: Options, wire: Wire) -> Self {
        let mac = [2, 0, 0, 0, 0, number];
        let card = FakeDevice::new(wire.nic(mac));
        card.set_pace(Pace::Manual);
        let mut net: Driver = Net::new(card.transport(), options).expect("an honest device");
        // A card that was reset has no modes.
        card.with(|nic| nic.modes[1] = true);
        let mut interface = Interface::new(Config::new(net.mac().into()), &mut net, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(wire.address(number), 24);
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
                    _ if self.net.negotiated().has(Features::GUEST_TSO4.bits()) => usize::MAX,
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
    for packet in from.with(FakeNic::take_packets) {
        if random.below(100) >= loss {
            to.with(|nic| nic.forward(packet));
        }
    }
}

fn transfer(seed: u64, bytes: usize, wire: Wire, options: Options) -> [Machine; 2] {
    let loss = wire.loss;
    let mut random = Random::new(seed);
    let [mut client, mut server] = [1, 2].map(|number| Machine::new(number, options, wire));
    server.socket().listen(7).expect("a port");
    let remote = (wire.address(2), 7);
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
        let wire = Wire {
            offloads: false,
            ipv6: false,
            loss: if seed % 4 == 0 { 3 } else { 0 },
        };
        let machines = transfer(seed, 200_000, wire, options);
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

/// Whatever the card leaves to the driver, and the driver to the card.
#[test]
#[cfg(feature = "segmentation-offload-ipv6")]
fn a_transfer_with_offloads_arrives_in_few_frames() {
    let off = [
        Features::empty(),
        Features::MRG_RXBUF,
        Features::GUEST_TSO4 | Features::GUEST_TSO6,
        Features::HOST_TSO4 | Features::HOST_TSO6,
        Features::GUEST_CSUM,
        Features::CSUM,
    ];
    for seed in 0..12 {
        let declined = off[seed as usize % off.len()];
        let memory = Memory::fresh();
        let options = Options {
            declined: declined.bits(),
            large_receive_buffers: 8,
            transmit_queue_size: 16,
            ..Options::default()
        };
        let wire = Wire {
            offloads: true,
            ipv6: seed >= 6,
            loss: 0,
        };
        const BYTES: usize = 1 << 20;
        let machines = transfer(seed, BYTES, wire, options);
        let [client, server] = &machines;
        let (sent, received) = (client.net.transmit_stats(), server.net.receive_stats());
        for machine in &machines {
            assert_eq!(machine.net.failure(), None);
            assert_eq!(machine.net.receive_stats().dropped(), 0, "seed {seed}");
        }
        let cuts = !declined.intersects(Features::HOST_TSO4 | Features::CSUM);
        let merges = !declined.intersects(Features::GUEST_TSO4 | Features::GUEST_CSUM);
        assert_eq!((sent.large > 0, received.large > 0), (cuts, cuts && merges));
        assert_eq!(sent.partial > 0, !declined.contains(Features::CSUM));
        assert_eq!(
            received.trusted > 0,
            !declined.contains(Features::GUEST_CSUM) && sent.partial > 0
        );
        if cuts {
            // Segments of 1440 bytes would be more than 700.
            assert!(sent.packets < 400, "seed {seed}: {sent:?}");
        }
        drop(machines);
        memory.assert_clean();
    }
}

/// smoltcp believes the driver that checksums are right where it was told so.
#[test]
fn a_wrong_checksum_reaches_no_socket() {
    use smoltcp::socket::udp;
    for declined in [Features::empty(), Features::GUEST_CSUM] {
        let memory = Memory::fresh();
        let options = Options {
            declined: declined.bits(),
            ..Options::default()
        };
        let wire = Wire {
            offloads: true,
            ipv6: false,
            loss: 0,
        };
        let mut machine = Machine::new(2, options, wire);
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(7).expect("a port");
        let handle = machine.sockets.add(socket);
        // 10.0.0.9 to 10.0.0.2, "abc"; the checksum was worked out by hand.
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 9, 8, 0];
        frame.extend([0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x26, 0xc4]);
        frame.extend([10, 0, 0, 9, 10, 0, 0, 2, 0x12, 0x34, 0, 7, 0, 11]);
        let sum: u32 = 2 * 0x0a00 + 9 + 2 + 17 + 11 + 0x1234 + 7 + 11 + 0x6162 + 0x6300;
        frame.extend((!(sum as u16)).to_be_bytes());
        frame.extend(*b"abc");
        let mut bent = frame.clone();
        bent[44] = b'd';
        for (bytes, arrives) in [(&bent, false), (&frame, true), (&bent, false)] {
            machine.card.with(|nic| nic.inject(bytes.clone()));
            machine.card.pump();
            machine.poll(Instant::ZERO);
            let socket = machine.sockets.get_mut::<udp::Socket<'_>>(handle);
            let came = socket.recv().ok().map(|(bytes, _)| bytes.to_vec());
            assert_eq!(came, arrives.then(|| b"abc".to_vec()), "{declined:?}");
        }
        let by_driver = if declined.is_empty() { 2 } else { 0 };
        let stats = machine.net.receive_stats();
        assert_eq!(
            (stats.bad_checksum, stats.dropped()),
            (by_driver, by_driver)
        );
        machine.net.flush();
        machine.card.pump();
        let (buffers, _) = machine.net.receive_buffers();
        assert_eq!(machine.card.with(|nic| nic.posted()), buffers.into());
        drop(machine);
        memory.assert_clean();
    }
}
