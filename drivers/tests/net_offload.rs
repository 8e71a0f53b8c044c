//! What the network driver leaves to a card, and a card to the driver: checksums and segmentation, honest and not.

use std::num::NonZeroU16;

use vringlet::fake::{FakeDevice, FakeNic, FakeTransport, Fault, Memory, Pace, Packet, Random};
use vringlet::net::{
    Checksum, Command, Features, Net, Options, RxFrame, SegmentKind, Segmentation,
};
use vringlet::transport::InterruptCauses;
use vringlet::{Cause, Transport};

type Card = FakeDevice<FakeNic>;
type Driver = Net<FakeTransport<FakeNic>>;

/// The longest frame that can stand for several.
const LONGEST: usize = 14 + 40 + 65535;

fn start(nic: FakeNic, options: Options) -> (Memory, Card, Driver) {
    let memory = Memory::fresh();
    let card = FakeDevice::new(nic);
    let net = Net::new(card.transport(), options).expect("an honest device");
    (memory, card, net)
}

fn declining(features: Features) -> Options {
    Options {
        declined: features.bits(),
        ..Options::default()
    }
}

fn finish(memory: &Memory, net: Driver) {
    drop(net);
    memory.assert_clean();
}

fn size(size: u16) -> NonZeroU16 {
    NonZeroU16::new(size).expect("not 0")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    ipv6: bool,
    tcp: bool,
}

const KINDS: [Kind; 4] = [
    Kind {
        ipv6: false,
        tcp: false,
    },
    Kind {
        ipv6: false,
        tcp: true,
    },
    Kind {
        ipv6: true,
        tcp: false,
    },
    Kind {
        ipv6: true,
        tcp: true,
    },
];

impl Kind {
    /// Where the segment begins.
    fn start(self) -> usize {
        if self.ipv6 { 54 } else { 34 }
    }

    fn headers(self) -> usize {
        self.start() + if self.tcp { 20 } else { 8 }
    }

    fn checksum_offset(self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// A frame to the card's own address, with `payload` bytes and nonsense for a checksum.
    fn frame(self, payload: usize) -> Vec<u8> {
        let mut frame = FakeNic::new().mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        let len = self.headers() - self.start() + payload;
        let protocol = if self.tcp { 6 } else { 17 };
        if self.ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend((0..32).map(|byte| byte * 7));
        } else {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((len as u16 + 20).to_be_bytes());
            frame.extend([0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        frame.extend([0x12, 0x34, 0, 7]);
        if self.tcp {
            // FIN, PSH and ACK.
            frame.extend([0xff, 0xff, 0xf0, 0, 0, 0, 0, 1, 0x50, 0x19, 1, 0]);
            frame.extend([0xab, 0xcd, 0, 0]);
        } else {
            frame.extend((len as u16).to_be_bytes());
            frame.extend([0xab, 0xcd]);
        }
        let mut bytes = vec![0; payload];
        Random::new(payload as u64).fill(&mut bytes);
        frame.extend(bytes);
        frame
    }

    /// As a card has it whose checksum is unfinished: with the sum of the pseudo-header, which is what there would be if the
    /// segment were empty.
    fn partial(self, payload: usize) -> Packet {
        let mut frame = self.frame(payload);
        let field = self.start() + self.checksum_offset();
        let addresses = if self.ipv6 { 22..54 } else { 26..34 };
        let len = frame.len() - self.start();
        let mut sum = len as u32 + if self.tcp { 6 } else { 17 };
        for pair in frame[addresses].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        frame[field..field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        Packet {
            flags: 1,
            csum_start: self.start() as u16,
            csum_offset: self.checksum_offset() as u16,
            ..Packet::plain(frame)
        }
    }

    /// As a card has it that stands for several of `size` bytes.
    fn large(self, payload: usize, size: u16) -> Packet {
        Packet {
            gso_type: match (self.tcp, self.ipv6) {
                (true, false) => 1,
                (true, true) => 4,
                (false, _) => 5,
            },
            gso_size: size,
            hdr_len: self.headers() as u16,
            ..self.partial(payload)
        }
    }
}

/// The frame as it is on a wire.
fn finished(packet: &Packet) -> Vec<u8> {
    let memory = Memory::fresh();
    let card = FakeDevice::new(FakeNic::offloading());
    let mut net: Driver = Net::new(card.transport(), Options::default()).expect("a device");
    let mut frame = net.transmit(packet.frame.len()).expect("room");
    frame.copy_from_slice(&packet.frame);
    assert!(frame.offload_checksum());
    frame.send().expect("room");
    net.flush();
    let [frame] = card.with(FakeNic::take_sent).try_into().expect("one");
    finish(&memory, net);
    frame
}

fn inject(card: &Card, packet: Packet) {
    card.with(|nic| nic.inject_packet(packet));
    card.pump();
}

fn receive<T: Transport, R>(
    net: &mut Net<T>,
    look: impl FnOnce(&mut RxFrame<'_, T>) -> R,
) -> Option<R> {
    let mut frame = net.receive().expect("a queue that is not broken")?;
    Some(look(&mut frame))
}

/// All buffers are with the card.
fn assert_all_posted(card: &Card, net: &mut Driver) {
    net.flush();
    card.pump();
    let posted = card.with(|nic| nic.posted());
    assert_eq!(posted, net.receive_buffers().0.into());
}

#[test]
fn checksums_are_left_to_the_device() {
    for kind in KINDS {
        for payload in [0, 1, 2, 999, 1400] {
            let (memory, card, mut net) = start(FakeNic::offloading(), Options::default());
            let bytes = kind.frame(payload);
            let mut frame = net.transmit(bytes.len()).expect("room");
            frame.copy_from_slice(&bytes);
            assert!(frame.offload_checksum());
            frame.send().expect("room");
            net.flush();
            // Whether the sum is right the card has seen.
            let [packet] = card.with(FakeNic::take_packets).try_into().expect("one");
            assert_eq!(packet, kind.partial(payload), "{kind:?} {payload}");
            // The next frame in the same buffer is one without.
            let mut frame = net.transmit(60).expect("room");
            frame.fill(0);
            frame.send().expect("room");
            net.flush();
            let [packet] = card.with(FakeNic::take_packets).try_into().expect("one");
            assert_eq!(packet, Packet::plain(vec![0; 60]));
            let stats = net.transmit_stats();
            assert_eq!((stats.packets, stats.partial, stats.large), (2, 1, 0));
            finish(&memory, net);
        }
    }
}

#[test]
fn what_the_device_cannot_sum_up_is_sent_as_it_is() {
    let tcp = KINDS[1].frame(100);
    let bent = |place: usize, value: u8| {
        let mut frame = tcp.clone();
        frame[place] = value;
        frame
    };
    // Another protocol, a fragment, another EtherType, an impossible length.
    let others = [bent(23, 1), bent(20, 0x20), bent(12, 0x88), bent(16, 0xff)];
    let frames = others.iter().map(|frame| (frame, Features::empty()));
    for (bytes, declined) in frames.chain([(&tcp, Features::CSUM)]) {
        let (memory, card, mut net) = start(FakeNic::offloading(), declining(declined));
        let mut frame = net.transmit(bytes.len()).expect("room");
        frame.copy_from_slice(bytes);
        assert!(!frame.offload_checksum());
        frame.send().expect("room");
        net.flush();
        let packets = card.with(FakeNic::take_packets);
        assert_eq!(packets, [Packet::plain(bytes.clone())]);
        finish(&memory, net);
    }
}

#[test]
fn long_frames_are_cut_by_the_device() {
    for kind in KINDS {
        let room = 1514 - kind.headers();
        let most = 65535 - (kind.headers() - if kind.ipv6 { 54 } else { 14 });
        for (payload, each) in [
            (room + 1, room),
            (5000, 1000),
            (5001, 1000),
            (most, room),
            (200, 7),
        ] {
            let (memory, card, mut net) = start(FakeNic::offloading(), Options::default());
            let bytes = kind.frame(payload);
            let mut frame = net.transmit(bytes.len()).expect("room");
            frame.copy_from_slice(&bytes);
            frame.segment(size(each as u16)).expect("something to cut");
            frame.send().expect("room");
            net.flush();
            let sent = card.with(|nic| nic.sent.clone());
            assert_eq!(sent.len(), payload.div_ceil(each));
            let cut: Vec<u8> = sent
                .iter()
                .flat_map(|frame| frame[kind.headers()..].to_vec())
                .collect();
            assert!(cut == bytes[kind.headers()..], "{kind:?} {payload} {each}");
            let packets = card.with(FakeNic::take_packets);
            assert_eq!(packets, [kind.large(payload, each as u16)]);
            let stats = net.transmit_stats();
            let counted = (stats.packets, stats.partial, stats.large);
            assert_eq!((counted, stats.dropped()), ((1, 1, 1), 0));
            finish(&memory, net);
        }
    }
}

#[test]
fn a_frame_that_need_not_be_cut_stays_whole() {
    let (memory, card, mut net) = start(FakeNic::offloading(), Options::default());
    let bytes = KINDS[1].frame(1000);
    let mut frame = net.transmit(bytes.len()).expect("room");
    frame.copy_from_slice(&bytes);
    frame.segment(size(1000)).expect("a segment");
    frame.send().expect("room");
    net.flush();
    let packets = card.with(FakeNic::take_packets);
    assert_eq!(packets, [KINDS[1].partial(1000)]);
    finish(&memory, net);
}

#[test]
fn what_cannot_be_cut_is_refused_and_counted() {
    let mut beyond = KINDS[1].frame(5000);
    // A header of 60 bytes in a segment of 20.
    beyond.truncate(54);
    (beyond[16], beyond[17], beyond[46]) = (0, 40, 0xf0);
    for (bytes, each, declined, unsupported) in [
        (KINDS[1].frame(5000), 1000, Features::HOST_TSO4, true),
        (KINDS[3].frame(5000), 1000, Features::HOST_TSO6, true),
        (KINDS[0].frame(5000), 1000, Features::HOST_USO, true),
        (KINDS[1].frame(5000), 1461, Features::empty(), false),
        (KINDS[3].frame(5000), 1441, Features::empty(), false),
        (beyond, 10, Features::empty(), false),
        (vec![0; 5000], 1000, Features::empty(), false),
    ] {
        let (memory, card, mut net) = start(FakeNic::offloading(), declining(declined));
        let mut frame = net.transmit(bytes.len()).expect("room");
        frame.copy_from_slice(&bytes);
        let refused = frame.segment(size(each)).expect_err("impossible").cause;
        match unsupported {
            true => assert_eq!(refused, Cause::Unsupported),
            false => assert!(matches!(refused, Cause::InvalidParameter(_))),
        }
        assert_eq!(*frame, *bytes, "nothing is different");
        let sent = frame.send();
        let long = bytes.len() > 1514;
        assert_eq!(sent.is_err(), long);
        let stats = net.transmit_stats();
        assert_eq!(
            (stats.too_long, stats.packets),
            (long.into(), (!long).into())
        );
        net.flush();
        assert!(
            card.with(FakeNic::take_packets)
                .iter()
                .all(|packet| packet.flags == 0)
        );
        // Its buffer is free again.
        for _ in 0..20 {
            assert!(net.transmit(5000).is_ok());
        }
        finish(&memory, net);
    }
}

#[test]
fn long_frames_have_buffers_of_their_own() {
    let options = Options {
        transmit_queue_size: 16,
        large_transmit_buffers: 3,
        ..Options::default()
    };
    let (memory, card, mut net) = start(FakeNic::offloading(), options);
    card.set_pace(Pace::Manual);
    assert!(matches!(
        net.transmit(LONGEST + 1).map(drop),
        Err(error) if matches!(error.cause, Cause::InvalidParameter(_))
    ));
    let bytes = KINDS[3].frame(LONGEST - 74);
    let send_large = |net: &mut Driver| -> Result<(), Cause> {
        let mut frame = net.transmit(bytes.len()).map_err(|error| error.cause)?;
        frame.copy_from_slice(&bytes);
        frame.segment(size(1440)).map_err(|error| error.cause)?;
        frame.send().map_err(|error| error.cause)
    };
    for _ in 0..3 {
        assert!(net.has_room());
        send_large(&mut net).expect("three of them");
    }
    // No room for any length, but for short frames there is.
    assert!(!net.has_room());
    assert_eq!(send_large(&mut net), Err(Cause::QueueFull));
    for _ in 0..13 {
        net.transmit(1514).expect("room").send().expect("room");
    }
    assert_eq!(
        net.transmit(60).map(drop).map_err(|error| error.cause),
        Err(Cause::QueueFull)
    );
    assert_eq!(net.transmit_stats().full, 2);
    card.pump();
    assert!(net.has_room());
    for _ in 0..3 {
        send_large(&mut net).expect("they are back");
    }
    finish(&memory, net);
    // On a queue of one descriptor a short frame must fit.
    let options = Options {
        transmit_queue_size: 1,
        ..Options::default()
    };
    let (memory, _card, mut net) = start(FakeNic::offloading(), options);
    assert!(net.has_room());
    assert!(net.transmit(1515).is_err());
    finish(&memory, net);
}

#[test]
fn a_frame_says_what_is_known_of_its_checksum() {
    for kind in KINDS {
        for declined in [Features::empty(), Features::GUEST_CSUM] {
            let (memory, card, mut net) = start(FakeNic::offloading(), declining(declined));
            let agreed = declined.is_empty();
            let right = finished(&kind.partial(700));
            let mut wrong = right.clone();
            wrong[kind.headers()] ^= 4;
            for (flags, bytes, valid) in
                [(0, &right, true), (0, &wrong, false), (2, &wrong, agreed)]
            {
                let packet = Packet {
                    flags,
                    ..Packet::plain(bytes.clone())
                };
                inject(&card, packet);
                let seen = receive(&mut net, |frame| {
                    assert_eq!(**frame, **bytes);
                    (frame.checksum(), frame.has_valid_checksum())
                });
                let known = match flags == 2 && agreed {
                    true => Checksum::Valid,
                    false => Checksum::Unknown,
                };
                assert_eq!(seen, Some((known, valid)), "{kind:?} {flags}");
            }
            inject(&card, kind.partial(700));
            let seen = receive(&mut net, |frame| {
                let before = (frame.checksum(), frame.has_valid_checksum());
                frame.finish_checksum();
                assert_eq!(frame.checksum(), Checksum::Valid);
                assert_eq!(**frame, *right);
                before
            });
            let partial = Checksum::Partial {
                start: kind.start(),
                offset: kind.checksum_offset(),
            };
            assert_eq!(seen, agreed.then_some((partial, true)));
            let stats = net.receive_stats();
            let counted = if agreed { (4, 2, 0) } else { (3, 0, 1) };
            assert_eq!((stats.packets, stats.trusted, stats.bad_header), counted);
            assert_all_posted(&card, &mut net);
            finish(&memory, net);
        }
    }
}

#[test]
fn frames_that_stand_for_several_come_whole() {
    // In several buffers, in one, and where there may only be one.
    for (len, declined) in [
        (1000, Features::empty()),
        (16384, Features::empty()),
        (65601, Features::empty()),
        (16384, Features::MRG_RXBUF),
    ] {
        let options = Options {
            large_receive_buffer_len: len,
            large_receive_buffers: 80,
            ..declining(declined)
        };
        let (memory, card, mut net) = start(FakeNic::offloading(), options);
        for (kind, name) in [(KINDS[1], SegmentKind::Tcp4), (KINDS[3], SegmentKind::Tcp6)] {
            for payload in [101, 1461, 30_000, 65_535 - 40, LONGEST - 74] {
                if !kind.ipv6 && payload > 65_495 {
                    continue;
                }
                let packet = kind.large(payload, 100);
                inject(&card, packet.clone());
                let seen = receive(&mut net, |frame| {
                    assert!(**frame == *packet.frame, "{kind:?} {payload} in {len}");
                    frame.segmentation()
                });
                let expected = Segmentation {
                    kind: name,
                    size: size(100),
                };
                assert_eq!(seen, Some(Some(expected)));
            }
        }
        let stats = net.receive_stats();
        assert_eq!((stats.packets, stats.large, stats.dropped()), (9, 9, 0));
        assert_eq!(stats.merged > 0, len < 65601 && declined.is_empty());
        assert_all_posted(&card, &mut net);
        // One that stands for itself may still not be longer than the MTU allows.
        inject(&card, KINDS[1].partial(5000));
        assert_eq!(receive(&mut net, |frame| frame.len()), None);
        assert_eq!(net.receive_stats().too_long, 1);
        finish(&memory, net);
    }
}

#[test]
fn headers_that_lie_cost_their_frame_only() {
    let good = KINDS[1].large(5000, 1000);
    let six = KINDS[3].large(5000, 1000);
    let bent = |change: fn(&mut Packet)| {
        let mut packet = good.clone();
        change(&mut packet);
        packet
    };
    let cases = [
        // Types that nobody knows, or that were not agreed on.
        (bent(|packet| packet.gso_type = 2), Features::empty()),
        (bent(|packet| packet.gso_type = 3), Features::empty()),
        (bent(|packet| packet.gso_type = 5), Features::empty()),
        (bent(|packet| packet.gso_type = 0x81), Features::empty()),
        (bent(|packet| packet.gso_type = 0xff), Features::empty()),
        (good.clone(), Features::GUEST_TSO4),
        (six.clone(), Features::GUEST_TSO6),
        (good.clone(), Features::GUEST_CSUM),
        // Sizes that cut nothing.
        (bent(|packet| packet.gso_size = 0), Features::empty()),
        (bent(|packet| packet.gso_size = 5054), Features::empty()),
        (bent(|packet| packet.gso_size = 0xffff), Features::empty()),
        // Segments come with an unfinished checksum.
        (bent(|packet| packet.flags = 0), Features::empty()),
        (bent(|packet| packet.flags = 2), Features::empty()),
        // A checksum in the Ethernet header, or beyond the frame.
        (bent(|packet| packet.csum_start = 0), Features::empty()),
        (bent(|packet| packet.csum_start = 13), Features::empty()),
        (
            bent(|packet| packet.csum_start = 5053 - 16),
            Features::empty(),
        ),
        (bent(|packet| packet.csum_start = 0xffff), Features::empty()),
        (
            bent(|packet| packet.csum_offset = 5053 - 34),
            Features::empty(),
        ),
        (
            bent(|packet| packet.csum_offset = 0xffff),
            Features::empty(),
        ),
        (
            bent(|packet| (packet.csum_start, packet.csum_offset) = (0xffff, 0xffff)),
            Features::empty(),
        ),
    ];
    for (packet, declined) in cases {
        let (memory, card, mut net) = start(FakeNic::offloading(), declining(declined));
        inject(&card, packet.clone());
        assert_eq!(receive(&mut net, |frame| frame.len()), None, "{packet:?}");
        let stats = net.receive_stats();
        // Without GUEST_CSUM no frame is that long, whatever its header says.
        let long = u64::from(declined.contains(Features::GUEST_CSUM));
        assert_eq!((stats.bad_header, stats.too_long), (1 - long, long));
        assert_all_posted(&card, &mut net);
        // The next one is none the worse.
        inject(&card, KINDS[0].partial(100));
        let trusted = receive(&mut net, |frame| frame.has_valid_checksum());
        assert_eq!(
            trusted,
            (!declined.contains(Features::GUEST_CSUM)).then_some(true)
        );
        finish(&memory, net);
    }
    // At the very end of the frame there is room for a checksum; and `hdr_len` is not believed at all.
    let (memory, card, mut net) = start(FakeNic::offloading(), Options::default());
    for change in [
        |packet: &mut Packet| packet.csum_start = 5054 - 18,
        |packet: &mut Packet| packet.csum_offset = 5054 - 36,
        |packet: &mut Packet| packet.hdr_len = 0,
        |packet: &mut Packet| packet.hdr_len = 0xffff,
        |packet: &mut Packet| packet.flags = 0xfd,
    ] {
        inject(&card, bent(change));
        let finished = receive(&mut net, |frame| frame.finish_checksum());
        assert_eq!(finished, Some(()));
    }
    // More buffers than there are, fewer than it took, and one that was not filled.
    for lie in [0, 2, 65, 0xffff] {
        card.with(|nic| nic.lie_about_buffers = Some(lie));
        inject(&card, good.clone());
        assert_eq!(receive(&mut net, |frame| frame.len()), None, "{lie}");
    }
    card.inject(Fault::UsedLength(100));
    inject(&card, KINDS[1].large(40_000, 1000));
    assert_eq!(receive(&mut net, |frame| frame.len()), None);
    assert_eq!(net.receive_stats().bad_merge, 5);
    assert_all_posted(&card, &mut net);
    finish(&memory, net);
}

#[test]
fn features_are_not_accepted_without_what_they_need() {
    let large_receive = Features::GUEST_TSO4 | Features::GUEST_TSO6;
    let large_transmit = Features::HOST_TSO4 | Features::HOST_TSO6 | Features::HOST_USO;
    let none = Options {
        large_receive_buffers: 0,
        large_transmit_buffers: 0,
        ..Options::default()
    };
    for (options, missing) in [
        (declining(Features::CSUM), Features::CSUM | large_transmit),
        (
            declining(Features::GUEST_CSUM),
            Features::GUEST_CSUM | large_receive,
        ),
        (
            declining(Features::CTRL_VQ),
            Features::CTRL_VQ | Features::CTRL_GUEST_OFFLOADS,
        ),
        (none, large_receive | large_transmit),
    ] {
        let (memory, _card, net) = start(FakeNic::offloading(), options);
        let negotiated = net.negotiated();
        for feature in [
            large_receive,
            large_transmit,
            Features::CSUM | Features::GUEST_CSUM,
        ]
        .into_iter()
        .flat_map(|features| features.iter())
        .chain([Features::CTRL_GUEST_OFFLOADS])
        {
            let has = negotiated.has(feature.bits());
            assert_eq!(has, !missing.contains(feature), "{feature:?}");
        }
        finish(&memory, net);
    }
}

#[test]
fn what_a_card_leaves_to_the_driver_can_be_changed() {
    let (memory, card, mut net) = start(FakeNic::offloading(), Options::default());
    let all = Features::GUEST_CSUM | Features::GUEST_TSO4 | Features::GUEST_TSO6;
    assert_eq!(net.guest_offloads(), all);
    let obeyed = |net: &mut Driver, offloads| -> Result<(), Cause> {
        let command = Command::GuestOffloads(offloads);
        let reply = net.command(command).map_err(|error| error.cause)?;
        net.process(InterruptCauses::QUEUE).expect("no trouble");
        reply.get().expect("an answer").map_err(|error| error.cause)
    };
    for offloads in [
        Features::GUEST_CSUM | Features::GUEST_TSO6,
        Features::empty(),
        Features::GUEST_CSUM,
    ] {
        assert_eq!(obeyed(&mut net, offloads), Ok(()));
        assert_eq!(net.guest_offloads(), offloads);
        assert_eq!(card.with(|nic| nic.guest_offloads), offloads.bits());
    }
    // Not what they are for, or without what they need.
    for offloads in [Features::MAC, Features::GUEST_TSO4, Features::CSUM | all] {
        let refused = obeyed(&mut net, offloads);
        assert!(matches!(refused, Err(Cause::InvalidParameter(_))));
    }
    card.with(|nic| nic.refuse = Some((5, 0)));
    assert_eq!(obeyed(&mut net, all), Err(Cause::CommandRefused));
    assert_eq!(net.guest_offloads(), Features::GUEST_CSUM);
    // A card that starts anew leaves all of it to the driver again.
    net.restart().expect("an honest device");
    assert_eq!(net.guest_offloads(), all);
    finish(&memory, net);

    for declined in [Features::CTRL_GUEST_OFFLOADS, Features::GUEST_TSO4] {
        let (memory, _card, mut net) = start(FakeNic::offloading(), declining(declined));
        assert_eq!(obeyed(&mut net, all), Err(Cause::Unsupported));
        assert!(!net.guest_offloads().contains(declined));
        finish(&memory, net);
    }
}

#[test]
fn noise_does_no_harm() {
    for seed in 0..100 {
        let mut nic = FakeNic::offloading();
        nic.loopback = true;
        let options = Options {
            large_receive_buffer_len: [1100, 16384, 65601][seed as usize % 3],
            ..Options::default()
        };
        let (memory, card, mut net) = start(nic, options);
        let mut random = Random::new(seed);
        card.inject(Fault::Noise(seed));
        for _ in 0..50 {
            let kind = KINDS[random.below(4)];
            match random.below(4) {
                0 => {
                    let mut packet = kind.large(random.below(9000), random.below(2000) as u16);
                    packet.flags = random.below(4) as u8;
                    packet.csum_offset = random.below(70_000) as u16;
                    card.with(|nic| nic.inject_packet(packet));
                }
                1 => card.pump(),
                2 => {
                    let bytes = kind.frame(random.below(9000));
                    if let Ok(mut frame) = net.transmit(bytes.len()) {
                        frame.copy_from_slice(&bytes);
                        let _ = frame.segment(size(1 + random.below(1400) as u16));
                        let _ = frame.send();
                    }
                }
                _ => {
                    for _ in 0..100 {
                        let Ok(Some(mut frame)) = net.receive() else {
                            break;
                        };
                        frame.has_valid_checksum();
                        frame.finish_checksum();
                    }
                    net.flush();
                }
            }
        }
        card.heal();
        card.with(|nic| nic.incoming.clear());
        net.restart().expect("an honest device again");
        inject(&card, KINDS[1].large(5000, 1000));
        assert_eq!(receive(&mut net, |frame| frame.len()), Some(5054));
        finish(&memory, net);
    }
}
