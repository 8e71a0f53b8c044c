//! `PciTransport` against a fake PCI function: how it finds its way, and what it does with functions that lie.

mod common;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use common::{Data, Echo};
use virtio_drivers::transport::pci::bus::ConfigurationAccess;
use vringlet::authoring::queue::{Queue, QueueOptions};
use vringlet::authoring::registers::Registers;
use vringlet::authoring::start::{driver_ok, negotiate};
use vringlet::fake::{
    CapabilityFault, FakeBlk, FakeDevice, FakeDma, FakePci, FakeRegisters, Fault, Interrupt,
    Memory, PciLayout, Random,
};
use vringlet::transport::pci::Message;
use vringlet::transport::{InterruptCauses, SharedMemory};
use vringlet::{Cause, DeviceId, Location, PciTransport, Transport};

/// `cfg_type` of the capabilities (spec 4.1.4), and what the fake calls MSI-X.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const MSIX: u8 = 255;

type EchoPci = FakePci<Echo>;
type EchoTransport = PciTransport<FakeDma, FakeRegisters<Echo>>;

/// Where the addresses of the queue selected are in the common configuration (spec 4.1.4.3).
const QUEUE_ADDRESSES: Range<usize> = 0x20..0x38;

fn function(layout: PciLayout) -> (FakeDevice<Echo>, EchoPci) {
    let device = FakeDevice::new(Echo::new(8));
    let pci = FakePci::new(&device, layout);
    (device, pci)
}

fn open(pci: &EchoPci) -> vringlet::Result<EchoTransport> {
    let mapper = pci.clone();
    PciTransport::with_registers(
        &mut pci.clone(),
        pci.function(),
        FakeDma::default(),
        |address, len| mapper.map(address, len),
    )
}

/// Negotiates, sends one request through queue 0 and resets.
fn exchange(transport: &mut EchoTransport) {
    let negotiated = negotiate(transport, 0, 0, 0).expect("an honest device");
    let mut queue: Queue<EchoTransport, Data> =
        Queue::new(transport, 0, QueueOptions::default(), negotiated).expect("a queue");
    driver_ok(transport).expect("an honest device");
    queue
        .submit(&[], Data::new(b"over the bus", 32))
        .expect("room");
    queue.kick();
    let completion = queue
        .poll(&mut [])
        .expect("honest")
        .expect("it was notified");
    assert_eq!(completion.written, Ok(12));
    assert_eq!(&completion.payload.writable()[..12], b"over the bus");
    queue.release(&transport.reset().expect("an honest device"));
}

/// Opens the function, exchanges a request and checks that no rule was broken on either side.
#[track_caller]
fn works(layout: PciLayout) {
    let memory = Memory::fresh();
    let (_device, pci) = function(layout);
    let mut transport = open(&pci).expect("a whole function");
    exchange(&mut transport);
    drop(transport);
    memory.assert_clean();
}

/// Opens a function that `spoil` spoilt.
fn open_spoilt(layout: PciLayout, spoil: impl FnOnce(&EchoPci)) -> Result<EchoTransport, Cause> {
    let memory = Memory::fresh();
    let (_device, pci) = function(layout);
    spoil(&pci);
    let result = open(&pci);
    if let Err(error) = &result {
        assert_eq!(error.device.location, Location::Pci(pci.function()));
        assert_eq!(error.device.id, DeviceId(4));
    }
    // A function may say what it likes; the transport reaches for nothing that is not there.
    memory.assert_clean();
    result.map_err(|error| error.cause)
}

fn message(address: u64, data: u32) -> Message {
    // SAFETY: the fake device writes no messages, it only says which it would.
    unsafe { Message::new(address, data) }
}

#[test]
fn a_modern_function_works() {
    works(PciLayout::default());
}

#[test]
fn a_transitional_function_works_by_its_modern_half() {
    works(PciLayout {
        transitional: true,
        ..PciLayout::default()
    });
}

#[test]
fn a_legacy_function_is_refused_by_name() {
    let layout = PciLayout {
        legacy_only: true,
        ..PciLayout::default()
    };
    let result = open_spoilt(layout, |_| {});
    assert_eq!(result.err(), Some(Cause::LegacyOnly));
}

#[test]
fn a_notification_structure_in_an_io_bar_is_passed_over() {
    works(PciLayout {
        io_notify_first: true,
        ..PciLayout::default()
    });
}

#[test]
fn a_bar_above_4_gib_is_found_there() {
    // Among them one whose low half looks negative: nothing may be sign-extended.
    for address in [
        0x1_0000_0000,
        0x38_8000_0000,
        0x7f_ffff_0000_0000,
        0xf000_0000,
    ] {
        works(PciLayout {
            address,
            ..PciLayout::default()
        });
    }
}

#[test]
fn every_notification_multiplier_works() {
    for notify_multiplier in [0, 2, 4, 4096] {
        works(PciLayout {
            notify_multiplier,
            ..PciLayout::default()
        });
    }
}

#[test]
fn registers_are_not_where_the_machine_has_its_memory() {
    // The device's BARs say that they are: nothing is mapped, and nothing written there.
    let address = 0x20_0000;
    let layout = PciLayout {
        address,
        ..PciLayout::default()
    };
    let (device, pci) = function(layout);
    let cause = open(&pci).expect_err("memory").cause;
    assert!(
        matches!(cause, Cause::BadRegisters { address: at, .. } if (address..1 << 30).contains(&at)),
        "{cause}"
    );
    drop(device);
}

#[test]
fn a_function_is_called_by_its_segment_where_there_are_several() {
    let memory = Memory::fresh();
    let (_device, pci) = function(PciLayout::default());
    let function = pci.function();
    for (segment, location, text) in [
        (
            0,
            Location::Pci(function),
            format!("virtio-rng at {function}"),
        ),
        (
            0x1a,
            Location::PciSegment(0x1a, function),
            format!("virtio-rng at 001a:{function}"),
        ),
    ] {
        let transport = open(&pci).expect("a whole function").in_segment(segment);
        assert_eq!(transport.name().location, location);
        assert_eq!(transport.name().to_string(), text);
    }
    memory.assert_clean();
}

#[test]
fn the_second_queue_has_its_own_bell() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(8);
    disk.queues = 3;
    let device = FakeDevice::new(disk);
    for notify_multiplier in [2, 4, 4096] {
        let layout = PciLayout {
            notify_multiplier,
            ..PciLayout::default()
        };
        let pci = FakePci::new(&device, layout);
        let mut transport = PciTransport::with_registers(
            &mut pci.clone(),
            pci.function(),
            FakeDma::default(),
            |a, l| pci.map(a, l),
        )
        .expect("a whole function");
        let negotiated = negotiate(&mut transport, 0, 0, 0).expect("an honest device");
        let options = QueueOptions {
            header_len: 16,
            footer_len: 1,
            ..QueueOptions::default()
        };
        let mut queues: Vec<Queue<_, ()>> = (0..3)
            .map(|index| Queue::new(&mut transport, index, options, negotiated).expect("a queue"))
            .collect();
        driver_ok(&mut transport).expect("an honest device");
        for queue in &mut queues {
            let before = device.notifications(queue.index());
            queue.submit(&[0xff; 16], ()).expect("room");
            queue.kick();
            assert_eq!(device.notifications(queue.index()), before + 1);
            let mut status = [0; 1];
            assert!(queue.poll(&mut status).expect("honest").is_some());
            assert_eq!(status, [2], "an unknown request");
        }
        let proof = transport.reset().expect("an honest device");
        for queue in &mut queues {
            queue.release(&proof);
        }
    }
    memory.assert_clean();
}

#[test]
fn a_function_without_msix_works_and_says_so() {
    let layout = PciLayout {
        vectors: 0,
        ..PciLayout::default()
    };
    works(layout);
    let (_device, pci) = function(layout);
    let mut transport = open(&pci).expect("a whole function");
    assert_eq!(transport.msix_vectors(), 0);
    let error = transport.enable_msix(&mut pci.clone(), &[]).unwrap_err();
    assert_eq!(error.cause, Cause::MissingCapability("MSI-X"));
}

#[test]
fn vectors_go_to_configuration_and_queues() {
    let memory = Memory::fresh();
    let (device, pci) = function(PciLayout::default());
    let sent = Arc::new(Mutex::new(Vec::new()));
    let (log, bus) = (sent.clone(), pci.clone());
    device.on_interrupt(move |interrupt| {
        let message = bus.message(interrupt);
        log.lock()
            .expect("no panic before")
            .push((interrupt, message));
    });
    let mut transport = open(&pci).expect("a whole function");
    let messages = [10, 11].map(|data| message(0xfee0_0000, data));
    transport
        .enable_msix(&mut pci.clone(), &messages)
        .expect("four vectors");
    exchange(&mut transport);
    assert_eq!(
        *sent.lock().expect("no panic before"),
        [(Interrupt::Queue(0), Some(messages[1]))]
    );

    // After the reset, everything is set again; with one message it serves all.
    sent.lock().expect("no panic before").clear();
    let moved = message(0xfee0_1000, 77);
    transport.set_message(1, moved).expect("a vector in use");
    assert!(
        transport.set_message(2, moved).is_err(),
        "only two are in use"
    );
    exchange(&mut transport);
    assert_eq!(
        *sent.lock().expect("no panic before"),
        [(Interrupt::Queue(0), Some(moved))]
    );
    memory.assert_clean();
}

#[test]
fn a_configuration_change_comes_by_its_vector() {
    let (device, pci) = function(PciLayout::default());
    let mut transport = open(&pci).expect("a whole function");
    let message = message(0xfee0_0000, 5);
    transport
        .enable_msix(&mut pci.clone(), &[message])
        .expect("four vectors");
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest");
    let mut queue: Queue<_, Data> =
        Queue::new(&mut transport, 0, QueueOptions::default(), negotiated).expect("a queue");
    driver_ok(&mut transport).expect("honest");
    assert_eq!(pci.message(Interrupt::Config), Some(message));
    assert_eq!(pci.message(Interrupt::Queue(0)), Some(message), "shared");
    let before = transport.config_generation();
    device.change_config(|_| {});
    assert_ne!(transport.config_generation(), before);
    queue.release(&transport.reset().expect("honest"));
}

#[test]
fn more_messages_than_vectors_are_refused_and_fewer_still_work() {
    let (_device, pci) = function(PciLayout::default());
    let mut transport = open(&pci).expect("a whole function");
    let message = message(0xfee0_0000, 1);
    let error = transport
        .enable_msix(&mut pci.clone(), &[message; 5])
        .unwrap_err();
    assert_eq!(error.cause, Cause::VectorRefused(4));
    transport
        .enable_msix(&mut pci.clone(), &[message; 4])
        .expect("as many as there are");
    exchange(&mut transport);
}

#[test]
fn a_refused_vector_fails_the_queue_by_name() {
    let memory = Memory::fresh();
    let (device, pci) = function(PciLayout::default());
    let mut transport = open(&pci).expect("a whole function");
    let message = message(0xfee0_0000, 1);
    transport
        .enable_msix(&mut pci.clone(), &[message; 2])
        .expect("four vectors");
    device.inject(Fault::VectorsRefused);
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest");
    let result: vringlet::Result<Queue<_, Data>> =
        Queue::new(&mut transport, 0, QueueOptions::default(), negotiated);
    let error = result.err().expect("no vector, no queue");
    assert_eq!(
        (error.queue, error.cause),
        (Some(0), Cause::VectorRefused(0))
    );
    memory.assert_clean();
}

#[test]
fn shared_memory_is_found_with_all_its_64_bits() {
    let (_device, pci) = function(PciLayout {
        address: 0x10_0000_0000,
        shared_memory: Some((7, 0x1_4000_0000)),
        ..PciLayout::default()
    });
    let transport = open(&pci).expect("a whole function");
    let region = transport.shared_memory(7).expect("the region");
    assert_eq!(
        region,
        SharedMemory {
            id: 7,
            address: 0x10_0000_4000,
            len: 0x1_4000_0000
        }
    );
    assert_eq!(transport.shared_memory(0), None);
}

#[test]
fn device_configuration_is_read_in_every_width() {
    let (_device, pci) = function(PciLayout::default());
    let mut transport = open(&pci).expect("a whole function");
    assert_eq!(transport.config_u8(31), Ok(31));
    assert_eq!(transport.config_u16(2), Ok(0x0302));
    assert_eq!(transport.config_u32(4), Ok(0x0706_0504));
    assert_eq!(transport.config_u64(8), Ok(0x0f0e_0d0c_0b0a_0908));
    for (offset, len) in [(32, 1), (31, 2), (usize::MAX, 4)] {
        let error = transport
            .read_config(offset, &mut [0; 4][..len])
            .unwrap_err();
        assert_eq!(error.cause, Cause::ConfigOutOfRange { offset, len });
        assert!(transport.write_config(offset, &[0; 4][..len]).is_err());
    }
}

#[test]
fn bars_and_command_are_left_as_they_were_found_but_for_what_is_needed() {
    let (_device, pci) = function(PciLayout::default());
    let before: Vec<u32> = (0x10..0x28)
        .step_by(4)
        .map(|at| pci.read_word(pci.function(), at))
        .collect();
    let _transport = open(&pci).expect("a whole function");
    let after: Vec<u32> = (0x10..0x28)
        .step_by(4)
        .map(|at| pci.read_word(pci.function(), at))
        .collect();
    assert_eq!(before, after);
    let command = pci.read_word(pci.function(), 4) & 0xffff;
    assert_eq!(command, 0b110, "memory and bus mastering");
}

// Functions that lie (the bugs that others had, 5).

#[test]
fn a_capability_list_without_end_is_an_error() {
    let result = open_spoilt(PciLayout::default(), |pci| {
        pci.break_capability(DEVICE, CapabilityFault::Loop);
    });
    assert!(matches!(result.err(), Some(Cause::BadCapability { .. })));
}

#[test]
fn a_capability_in_the_header_is_an_error() {
    let result = open_spoilt(PciLayout::default(), |pci| pci.poke(0x34, &[0x10]));
    let cause = result.expect_err("no list there");
    assert!(matches!(cause, Cause::BadCapability { offset: 0x10, .. }));
}

#[test]
fn a_capability_in_bar_11_is_ignored_as_the_specification_says() {
    for (kind, what) in [
        (COMMON, "common configuration"),
        (NOTIFY, "notification"),
        (ISR, "interrupt status"),
    ] {
        for bar in [6, 11, 255] {
            let result = open_spoilt(PciLayout::default(), |pci| {
                pci.break_capability(kind, CapabilityFault::Bar(bar));
            });
            assert_eq!(result.err(), Some(Cause::MissingCapability(what)));
        }
    }
}

#[test]
fn a_capability_in_a_bar_that_is_not_there_counts_as_missing() {
    let result = open_spoilt(PciLayout::default(), |pci| {
        pci.break_capability(COMMON, CapabilityFault::Bar(3));
    });
    let missing = Cause::MissingCapability("common configuration");
    assert_eq!(result.err(), Some(missing));
}

#[test]
fn a_structure_past_the_end_of_its_bar_is_an_error() {
    for kind in [COMMON, NOTIFY, ISR, DEVICE] {
        for fault in [
            CapabilityFault::Offset(0xffff_fff0),
            CapabilityFault::Offset(0x4000),
            CapabilityFault::Length(0xffff_ffff),
            CapabilityFault::Length(0x4001),
        ] {
            let result = open_spoilt(PciLayout::default(), |pci| {
                pci.break_capability(kind, fault);
            });
            let cause = result.expect_err("nothing is mapped there");
            assert!(
                matches!(cause, Cause::BadCapability { .. }),
                "{fault:?}: {cause}"
            );
        }
    }
}

#[test]
fn offset_and_length_that_overflow_together_are_an_error() {
    let layout = PciLayout {
        shared_memory: Some((0, 0x1000)),
        ..PciLayout::default()
    };
    let result = open_spoilt(layout, |pci| {
        // Lower halves of offset and length, then the upper ones: together they come round to the BAR's beginning.
        let at = capability(pci, 8);
        pci.poke(at + 8, &0xffff_f000u32.to_le_bytes());
        pci.poke(at + 12, &0x2000u32.to_le_bytes());
        pci.poke(at + 16, &[0xff; 4]);
        pci.poke(at + 20, &[0; 4]);
    });
    let cause = result.expect_err("2^64 bytes do not fit");
    assert!(matches!(cause, Cause::BadCapability { .. }), "{cause}");
}

/// Where the capability of a `cfg_type` is.
fn capability(pci: &EchoPci, cfg_type: u8) -> u8 {
    let mut at = pci.read_word(pci.function(), 0x34) as u8;
    loop {
        assert_ne!(at, 0, "a capability of that type");
        let header = pci.read_word(pci.function(), at);
        if header as u8 == 9 && (header >> 24) as u8 == cfg_type {
            return at;
        }
        at = (header >> 8) as u8;
    }
}

#[test]
fn missing_structures_are_named() {
    for (kind, what) in [
        (COMMON, "common configuration"),
        (NOTIFY, "notification"),
        (ISR, "interrupt status"),
    ] {
        let result = open_spoilt(PciLayout::default(), |pci| {
            pci.break_capability(kind, CapabilityFault::Missing);
        });
        assert_eq!(result.err(), Some(Cause::MissingCapability(what)));
    }
    // A device need not have a configuration, or MSI-X.
    for kind in [DEVICE, MSIX] {
        let result = open_spoilt(PciLayout::default(), |pci| {
            pci.break_capability(kind, CapabilityFault::Missing);
        });
        let transport = result.expect("all that is needed");
        assert_eq!(transport.config_u8(0).is_err(), kind == DEVICE);
        assert_eq!(transport.msix_vectors() == 0, kind == MSIX);
    }
}

#[test]
fn a_common_configuration_too_short_for_its_fields_is_an_error() {
    for len in [0, 1, 55] {
        let result = open_spoilt(PciLayout::default(), |pci| {
            pci.break_capability(COMMON, CapabilityFault::Length(len));
        });
        assert!(result.is_err(), "{len} bytes");
    }
}

#[test]
fn an_empty_interrupt_or_notification_structure_is_survived() {
    for kind in [ISR, NOTIFY] {
        let memory = Memory::fresh();
        let (_device, pci) = function(PciLayout::default());
        pci.break_capability(kind, CapabilityFault::Length(0));
        let mut transport = open(&pci).expect("an empty structure is one");
        let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest otherwise");
        let result: vringlet::Result<Queue<_, Data>> =
            Queue::new(&mut transport, 0, QueueOptions::default(), negotiated);
        match result {
            Ok(mut queue) => {
                assert_eq!(kind, ISR);
                transport.take_interrupt_causes();
                queue.release(&transport.reset().expect("honest"));
            }
            Err(error) => {
                assert_eq!(kind, NOTIFY);
                assert_eq!(error.queue, Some(0));
                assert!(matches!(error.cause, Cause::BadConfig { .. }));
            }
        }
        memory.assert_clean();
    }
}

#[test]
fn a_capability_too_short_for_its_type_is_an_error() {
    for (kind, len) in [(COMMON, 15), (NOTIFY, 16), (ISR, 0), (DEVICE, 3)] {
        let result = open_spoilt(PciLayout::default(), |pci| {
            pci.break_capability(kind, CapabilityFault::CapabilityLength(len));
        });
        let cause = result.expect_err("not all of it is there");
        assert!(matches!(cause, Cause::BadCapability { .. }), "{cause}");
    }
}

#[test]
fn a_bar_without_an_address_is_an_error() {
    let layout = PciLayout {
        address: 0,
        ..PciLayout::default()
    };
    let cause = open_spoilt(layout, |_| {}).expect_err("nothing to map");
    assert!(matches!(cause, Cause::BadCapability { .. }), "{cause}");
}

#[test]
fn a_notification_offset_out_of_range_fails_the_queue() {
    for offset in [0x400, 0x7fff, 0xffff] {
        let memory = Memory::fresh();
        let (device, pci) = function(PciLayout::default());
        device.inject(Fault::NotifyOffset(offset));
        let mut transport = open(&pci).expect("a whole function");
        let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest otherwise");
        let result: vringlet::Result<Queue<_, Data>> =
            Queue::new(&mut transport, 0, QueueOptions::default(), negotiated);
        let error = result.err().expect("no bell there");
        let (field, value) = ("queue_notify_off", u64::from(offset));
        assert_eq!(error.cause, Cause::BadConfig { field, value });
        assert_eq!(error.queue, Some(0));
        // Its memory is free again, so the device must not know of it.
        let common = pci.map(PciLayout::default().address, QUEUE_ADDRESSES.end as u64);
        let common = common.expect("the common configuration");
        for register in QUEUE_ADDRESSES.step_by(4) {
            assert_eq!(common.read_u32(register), 0, "at {register:#x}");
        }
        memory.assert_clean();
    }
}

#[test]
fn a_function_that_reads_all_ones_is_an_error_in_bounded_time() {
    let memory = Memory::fresh();
    let (device, pci) = function(PciLayout::default());
    let mut transport = open(&pci).expect("a whole function");
    device.inject(Fault::Gone);
    let error = transport.reset().unwrap_err();
    assert_eq!(error.cause, Cause::ResetTimeout { status: 0xff });
    // Looked for anew it is no device at all.
    let error = open(&pci).unwrap_err();
    let (vendor, id) = (0xffff, 0xffff);
    assert_eq!(error.cause, Cause::NotVirtio { vendor, device: id });
    memory.assert_clean();
}

#[test]
fn a_function_of_another_maker_is_no_virtio_device() {
    let (_device, pci) = function(PciLayout::default());
    pci.poke(0, &0x8086u16.to_le_bytes());
    let error = open(&pci).unwrap_err();
    assert!(matches!(
        error.cause,
        Cause::NotVirtio { vendor: 0x8086, .. }
    ));
}

#[test]
fn noise_for_a_configuration_space_is_survived() {
    let memory = Memory::fresh();
    let (mut opened, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let mut random = Random::new(seed);
        let (device, pci) = function(PciLayout::default());
        // Everything behind the header, or only a few bytes of it.
        let mut noise = [0; 192];
        for (index, byte) in noise.iter_mut().enumerate() {
            let word = pci.read_word(pci.function(), 0x40 + index as u8 / 4 * 4);
            *byte = word.to_le_bytes()[index % 4];
        }
        if seed % 2 == 0 {
            random.fill(&mut noise);
        } else {
            for _ in 0..1 + random.below(6) {
                let at = random.below(100);
                noise[at] = [random.next() as u8, 0, 4, 0x40, 0xff][random.below(5)];
            }
        }
        pci.poke(0x40, &noise);
        match open(&pci) {
            Ok(mut transport) => {
                opened += 1;
                if let Ok(negotiated) = negotiate(&mut transport, 0, 0, 0)
                    && let Ok(mut queue) = Queue::<_, Data>::new(
                        &mut transport,
                        0,
                        QueueOptions::default(),
                        negotiated,
                    )
                {
                    let _ = driver_ok(&mut transport);
                    let _ = queue.submit(&[], Data::new(b"x", 4));
                    queue.kick();
                    let _ = queue.poll(&mut []);
                    // The status register may be anywhere: stop the device itself, so that nothing is leaked.
                    match transport.reset() {
                        Ok(proof) => drop(queue.release(&proof)),
                        Err(_) => {
                            let mut direct = device.transport();
                            direct.reset().expect("an honest device");
                            std::mem::forget(queue);
                        }
                    }
                }
            }
            Err(_) => refused += 1,
        }
        // What the driver does through registers that lie is not its fault.
        memory.take_violations();
    }
    assert!(opened > 100 && refused > 100, "{opened} and {refused}");
}

#[test]
fn registers_that_the_context_does_not_map_are_an_error() {
    let memory = Memory::fresh();
    let (_device, pci) = function(PciLayout::default());
    let result = PciTransport::new(&mut pci.clone(), pci.function(), FakeDma::default());
    let error = result
        .map(drop)
        .expect_err("there is nothing behind an address");
    assert!(matches!(error.cause, Cause::BadRegisters { .. }));
    assert_eq!(error.device.location, Location::Pci(pci.function()));
    memory.assert_clean();
}

#[test]
fn causes_are_taken_by_a_handler_without_the_transport() {
    let memory = Memory::fresh();
    let (device, pci) = function(PciLayout::default());
    let mut transport = open(&pci).expect("a whole function");
    assert_eq!(transport.function(), pci.function());
    let handle = transport.interrupt_status().expect("the registers");
    exchange(&mut transport);
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("an honest device");
    let queue = Queue::<_, Data>::new(&mut transport, 0, QueueOptions::default(), negotiated);
    let mut queue = queue.expect("a queue");
    driver_ok(&mut transport).expect("an honest device");
    queue.submit(&[], Data::new(b"x", 1)).expect("room");
    queue.kick();
    device.change_config(|_| ());
    assert_eq!(handle.take(), InterruptCauses::all());
    assert_eq!(handle.take(), InterruptCauses::empty());
    assert_eq!(transport.take_interrupt_causes(), InterruptCauses::empty());
    queue.release(&transport.reset().expect("an honest device"));
    drop(queue);
    let message = message(0xfee0_1000, 0x41);
    assert_eq!((message.address(), message.data()), (0xfee0_1000, 0x41));
    memory.assert_clean();
}
