//! The network driver against a card in plain memory, honest and not.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use vringlet::fake::{
    DeviceModel, FakeDevice, FakeDma, FakeMmio, FakeNic, FakePci, FakeTransport, Fault, Memory,
    Pace, Packet, PciLayout, Queues, Random,
};
use vringlet::features::RingFeatures;
use vringlet::net::{Command, Event, Features, Link, MacAddress, Net, Options, ReceiveMode};
use vringlet::transport::InterruptCauses;
use vringlet::{Cause, DeviceId, MmioTransport, PciTransport};

type Card = FakeDevice<FakeNic>;
type Driver = Net<FakeTransport<FakeNic>>;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;

fn start(nic: FakeNic, options: Options) -> (Memory, Card, Driver) {
    let memory = Memory::fresh();
    let card = FakeDevice::new(nic);
    let net = Net::new(card.transport(), options).expect("an honest device");
    (memory, card, net)
}

/// A card that differs from others.
fn card(change: impl FnOnce(&mut FakeNic)) -> FakeNic {
    let mut nic = FakeNic::new();
    change(&mut nic);
    nic
}

/// A frame to the card's own address, of bytes that depend on `seed`.
fn frame(len: usize, seed: u64) -> Vec<u8> {
    let mut frame = vec![0; len];
    Random::new(seed).fill(&mut frame);
    for (to, from) in frame.iter_mut().zip(FakeNic::new().mac) {
        *to = from;
    }
    // Never a VLAN tag by chance.
    for (to, from) in frame.iter_mut().skip(12).zip([0x88, 0xb5]) {
        *to = from;
    }
    frame
}

fn inject(card: &Card, frame: &[u8]) {
    card.with(|nic| nic.inject(frame));
    card.pump();
}

fn inject_packet(card: &Card, packet: Packet) {
    card.with(|nic| nic.inject_packet(packet));
    card.pump();
}

/// All frames that the driver has.
fn receive_all(net: &mut Driver) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(frame) = net.receive().expect("a queue that is not broken") {
        frames.push(frame.to_vec());
    }
    net.flush();
    frames
}

fn send(net: &mut Driver, bytes: &[u8]) -> Result<(), Cause> {
    let mut frame = net.transmit(bytes.len()).map_err(|error| error.cause)?;
    frame.copy_from_slice(bytes);
    frame.send().map_err(|error| error.cause)
}

fn finish(memory: &Memory, net: Driver) {
    drop(net);
    memory.assert_clean();
}

fn counter(net: &Driver, name: &str) -> u64 {
    let counters = net.report().counters;
    counters
        .iter()
        .find(|(other, _)| *other == name)
        .unwrap_or_else(|| panic!("a counter {name}"))
        .1
}

#[test]
fn frames_of_every_length_come_and_go() {
    for mergeable in [false, true] {
        let declined = if mergeable {
            Features::empty()
        } else {
            Features::MRG_RXBUF
        };
        let options = Options {
            declined: declined.bits(),
            ..Options::default()
        };
        let (memory, card, mut net) = start(FakeNic::new(), options);
        for len in 14..=1514 {
            let bytes = frame(len, len as u64);
            inject(&card, &bytes);
            assert_eq!(receive_all(&mut net), std::slice::from_ref(&bytes));
            send(&mut net, &bytes).expect("room");
            net.flush();
            assert_eq!(card.with(FakeNic::take_sent), [bytes]);
        }
        let (receive, transmit) = (net.receive_stats(), net.transmit_stats());
        assert_eq!((receive.packets, transmit.packets), (1501, 1501));
        let bytes = (14..=1514).sum::<u64>();
        assert_eq!((receive.bytes, transmit.bytes), (bytes, bytes));
        assert_eq!(
            (receive.dropped(), transmit.dropped(), receive.merged),
            (0, 0, 0)
        );
        finish(&memory, net);
    }
}

#[test]
fn what_was_sent_has_left_before_the_driver_is_dropped() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    // A card that takes its time, as QEMU's with tx=timer does.
    card.set_pace(Pace::Manual);
    assert_eq!(net.unsent(), 0);
    net.flush_and_wait(|| panic!("there is nothing to wait for"))
        .expect("nothing");
    let frames = [frame(60, 1), frame(1514, 2), frame(100, 3)];
    for frame in &frames {
        send(&mut net, frame).expect("room");
    }
    assert_eq!(net.unsent(), 3);
    // Asking told the card of them.
    card.complete(1, 1);
    assert_eq!(net.unsent(), 2);
    let mut turns = 0;
    let mut wait = || {
        turns += 1;
        turns < 5
    };
    let error = net.flush_and_wait(&mut wait).expect_err("the card sleeps");
    assert_eq!((error.queue, error.cause), (Some(1), Cause::Timeout));
    assert_eq!((turns, net.unsent()), (5, 2));
    // One that nobody flushed.
    send(&mut net, &frame(60, 4)).expect("room");
    let mut turns = 0;
    let wait = || {
        turns += 1;
        if turns == 3 {
            card.pump();
        }
        true
    };
    net.flush_and_wait(wait).expect("an honest card");
    assert_eq!((turns, net.unsent()), (3, 0));
    let sent = card.with(FakeNic::take_sent);
    assert_eq!(sent[..3], frames);
    assert_eq!(sent[3..], [frame(60, 4)]);
    finish(&memory, net);
}

#[test]
fn nobody_waits_for_a_card_that_broke_the_rules() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.set_pace(Pace::Manual);
    for seed in 0..2 {
        send(&mut net, &frame(60, seed)).expect("room");
    }
    net.flush();
    card.inject(Fault::UsedId(99));
    card.complete(1, 1);
    let error = net
        .flush_and_wait(|| panic!("for nothing"))
        .expect_err("broken");
    let cause = Cause::BadUsedId { id: 99 };
    assert_eq!((error.queue, error.cause), (Some(1), cause));
    assert_eq!(net.unsent(), 2);
    finish(&memory, net);
}

#[test]
fn a_driver_that_sleeps_can_be_asked_whether_a_frame_came() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    assert!(net.prepare_to_sleep());
    assert!(!net.frame_came());
    inject(&card, &frame(100, 1));
    assert!(net.frame_came());
    // It was only looked at.
    assert_eq!(receive_all(&mut net), [frame(100, 1)]);
    assert!(net.prepare_to_sleep());
    assert!(!net.frame_came());
    finish(&memory, net);
}

#[test]
fn frames_that_no_link_takes_are_refused_and_counted() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    for (len, counted) in [(0, "tx_runt"), (13, "tx_runt"), (1515, "tx_too_long")] {
        let before = counter(&net, counted);
        let refused = net
            .transmit(len)
            .map(|_| ())
            .expect_err("no frame has this length");
        assert!(matches!(refused.cause, Cause::InvalidParameter(_)));
        assert_eq!(counter(&net, counted), before + 1);
    }
    // A tagged frame may be 4 bytes longer than others; one more is too much.
    for (len, counted) in [(13, "rx_runt"), (1519, "rx_too_long")] {
        inject(&card, &frame(len, 1));
        assert!(receive_all(&mut net).is_empty());
        assert_eq!(counter(&net, counted), 1);
    }
    inject(&card, &frame(1518, 1));
    assert_eq!(receive_all(&mut net).len(), 1);
    card.pump();
    assert_eq!(card.with(|nic| nic.posted()), 256);
    finish(&memory, net);
}

#[test]
fn a_frame_in_many_buffers_is_put_together() {
    for buffer_len in [12, 13, 64, 600, 1000] {
        let options = Options {
            receive_buffer_len: buffer_len,
            ..Options::default()
        };
        let (memory, card, mut net) = start(FakeNic::new(), options);
        for len in (14..=1518).step_by(7).chain([1518]) {
            let bytes = frame(len, len as u64);
            inject(&card, &bytes);
            let received = receive_all(&mut net);
            assert_eq!(received, [bytes], "{len} bytes in buffers of {buffer_len}");
            card.pump();
        }
        assert!(net.receive_stats().merged > 0);
        assert_eq!(net.receive_stats().dropped(), 0);
        let (buffers, _) = net.receive_buffers();
        assert_eq!(card.with(|nic| nic.posted()), buffers.into());
        finish(&memory, net);
    }
}

#[test]
fn buffers_hold_the_largest_frame_that_the_device_may_send() {
    let nic = || card(|nic| nic.mtu = 65535);
    let small = Options {
        receive_queue_size: 4,
        ..Options::default()
    };
    let single = Options {
        declined: Features::MRG_RXBUF.bits(),
        ..Options::default()
    };
    for options in [Options::default(), small, single] {
        let (memory, card, mut net) = start(nic(), options);
        let bytes = frame(65535 + 14, 3);
        for _ in 0..10 {
            inject(&card, &bytes);
            assert_eq!(receive_all(&mut net), std::slice::from_ref(&bytes));
        }
        let (count, len) = net.receive_buffers();
        assert!(usize::from(count) * len >= 65535 + 18 + 12);
        // No more memory than was asked for, but for a second buffer where one would not do.
        assert!(usize::from(count) * len <= 256 * 2048, "{count} of {len}");
        assert_eq!(net.mtu(), 9000, "what the options say");
        assert!(net.transmit(9015).is_err());
        send(&mut net, &bytes[..9014]).expect("room");
        finish(&memory, net);
    }
}

#[test]
fn a_lie_about_the_number_of_buffers_costs_that_frame_only() {
    for lie in [0, 2, 3, 256, 257, 0x8000, 65535] {
        let (memory, card, mut net) = start(FakeNic::new(), Options::default());
        for round in 0..20 {
            card.with(|nic| nic.lie_about_buffers = Some(lie));
            inject(&card, &frame(100, round));
            assert!(receive_all(&mut net).is_empty(), "num_buffers {lie}");
            inject(&card, &frame(200, round));
            assert_eq!(receive_all(&mut net), [frame(200, round)]);
        }
        assert_eq!(net.receive_stats().bad_merge, 20);
        card.pump();
        assert_eq!(card.with(|nic| nic.posted()), 256, "every buffer is back");
        finish(&memory, net);
    }
}

#[test]
fn too_few_buffers_for_a_merged_frame_cost_that_frame_only() {
    // The device says 1 of a frame that it spread over four: the parts look like frames of their own.
    let options = Options {
        receive_buffer_len: 64,
        ..Options::default()
    };
    let (memory, card, mut net) = start(FakeNic::new(), options);
    card.with(|nic| nic.lie_about_buffers = Some(1));
    inject(&card, &frame(220, 1));
    receive_all(&mut net);
    // And one whose first buffer it says not to have filled.
    card.inject(Fault::UsedLength(40));
    inject(&card, &frame(220, 1));
    assert!(receive_all(&mut net).is_empty());
    inject(&card, &frame(220, 2));
    assert_eq!(receive_all(&mut net), [frame(220, 2)]);
    assert!(net.receive_stats().bad_merge > 0);
    card.pump();
    assert_eq!(card.with(|nic| nic.posted()), 256);
    finish(&memory, net);
}

#[test]
fn num_buffers_means_nothing_when_frames_are_not_merged() {
    let options = Options {
        declined: Features::MRG_RXBUF.bits(),
        ..Options::default()
    };
    let (memory, card, mut net) = start(FakeNic::new(), options);
    for count in [0, 1, 7, 65535] {
        card.with(|nic| nic.lie_about_buffers = Some(count));
        inject(&card, &frame(100, 1));
        assert_eq!(receive_all(&mut net).len(), 1);
    }
    finish(&memory, net);
}

#[test]
fn impossible_lengths_are_dropped_and_the_buffer_goes_back() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    let lengths = [
        (0, "rx_bad_header"),
        (11, "rx_bad_header"),
        (12, "rx_runt"),
        (25, "rx_runt"),
        (2049, "rx_bad_length"),
        (65535, "rx_bad_length"),
        (u32::MAX, "rx_bad_length"),
        (2048, "rx_too_long"),
    ];
    for (len, counted) in lengths {
        let before = counter(&net, counted);
        card.inject(Fault::UsedLength(len));
        inject(&card, &frame(500, 1));
        assert!(receive_all(&mut net).is_empty(), "{len}");
        assert_eq!(counter(&net, counted), before + 1, "{len}");
        card.pump();
        assert_eq!(card.with(|nic| nic.posted()), 256);
    }
    // Shorter than it was, but possible.
    card.inject(Fault::UsedLength(12 + 14));
    inject(&card, &frame(500, 1));
    assert_eq!(receive_all(&mut net), [frame(500, 1)[..14].to_vec()]);
    // What the device claims to have written to a frame that it only may read is of no interest.
    card.inject(Fault::UsedLength(77));
    send(&mut net, &frame(60, 1)).expect("room");
    net.flush();
    assert_eq!(net.failure(), None);
    finish(&memory, net);
}

#[test]
fn offloads_that_were_not_agreed_on_are_dropped() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    for ((flags, gso_type), passes) in [
        ((1, 0), false),
        ((0, 1), false),
        ((3, 4), false),
        ((0, 0x80), false),
        // DATA_VALID, which taps set uninvited.
        ((2, 0), true),
    ] {
        let packet = Packet {
            flags,
            gso_type,
            gso_size: 50,
            csum_start: 20,
            ..Packet::plain(frame(100, 1))
        };
        inject_packet(&card, packet);
        let received = receive_all(&mut net).len();
        assert_eq!(received, usize::from(passes), "{flags} {gso_type}");
    }
    assert_eq!(net.receive_stats().bad_header, 4);
    finish(&memory, net);
}

#[test]
fn a_broken_queue_is_told_once_and_a_restart_mends_it() {
    for fault in [
        Fault::UsedId(65536),
        Fault::UsedId(300),
        Fault::UsedIndexAhead(1000),
        Fault::UsedIndexBack(3),
    ] {
        let (memory, card, mut net) = start(FakeNic::new(), Options::default());
        inject(&card, &frame(100, 1));
        assert_eq!(receive_all(&mut net).len(), 1);

        card.inject(fault);
        inject(&card, &frame(100, 2));
        let mut failed = None;
        for _ in 0..3 {
            match net.receive() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let failed = failed.unwrap_or_else(|| panic!("{fault:?} must be noticed"));
        assert_eq!((failed.queue, net.failure()), (Some(RECEIVE), Some(failed)));
        assert_eq!(net.take_event(), Some(Event::Failed(failed)));
        assert_eq!(net.take_event(), None);
        assert!(net.receive().is_err(), "nothing comes from a broken queue");
        net.flush();

        net.restart().expect("an honest device again");
        assert_eq!(net.failure(), None);
        card.with(|nic| nic.incoming.clear());
        inject(&card, &frame(100, 3));
        assert_eq!(receive_all(&mut net), [frame(100, 3)]);
        send(&mut net, &frame(60, 4)).expect("room");
        net.flush();
        assert_eq!(card.with(FakeNic::take_sent), [frame(60, 4)]);
        assert!(
            net.receive_stats().packets >= 2,
            "counters outlive a restart"
        );
        drop(net);
        // The device broke rules, not the driver.
        memory.assert_clean();
    }
}

#[test]
fn a_broken_transmit_queue_is_noticed_when_it_is_looked_at() {
    let options = Options {
        transmit_queue_size: 2,
        ..Options::default()
    };
    let (memory, card, mut net) = start(FakeNic::new(), options);
    card.inject(Fault::UsedId(7));
    for _ in 0..2 {
        send(&mut net, &frame(60, 1)).expect("room");
        net.flush();
    }
    assert!(!net.has_room());
    let Some(Event::Failed(failed)) = net.take_event() else {
        panic!("a failure");
    };
    assert_eq!(failed.queue, Some(TRANSMIT));
    assert!(matches!(failed.cause, Cause::BadUsedId { id: 7 }));
    net.restart().expect("an honest device again");
    send(&mut net, &frame(60, 1)).expect("room");
    finish(&memory, net);
}

#[test]
fn a_device_that_asks_for_a_reset_gets_one() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.inject(Fault::NeedsReset);
    let failed = net
        .process(InterruptCauses::CONFIG)
        .expect_err("it says so");
    assert_eq!(failed.cause, Cause::NeedsReset);
    assert_eq!(net.take_event(), Some(Event::Failed(failed)));
    net.restart().expect_err("it says so again");
    card.heal();
    net.restart().expect("an honest device again");
    inject(&card, &frame(100, 3));
    assert_eq!(receive_all(&mut net).len(), 1);
    finish(&memory, net);
}

#[test]
fn noise_does_no_harm() {
    for seed in 0..100 {
        let memory = Memory::fresh();
        let card = FakeDevice::new(card(|nic| nic.loopback = true));
        let options = Options {
            receive_buffer_len: if seed % 2 == 0 { 100 } else { 2048 },
            ..Options::default()
        };
        let mut net: Driver = Net::new(card.transport(), options).expect("an honest device");
        let mut random = Random::new(seed);
        card.inject(Fault::Noise(seed));
        for _ in 0..50 {
            match random.below(5) {
                0 => card.with(|nic| nic.inject(frame(60, seed))),
                1 => card.pump(),
                2 => {
                    let _ = send(&mut net, &frame(60, seed));
                }
                3 => {
                    let _ = net.command(Command::VlanAdd(1));
                    let _ = net.process(InterruptCauses::all());
                }
                _ => {
                    for _ in 0..300 {
                        if !matches!(net.receive(), Ok(Some(_))) {
                            break;
                        }
                    }
                    net.flush();
                }
            }
        }
        card.heal();
        card.with(|nic| nic.incoming.clear());
        net.restart().expect("an honest device again");
        inject(&card, &frame(60, seed));
        assert_eq!(receive_all(&mut net), [frame(60, seed)]);
        finish(&memory, net);
    }
}

/// The driver's answer to a command once the device has seen it.
fn obeyed(net: &mut Driver, command: Command<'_>) -> Result<(), Cause> {
    let reply = net.command(command).map_err(|error| error.cause)?;
    net.process(InterruptCauses::QUEUE).expect("no trouble");
    let result = reply.get().expect("the device answers at once");
    result.map_err(|error| error.cause)
}

#[test]
fn commands_reach_the_device() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    let modes = [
        ReceiveMode::Promiscuous,
        ReceiveMode::AllMulticast,
        ReceiveMode::AllUnicast,
        ReceiveMode::NoMulticast,
        ReceiveMode::NoUnicast,
        ReceiveMode::NoBroadcast,
    ];
    for (index, mode) in modes.into_iter().enumerate() {
        for on in [true, false] {
            assert_eq!(obeyed(&mut net, Command::Receive(mode, on)), Ok(()));
            let mut expected = [false; 6];
            expected[index] = on;
            assert_eq!(card.with(|nic| nic.modes), expected);
        }
    }
    let unicast = [
        MacAddress([2, 0, 0, 0, 0, 1]),
        MacAddress([2, 0, 0, 0, 0, 2]),
    ];
    let multicast = [MacAddress([0x33, 0x33, 0, 0, 0, 1])];
    let tables = Command::MacTable {
        unicast: &unicast,
        multicast: &multicast,
    };
    assert_eq!(obeyed(&mut net, tables), Ok(()));
    let tables = card.with(|nic| nic.tables.clone());
    assert_eq!(
        tables,
        [unicast.map(|mac| mac.0).to_vec(), vec![multicast[0].0]]
    );

    assert_eq!(obeyed(&mut net, Command::VlanAdd(4095)), Ok(()));
    assert_eq!(obeyed(&mut net, Command::VlanAdd(7)), Ok(()));
    assert_eq!(obeyed(&mut net, Command::VlanDelete(4095)), Ok(()));
    assert_eq!(card.with(|nic| nic.vlans.clone()), [7]);

    let address = MacAddress([2, 1, 2, 3, 4, 5]);
    assert_eq!(obeyed(&mut net, Command::MacAddress(address)), Ok(()));
    assert_eq!((card.with(|nic| nic.mac), net.mac()), (address.0, address));
    assert_eq!(
        (net.control_stats().obeyed, net.control_stats().refused),
        (17, 0)
    );
    finish(&memory, net);
}

#[test]
fn filters_do_what_the_commands_say() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    let to = |address: [u8; 6]| {
        let mut frame = frame(64, 1);
        frame[..6].copy_from_slice(&address);
        frame
    };
    let group = [0x01, 0, 0x5e, 0, 0, 1];
    let other = [2, 9, 9, 9, 9, 9];
    let arrives = |net: &mut Driver, address| {
        inject(&card, &to(address));
        !receive_all(net).is_empty()
    };
    assert!(!arrives(&mut net, group) && !arrives(&mut net, other));
    obeyed(&mut net, Command::Receive(ReceiveMode::AllMulticast, true)).expect("obeyed");
    assert!(arrives(&mut net, group) && !arrives(&mut net, other));
    obeyed(&mut net, Command::Receive(ReceiveMode::Promiscuous, true)).expect("obeyed");
    assert!(arrives(&mut net, group) && arrives(&mut net, other));
    finish(&memory, net);
}

#[test]
fn a_command_that_cannot_be_sent_is_an_error() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    let group = [MacAddress([1, 0, 0, 0, 0, 0])];
    let station = [MacAddress([2, 0, 0, 0, 0, 0])];
    let crowd = [MacAddress([2, 0, 0, 0, 0, 0]); 1025];
    let impossible = [
        Command::VlanAdd(4096),
        Command::VlanDelete(u16::MAX),
        Command::MacAddress(group[0]),
        Command::MacAddress(MacAddress([0; 6])),
        Command::MacTable {
            unicast: &group,
            multicast: &[],
        },
        Command::MacTable {
            unicast: &[],
            multicast: &station,
        },
        Command::MacTable {
            unicast: &crowd,
            multicast: &[],
        },
    ];
    for command in impossible {
        let refused = obeyed(&mut net, command);
        assert!(
            matches!(refused, Err(Cause::InvalidParameter(_))),
            "{command:?}"
        );
    }
    assert!(card.with(|nic| nic.commands.is_empty()));
    finish(&memory, net);

    for (declined, command) in [
        (Features::CTRL_VQ, Command::VlanAdd(1)),
        (
            Features::CTRL_RX,
            Command::Receive(ReceiveMode::AllMulticast, true),
        ),
        (
            Features::CTRL_RX,
            Command::MacTable {
                unicast: &[],
                multicast: &[],
            },
        ),
        (
            Features::CTRL_RX_EXTRA,
            Command::Receive(ReceiveMode::NoUnicast, true),
        ),
        (Features::CTRL_VLAN, Command::VlanAdd(1)),
        (Features::CTRL_MAC_ADDR, Command::MacAddress(station[0])),
        (Features::GUEST_ANNOUNCE, Command::AnnounceAck),
        (Features::STATUS, Command::AnnounceAck),
    ] {
        let options = Options {
            declined: declined.bits(),
            ..Options::default()
        };
        let (memory, card, mut net) = start(FakeNic::new(), options);
        assert_eq!(
            obeyed(&mut net, command),
            Err(Cause::Unsupported),
            "{command:?}"
        );
        assert!(card.with(|nic| nic.commands.is_empty()));
        finish(&memory, net);
    }
}

#[test]
fn a_refusal_a_wrong_answer_and_silence_are_told_apart() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.with(|nic| nic.refuse = Some((2, 0)));
    assert_eq!(
        obeyed(&mut net, Command::VlanAdd(1)),
        Err(Cause::CommandRefused)
    );
    card.inject(Fault::UsedLength(0));
    assert_eq!(
        obeyed(&mut net, Command::VlanDelete(1)),
        Err(Cause::NoStatus)
    );
    // As Cloud Hypervisor did, which counted the command in: the answer is one all the same.
    for (refuse, answer) in [(Some((2, 1)), Err(Cause::CommandRefused)), (None, Ok(()))] {
        card.with(|nic| nic.refuse = refuse);
        card.inject(Fault::UsedLength(5));
        assert_eq!(obeyed(&mut net, Command::VlanDelete(1)), answer);
    }
    card.with(|nic| nic.refuse = Some((1, 1)));
    let address = net.mac();
    let refused = obeyed(&mut net, Command::MacAddress(MacAddress([2; 6])));
    assert_eq!((refused, net.mac()), (Err(Cause::CommandRefused), address));
    assert_eq!(net.control_stats().refused, 4);

    let mut patience = 100;
    let result = net.command_and_wait(Command::VlanDelete(1), || true);
    assert_eq!(result, Ok(()));
    card.inject(Fault::Silent);
    let result = net.command_and_wait(Command::VlanAdd(1), || {
        patience -= 1;
        patience > 0
    });
    assert_eq!(
        (result.map_err(|error| error.cause), patience),
        (Err(Cause::Timeout), 0)
    );

    // Frames go on meanwhile, and a full control queue is no reason to wait.
    let mut replies = Vec::new();
    let full = loop {
        match net.command(Command::VlanAdd(1)) {
            Ok(reply) => replies.push(reply),
            Err(error) => break error.cause,
        }
    };
    assert_eq!((full, replies.len()), (Cause::QueueFull, 63));
    card.heal();
    inject(&card, &frame(60, 1));
    assert_eq!(receive_all(&mut net).len(), 1);

    // After a restart nobody waits for an answer that will not come.
    net.restart().expect("an honest device");
    for reply in replies {
        assert_eq!(
            reply
                .get()
                .map(|result| result.map_err(|error| error.cause)),
            Some(Err(Cause::NeedsReset))
        );
    }
    finish(&memory, net);
}

#[test]
fn link_changes_are_events_and_a_link_that_is_down_takes_no_frames() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    let up = Link {
        up: true,
        speed: Some(1000),
        full_duplex: Some(true),
    };
    assert_eq!((net.link(), net.take_event()), (up, None));
    card.change_config(|nic| {
        nic.link = false;
        nic.speed_duplex = (0xffff_ffff, 0xff);
    });
    net.process(InterruptCauses::CONFIG).expect("no trouble");
    let down = Link {
        up: false,
        speed: None,
        full_duplex: None,
    };
    assert_eq!(
        (net.link(), net.take_event()),
        (down, Some(Event::LinkChanged))
    );
    assert_eq!(net.take_event(), None);
    assert_eq!(send(&mut net, &frame(60, 1)), Err(Cause::LinkDown));
    assert_eq!(net.transmit_stats().link_down, 1);

    card.change_config(|nic| {
        nic.link = true;
        nic.speed_duplex = (100, 0);
    });
    net.process(InterruptCauses::CONFIG).expect("no trouble");
    assert_eq!(net.take_event(), Some(Event::LinkChanged));
    let half = net.link();
    let said = [up, down, half].map(|link| link.to_string());
    let expected = [
        "link up 1000 Mbit/s full duplex",
        "link down",
        "link up 100 Mbit/s half duplex",
    ];
    assert_eq!(said, expected);
    send(&mut net, &frame(60, 1)).expect("room");
    net.flush();
    assert_eq!(card.with(FakeNic::take_sent).len(), 1);
    // A change that changes nothing.
    card.change_config(|_| {});
    net.process(InterruptCauses::CONFIG).expect("no trouble");
    assert_eq!((net.take_event(), net.report().config_changes), (None, 3));
    finish(&memory, net);
}

#[test]
fn an_announcement_is_asked_for_and_acknowledged() {
    let nic = card(|nic| nic.announce = true);
    let (memory, card, mut net) = start(nic, Options::default());
    assert_eq!(
        net.take_event(),
        Some(Event::Announce),
        "asked for before the driver came"
    );
    assert_eq!(card.with(|nic| (nic.announced, nic.announce)), (1, false));
    card.change_config(|nic| nic.announce = true);
    net.process(InterruptCauses::all()).expect("no trouble");
    assert_eq!(
        (net.take_event(), net.take_event()),
        (Some(Event::Announce), None)
    );
    assert_eq!(card.with(|nic| nic.announced), 2);
    finish(&memory, net);
}

#[test]
fn an_impossible_configuration_is_refused() {
    let bad = |nic: FakeNic| {
        let memory = Memory::fresh();
        let card = FakeDevice::new(nic);
        let result: Result<Driver, _> = Net::new(card.transport(), Options::default());
        let cause = result.map(|_| ()).expect_err("refused").cause;
        memory.assert_clean();
        cause
    };
    for mtu in [0, 67] {
        let nic = card(|nic| nic.mtu = mtu);
        let value = mtu.into();
        assert_eq!(
            bad(nic),
            Cause::BadConfig {
                field: "mtu",
                value
            }
        );
    }
    for (mac, value) in [
        ([0; 6], 0),
        ([0xff; 6], 0xffff_ffff_ffff),
        ([1, 0, 0, 0, 0, 2], 0x100_0000_0002),
    ] {
        let nic = card(|nic| nic.mac = mac);
        assert_eq!(
            bad(nic),
            Cause::BadConfig {
                field: "mac",
                value
            }
        );
    }

    let memory = Memory::fresh();
    let card = FakeDevice::new(FakeNic::new());
    card.inject(Fault::ConfigNeverSettles);
    let result: Result<Driver, _> = Net::new(card.transport(), Options::default());
    assert_eq!(
        result.map(|_| ()).expect_err("refused").cause,
        Cause::ConfigUnstable
    );
    memory.assert_clean();
}

#[test]
fn a_device_without_an_address_gets_one() {
    let nic = || {
        card(|nic| {
            nic.features = 0;
            nic.mac = [0xff; 6];
            nic.link = false;
            nic.mtu = 3;
        })
    };
    let (memory, _, net) = start(nic(), Options::default());
    assert!(net.mac().is_unicast());
    assert_eq!(net.mac().0[0] & 2, 2, "locally administered");
    assert_eq!((net.mtu(), net.link().up), (1500, true));
    finish(&memory, net);

    let own = MacAddress([2, 3, 4, 5, 6, 7]);
    let options = Options {
        fallback_mac: Some(own),
        ..Options::default()
    };
    let (memory, _, net) = start(nic(), options);
    assert_eq!(net.mac(), own);
    finish(&memory, net);
}

#[test]
fn made_up_addresses_differ_from_place_to_place() {
    let memory = Memory::fresh();
    let nic = || {
        card(|nic| {
            nic.features = 0;
            nic.mac = [0; 6];
        })
    };
    let mut addresses = Vec::new();
    for segment in [0, 1, 0x102] {
        let device = FakeDevice::new(nic());
        let function = FakePci::new(&device, PciLayout::default());
        let transport = PciTransport::with_registers(
            &mut function.clone(),
            function.function(),
            FakeDma::default(),
            |address, len| function.map(address, len),
        );
        let transport = transport.expect("a whole function").in_segment(segment);
        let net = Net::new(transport, Options::default()).expect("a device");
        addresses.push(net.mac());
    }
    for place in [0xfeb0_0000, 0xfeb0_0200] {
        let device = FakeDevice::new(nic());
        let registers = FakeMmio::new(&device).registers();
        let transport = MmioTransport::new(registers, place, FakeDma::default());
        let transport = transport.expect("honest registers").expect("a device");
        let net = Net::new(transport, Options::default()).expect("a device");
        addresses.push(net.mac());
    }
    assert!(addresses.iter().all(|address| address.is_unicast()));
    addresses.sort_by_key(|address| address.0);
    addresses.dedup();
    assert_eq!(addresses.len(), 5, "{addresses:?}");
    memory.assert_clean();
}

#[test]
fn nobody_waits_for_a_driver_that_is_gone() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.set_pace(Pace::Manual);
    let reply = net.command(Command::VlanAdd(1)).expect("room");
    assert_eq!(reply.get(), None);
    drop(net);
    let cause = reply
        .get()
        .map(|result| result.map_err(|error| error.cause));
    assert_eq!(cause, Some(Err(Cause::NeedsReset)));
    memory.assert_clean();
}

#[test]
fn what_is_in_hand_can_be_looked_at() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    assert_eq!(net.mac().to_string(), "52:54:00:12:34:56");
    let mut frame = net.transmit(60).expect("room");
    frame.fill(3);
    assert_eq!(*frame, [3; 60]);
    assert_eq!(format!("{frame:?}"), "TxFrame(60 bytes)");
    frame.send().expect("room");
    inject(&card, &self::frame(61, 1));
    let frame = net.receive().expect("a sound queue").expect("a frame");
    assert_eq!(format!("{frame:?}"), "RxFrame(61 bytes)");
    drop(frame);
    let reply = net.command(Command::VlanAdd(1)).expect("room");
    assert_eq!(format!("{reply:?}"), "Reply(None)");
    net.process(InterruptCauses::QUEUE).expect("no trouble");
    assert_eq!(format!("{reply:?}"), "Reply(Some(Ok(())))");
    let names = vringlet::net::feature_names(1 << 5 | 1 << 15 | 1 << 32).to_string();
    assert_eq!(names, "MAC MRG_RXBUF VERSION_1");
    finish(&memory, net);
}

#[test]
fn why_it_interrupts_is_told_once() {
    let (memory, card, net) = start(FakeNic::new(), Options::default());
    card.change_config(|nic| nic.link = false);
    assert_eq!(net.take_interrupt_causes(), InterruptCauses::CONFIG);
    assert_eq!(net.take_interrupt_causes(), InterruptCauses::empty());
    finish(&memory, net);
}

#[test]
fn a_feature_is_not_accepted_without_the_one_that_it_needs() {
    let all = Features::all();
    for missing in [Features::CTRL_VQ, Features::STATUS] {
        let nic = card(|nic| nic.features = all.difference(missing).bits());
        let (memory, card, net) = start(nic, Options::default());
        let accepted = Features::from_bits_truncate(card.driver_features());
        assert!(!accepted.contains(Features::GUEST_ANNOUNCE));
        let needs_control = Features::CTRL_RX | Features::CTRL_VLAN | Features::CTRL_MAC_ADDR;
        assert_eq!(
            accepted.intersects(needs_control),
            missing == Features::STATUS
        );
        finish(&memory, net);
    }
}

#[test]
fn any_queue_size_works() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX | RingFeatures::INDIRECT_DESC,
    ] {
        for shift in 0..=10 {
            let size = 1u16 << shift;
            let memory = Memory::fresh();
            let card = FakeDevice::new(card(|nic| {
                nic.queue_sizes = [size, size, 64];
                nic.loopback = true;
                nic.modes = [true, false, false, false, false, false];
            }));
            card.offer(ring);
            let options = Options {
                receive_queue_size: 1024,
                transmit_queue_size: 1024,
                receive_buffers: 1024,
                ..Options::default()
            };
            let mut net: Driver = Net::new(card.transport(), options).expect("an honest device");
            let mut received = 0;
            for round in 0..30u64 {
                for part in 0..=round % u64::from(size) {
                    send(&mut net, &frame(60, round << 32 | part)).expect("room");
                }
                net.flush();
                received += receive_all(&mut net).len() as u64;
            }
            assert_eq!(received, net.transmit_stats().packets, "queues of {size}");
            finish(&memory, net);
        }
    }
}

#[test]
fn wrong_queue_sizes_and_devices_are_refused() {
    let memory = Memory::fresh();
    for (receive_queue_size, transmit_queue_size) in [(0, 4), (3, 4), (4, 0), (4, 100)] {
        let card = FakeDevice::new(FakeNic::new());
        let options = Options {
            receive_queue_size,
            transmit_queue_size,
            ..Options::default()
        };
        let result: Result<Driver, _> = Net::new(card.transport(), options);
        let error = result.map(|_| ()).expect_err("not a power of two");
        assert!(matches!(error.cause, Cause::QueueSize { .. }), "{error}");
        memory.assert_clean();
    }
    let disk = FakeDevice::new(vringlet::fake::FakeBlk::new(16));
    let result: Result<Net<_>, _> = Net::new(disk.transport(), Options::default());
    let error = result.map(|_| ()).expect_err("a disk");
    let expected = DeviceId::NET.0;
    assert_eq!(error.cause, Cause::WrongDeviceType { expected });
}

#[test]
fn short_memory_is_an_error_and_leaks_nothing() {
    let mut failures = 0;
    for allocations in 0.. {
        let memory = Memory::fresh();
        memory.fail_allocations_after(allocations);
        let card = FakeDevice::new(FakeNic::new());
        let result: Result<Driver, _> = Net::new(card.transport(), Options::default());
        memory.fail_allocations_after(None);
        match result {
            Err(error) => assert_eq!(error.cause, Cause::NoDmaMemory),
            Ok(net) => {
                finish(&memory, net);
                break;
            }
        }
        memory.assert_clean();
        failures += 1;
    }
    assert!(failures >= 3, "each queue needs some");
}

#[test]
fn all_buffers_with_the_device_is_an_error_until_it_returns_some() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.set_pace(Pace::Manual);
    for _ in 0..256 {
        // A frame that is not sent after all costs nothing.
        drop(net.transmit(1514).expect("room"));
        send(&mut net, &frame(60, 1)).expect("room");
    }
    assert_eq!(send(&mut net, &frame(60, 1)), Err(Cause::QueueFull));
    assert_eq!(net.transmit_stats().full, 1);
    card.pump();
    assert_eq!(card.with(FakeNic::take_sent).len(), 256);
    send(&mut net, &frame(60, 1)).expect("room");
    finish(&memory, net);
}

#[test]
fn a_burst_costs_one_kick_and_frames_leave_buffers_with_the_device() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    let (before, posted) = (card.notifications(TRANSMIT), card.notifications(RECEIVE));
    for _ in 0..100 {
        send(&mut net, &frame(60, 1)).expect("room");
    }
    assert_eq!(card.notifications(TRANSMIT), before);
    net.flush();
    assert_eq!(card.notifications(TRANSMIT), before + 1);
    for index in 0..200 {
        card.with(|nic| nic.inject(frame(60, index)));
    }
    card.pump();
    for index in 0..200 {
        let received = net.receive().expect("a queue").expect("a frame");
        assert_eq!(*received, frame(60, index));
    }
    // A quarter of the buffers at a time goes back before the round ends.
    assert!(card.notifications(RECEIVE) <= posted + 3);
    card.pump();
    assert!(card.with(|nic| nic.posted()) >= 256 - 64);
    net.flush();
    card.pump();
    assert_eq!(card.with(|nic| nic.posted()), 256);
    finish(&memory, net);
}

#[derive(Default)]
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether `poll_ready` says that there is something to do.
fn ready(net: &mut Driver, alarm: &Arc<Alarm>) -> bool {
    let waker = Waker::from(alarm.clone());
    net.poll_ready(&mut Context::from_waker(&waker)).is_ready()
}

#[test]
fn the_device_interrupts_only_a_task_that_sleeps() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
    ] {
        let memory = Memory::fresh();
        let card = FakeDevice::new(FakeNic::new());
        card.offer(ring);
        let mut net: Driver = Net::new(card.transport(), Options::default()).expect("a device");
        let alarm = Arc::new(Alarm::default());

        inject(&card, &frame(60, 1));
        assert_eq!(card.interrupts(RECEIVE), 0, "nobody sleeps yet");
        assert!(ready(&mut net, &alarm), "a frame is there");
        assert_eq!(receive_all(&mut net).len(), 1);
        assert!(!ready(&mut net, &alarm));

        inject(&card, &frame(60, 2));
        assert_eq!(card.interrupts(RECEIVE), 1);
        net.process(InterruptCauses::QUEUE).expect("no trouble");
        assert_eq!(alarm.0.load(Ordering::SeqCst), 1);
        let mut frames = 0;
        while net.receive().expect("a queue").is_some() {
            frames += 1;
            if frames < 50 {
                inject(&card, &frame(60, 3));
            }
        }
        assert_eq!(frames, 50);
        assert_eq!(card.interrupts(RECEIVE), 1, "frames are being worked off");
        assert!(!ready(&mut net, &alarm));
        assert_eq!(net.report().queues[0].stats.interrupts, 1);

        // Frames that are sent cost no interrupt.
        for _ in 0..1000 {
            send(&mut net, &frame(60, 1)).expect("room");
            net.flush();
        }
        assert_eq!(card.interrupts(TRANSMIT), 0);
        finish(&memory, net);
    }
}

#[test]
fn a_task_that_waits_for_room_is_woken_when_there_is_some() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
    ] {
        let memory = Memory::fresh();
        let card = FakeDevice::new(FakeNic::new());
        card.offer(ring);
        card.set_pace(Pace::Manual);
        let mut net: Driver = Net::new(card.transport(), Options::default()).expect("a device");
        let alarm = Arc::new(Alarm::default());
        while net.has_room() {
            send(&mut net, &frame(60, 1)).expect("room");
        }
        assert!(!ready(&mut net, &alarm));
        card.pump();
        assert_eq!(card.interrupts(TRANSMIT), 1);
        net.process(InterruptCauses::QUEUE).expect("no trouble");
        assert_eq!(alarm.0.load(Ordering::SeqCst), 1);
        assert!(ready(&mut net, &alarm));
        assert!(net.has_room());
        for _ in 0..100 {
            send(&mut net, &frame(60, 1)).expect("room");
        }
        net.flush();
        card.pump();
        assert_eq!(card.interrupts(TRANSMIT), 1, "nobody waits any more");
        assert!(!ready(&mut net, &alarm));
        finish(&memory, net);
    }
}

#[test]
fn a_device_out_of_buffers_is_counted() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    let alarm = Arc::new(Alarm::default());
    assert!(!ready(&mut net, &alarm));
    for index in 0..300 {
        card.with(|nic| nic.inject(frame(60, index)));
    }
    card.pump();
    assert_eq!(
        receive_all(&mut net).len(),
        300,
        "the rest waited for buffers"
    );
    assert_eq!(net.receive_stats().no_buffer, 1);
    assert!(!ready(&mut net, &alarm));
    inject(&card, &frame(60, 1));
    assert_eq!(receive_all(&mut net).len(), 1);
    assert_eq!(net.receive_stats().no_buffer, 1);
    finish(&memory, net);
}

#[test]
fn an_answer_wakes_who_awaits_it() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.set_pace(Pace::Manual);
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(alarm.clone());
    let mut context = Context::from_waker(&waker);
    for round in 1..=3 {
        let mut reply = Box::pin(net.command(Command::VlanAdd(1)).expect("room"));
        drop(net.command(Command::VlanAdd(2)).expect("room"));
        assert!(reply.as_mut().poll(&mut context).is_pending());
        card.pump();
        assert_eq!(card.interrupts(CONTROL), round as u64);
        net.process(InterruptCauses::QUEUE).expect("no trouble");
        assert_eq!(alarm.0.load(Ordering::SeqCst), round);
        assert_eq!(reply.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    }
    finish(&memory, net);
}

/// A card that writes what it is told to the receive buffers, one entry to each, header and all.
struct Scripted {
    features: Features,
    buffers: VecDeque<Vec<u8>>,
}

impl DeviceModel for Scripted {
    fn id(&self) -> DeviceId {
        DeviceId::NET
    }
    fn features(&self) -> u64 {
        self.features.bits()
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 256]
    }
    fn config(&self) -> Vec<u8> {
        vec![0; 24]
    }
    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        while queue == RECEIVE
            && !self.buffers.is_empty()
            && let Some(request) = queues.pop(queue)
        {
            let bytes = self.buffers.pop_front().unwrap_or_default();
            let written = request.write(0, &bytes);
            queues.push(queue, request, written as u32);
        }
    }
}

/// A buffer as the device writes it: a header that speaks of `num_buffers`, and `len` bytes.
fn buffer(num_buffers: u16, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; 12 + len];
    bytes[10..12].copy_from_slice(&num_buffers.to_le_bytes());
    bytes
}

fn scripted(
    features: Features,
    receive_buffer_len: usize,
    buffers: impl IntoIterator<Item = Vec<u8>>,
) -> (Memory, FakeDevice<Scripted>, Net<FakeTransport<Scripted>>) {
    let memory = Memory::fresh();
    let buffers = buffers.into_iter().collect();
    let card = FakeDevice::new(Scripted { features, buffers });
    let options = Options {
        receive_buffer_len,
        ..Options::default()
    };
    let net = Net::new(card.transport(), options).expect("a device that seems fine");
    (memory, card, net)
}

#[test]
fn bad_frames_without_end_keep_nobody_in_receive() {
    const FLOOD: usize = 10_000;
    let runts = std::iter::repeat_n(buffer(1, 8), FLOOD);
    // Three buffers for each, of which the first is not filled.
    let merges = std::iter::repeat_n([buffer(3, 8), buffer(0, 8), buffer(0, 8)], FLOOD);
    let floods: [(Features, Vec<Vec<u8>>); 2] = [
        (Features::empty(), runts.collect()),
        (Features::MRG_RXBUF, merges.flatten().collect()),
    ];
    for (features, flood) in floods {
        let total = flood.len();
        let flood = flood.into_iter().chain([buffer(1, 60)]);
        let (memory, card, mut net) = scripted(features, 2048, flood);
        let buffers = u64::from(net.receive_buffers().0);
        let taken = |net: &Net<_>| net.report().queues[0].stats.completed;
        let mut calls = 0;
        loop {
            let before = taken(&net);
            let came = net
                .receive()
                .expect("a sound queue")
                .map(|frame| frame.len());
            calls += 1;
            // The last frame may take a few buffers more than the budget, never as many again.
            assert!(taken(&net) - before < buffers + 3, "one call took too many");
            if let Some(len) = came {
                assert_eq!(len, 60, "the good frame at the end");
                break;
            }
            // Who comes back only when told to does.
            assert!(!net.prepare_to_sleep(), "after {calls} calls");
        }
        assert!(calls >= total / 259, "{calls} calls");
        assert_eq!(net.receive_stats().dropped(), FLOOD as u64);
        assert_eq!(card.with(|model| model.buffers.len()), 0);
        assert!(net.receive().expect("a sound queue").is_none());
        assert!(net.prepare_to_sleep());
        drop(net);
        memory.assert_clean();
    }
}

#[test]
fn more_buffers_than_there_are_belong_to_no_frame() {
    for lie in [257, 300, 0x8000, u16::MAX] {
        // The frames behind the lie came before the driver looks at it.
        let script = [buffer(lie, 2036), buffer(1, 60), buffer(1, 61)];
        let (memory, card, mut net) = scripted(Features::MRG_RXBUF, 2048, script);
        card.pump();
        let mut lengths = Vec::new();
        while let Some(frame) = net.receive().expect("a sound queue") {
            lengths.push(frame.len());
        }
        assert_eq!(lengths, [60, 61], "num_buffers {lie}");
        assert_eq!(net.receive_stats().bad_merge, 1);
        drop(net);
        memory.assert_clean();
    }
}

#[test]
fn a_merged_frame_is_given_up_where_it_gets_too_long() {
    // 13 buffers of 128 bytes are more than 1518; the one behind is not filled, which is looked at no more.
    let mut script = vec![buffer(16, 116)];
    script.extend(std::iter::repeat_n(vec![0; 128], 12));
    script.extend([vec![0; 5], vec![0; 128], vec![0; 128], buffer(1, 60)]);
    let (memory, card, mut net) = scripted(Features::MRG_RXBUF, 128, script);
    card.pump();
    let len = net
        .receive()
        .expect("a sound queue")
        .map(|frame| frame.len());
    assert_eq!(len, Some(60), "the frame behind");
    let stats = net.receive_stats();
    assert_eq!((stats.too_long, stats.bad_merge), (1, 0));
    drop(net);
    memory.assert_clean();
}

#[test]
fn a_merged_frame_with_a_gap_is_no_frame() {
    // All buffers but the last are full (spec 5.1.6.4.1): one that is not has bytes of another frame behind them.
    for (filled, good) in [(128, true), (127, false), (0, false)] {
        let script = [
            buffer(4, 116),
            vec![0; 128],
            vec![0; filled],
            vec![0; 5],
            buffer(1, 60),
        ];
        let (memory, card, mut net) = scripted(Features::MRG_RXBUF, 128, script);
        card.pump();
        let mut lengths = Vec::new();
        while let Some(frame) = net.receive().expect("a sound queue") {
            lengths.push(frame.len());
        }
        let whole = 116 + 128 + 128 + 5;
        assert_eq!(lengths, if good { vec![whole, 60] } else { vec![60] });
        assert_eq!(net.receive_stats().bad_merge, u64::from(!good));
        drop(net);
        memory.assert_clean();
    }
}

#[test]
fn a_transmit_queue_found_broken_on_the_way_to_sleep_keeps_awake() {
    let options = Options {
        transmit_queue_size: 2,
        ..Options::default()
    };
    let (memory, card, mut net) = start(FakeNic::new(), options);
    card.set_pace(Pace::Manual);
    for _ in 0..2 {
        send(&mut net, &frame(60, 1)).expect("room");
    }
    net.flush();
    assert!(!net.has_room(), "somebody waits for room from now on");
    card.inject(Fault::UsedId(99));
    card.complete(TRANSMIT, 1);
    assert!(!net.prepare_to_sleep(), "no interrupt will come for this");
    let Some(Event::Failed(failed)) = net.take_event() else {
        panic!("a failure");
    };
    assert_eq!(failed.queue, Some(TRANSMIT));
    assert_eq!(failed.cause, Cause::BadUsedId { id: 99 });
    assert!(net.prepare_to_sleep(), "it was told once");
    finish(&memory, net);
}

#[test]
fn there_are_as_many_buffers_as_the_queues_really_have_room_for() {
    let nic = card(|nic| nic.queue_sizes = [200, 200, 64]);
    let (memory, card, mut net) = start(nic, Options::default());
    card.set_pace(Pace::Manual);
    let sizes = net.report().queues;
    assert_eq!((sizes[0].size, sizes[1].size), (128, 128));
    assert_eq!(net.receive_buffers().0, 128);
    assert_eq!(sizes[0].in_flight, 128);
    let mut sent = 0;
    while net.has_room() {
        send(&mut net, &frame(60, sent)).expect("room, as was said");
        sent += 1;
    }
    assert_eq!(sent, 128);
    assert_eq!(net.transmit_stats().dropped(), 0);
    assert_eq!(send(&mut net, &frame(60, 1)), Err(Cause::QueueFull));
    net.flush();
    card.pump();
    assert!(net.has_room());
    finish(&memory, net);

    // Merged frames get as long as they may in the buffers that there really are.
    let nic = self::card(|nic| {
        nic.queue_sizes = [200, 200, 64];
        nic.mtu = 65535;
    });
    let options = Options {
        receive_buffer_len: 12,
        ..Options::default()
    };
    let (memory, card, mut net) = start(nic, options);
    let longest = frame(65535 + 18, 1);
    inject(&card, &longest);
    assert_eq!(receive_all(&mut net), [longest]);
    finish(&memory, net);
}

#[test]
fn of_several_addresses_the_one_answered_last_is_the_cards() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.set_pace(Pace::Manual);
    let addresses = [1, 2, 3].map(|last| MacAddress([2, 0, 0, 0, 0, last]));
    for address in addresses {
        drop(net.command(Command::MacAddress(address)).expect("room"));
    }
    // One that has to do with no address comes back behind them.
    drop(net.command(Command::VlanAdd(1)).expect("room"));
    card.pump();
    net.process(InterruptCauses::QUEUE).expect("no trouble");
    assert_eq!(net.mac(), addresses[2]);
    assert_eq!(card.with(|nic| nic.mac), addresses[2].0);
    finish(&memory, net);
}

#[test]
fn a_restart_wakes_who_sleeps_and_interrupts_come_as_before() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
    ] {
        let memory = Memory::fresh();
        let card = FakeDevice::new(FakeNic::new());
        card.offer(ring);
        let options = Options {
            transmit_queue_size: 4,
            ..Options::default()
        };
        let mut net: Driver = Net::new(card.transport(), options).expect("a device");
        let alarm = Arc::new(Alarm::default());
        let woken = || alarm.0.load(Ordering::SeqCst);
        assert!(!ready(&mut net, &alarm));
        net.restart().expect("an honest device");
        assert_eq!(
            woken(),
            1,
            "the new session asks for no interrupt by itself"
        );

        let before = [RECEIVE, TRANSMIT].map(|queue| card.interrupts(queue));
        inject(&card, &frame(60, 1));
        send(&mut net, &frame(60, 1)).expect("room");
        net.flush();
        let now = [RECEIVE, TRANSMIT].map(|queue| card.interrupts(queue));
        assert_eq!(now, before, "nobody sleeps");
        assert!(ready(&mut net, &alarm), "a frame is there");
        assert_eq!(receive_all(&mut net).len(), 1);

        for round in 1..=3 {
            assert!(!ready(&mut net, &alarm));
            inject(&card, &frame(60, round));
            assert_eq!(card.interrupts(RECEIVE), before[0] + round);
            net.process(InterruptCauses::QUEUE).expect("no trouble");
            assert_eq!(woken() as u64, 1 + round);
            assert_eq!(receive_all(&mut net).len(), 1);
        }
        // And for room, of which somebody must be told.
        card.set_pace(Pace::Manual);
        while net.has_room() {
            send(&mut net, &frame(60, 1)).expect("room");
        }
        assert!(!ready(&mut net, &alarm));
        card.pump();
        assert_eq!(card.interrupts(TRANSMIT), before[1] + 1);
        finish(&memory, net);
    }
}

#[test]
fn a_restart_reads_the_configuration_anew() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    card.with(|nic| {
        nic.mtu = 1280;
        nic.mac = [2, 0, 0, 0, 0, 9];
        nic.link = false;
    });
    net.restart().expect("an honest device");
    assert_eq!(
        (net.mtu(), net.mac()),
        (1280, MacAddress([2, 0, 0, 0, 0, 9]))
    );
    assert!(!net.link().up);
    assert_eq!(net.take_event(), Some(Event::LinkChanged));
    assert_eq!(send(&mut net, &frame(60, 1)), Err(Cause::LinkDown));
    card.change_config(|nic| nic.link = true);
    net.process(InterruptCauses::CONFIG).expect("no trouble");
    assert_eq!(send(&mut net, &frame(1280 + 14, 1)), Ok(()));
    assert!(send(&mut net, &frame(1280 + 15, 1)).is_err());
    finish(&memory, net);
}

#[test]
fn a_device_that_did_not_come_back_is_not_notified() {
    let (memory, card, mut net) = start(FakeNic::new(), Options::default());
    inject(&card, &frame(60, 1));
    drop(net.receive().expect("a sound queue"));
    send(&mut net, &frame(60, 1)).expect("room");
    card.inject(Fault::FeaturesRefused);
    net.restart().expect_err("it refuses");
    net.flush();
    assert!(!net.has_room() || send(&mut net, &frame(60, 1)).is_err());
    assert!(net.command(Command::VlanAdd(1)).is_err());
    let _ = net.prepare_to_sleep();
    memory.assert_no_violations();
    card.heal();
    net.restart().expect("an honest device again");
    send(&mut net, &frame(60, 2)).expect("room");
    net.flush();
    assert_eq!(card.with(FakeNic::take_sent), [frame(60, 2)]);
    finish(&memory, net);
}
