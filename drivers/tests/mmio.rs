//! `MmioTransport` against fake registers: drivers over it, and what it does with registers that lie.

mod common;

use common::{Data, Echo};
use vringlet::authoring::queue::{Queue, QueueOptions};
use vringlet::authoring::registers::Registers;
use vringlet::authoring::start::{driver_ok, negotiate};
use vringlet::blk::Blk;
use vringlet::blocking::Blocking;
use vringlet::fake::{
    FakeBlk, FakeDevice, FakeDma, FakeMmio, FakeMmioRegisters, FakeNic, Fault, Memory, Pace,
};
use vringlet::net::Net;
use vringlet::transport::{InterruptCauses, SharedMemory};
use vringlet::{Buffer, Cause, DeviceId, Location, MmioTransport, Transport, blk, net};

const MAGIC_VALUE: usize = 0x00;
const VERSION: usize = 0x04;
const DEVICE_ID: usize = 0x08;
const QUEUE_SIZE_MAX: usize = 0x34;
const QUEUE_READY: usize = 0x44;
const INTERRUPT_STATUS: usize = 0x60;

const ADDRESS: u64 = 0xfeb0_0e00;

type Bank = FakeMmioRegisters<Echo>;
type EchoTransport = MmioTransport<FakeDma, Bank>;
type EchoQueue = Queue<EchoTransport, Data>;

fn bank() -> (FakeDevice<Echo>, FakeMmio<Echo>) {
    let device = FakeDevice::new(Echo::new(8));
    let mmio = FakeMmio::new(&device);
    (device, mmio)
}

fn open(mmio: &FakeMmio<Echo>) -> EchoTransport {
    let transport = MmioTransport::new(mmio.registers(), ADDRESS, FakeDma::default());
    transport.expect("honest registers").expect("a device")
}

fn queue(transport: &mut EchoTransport) -> vringlet::Result<EchoQueue> {
    let negotiated = negotiate(transport, 0, 0, 0)?;
    Queue::new(transport, 0, QueueOptions::default(), negotiated)
}

/// What comes of looking for a device where a register reads `value`. Nothing is touched that tells nothing.
#[track_caller]
fn probe(lies: &[(usize, u32)]) -> vringlet::Result<Option<EchoTransport>> {
    let memory = Memory::fresh();
    let (_device, mmio) = bank();
    for (register, value) in lies {
        mmio.set_register(*register, *value);
    }
    let result = MmioTransport::new(mmio.registers(), ADDRESS, FakeDma::default());
    if let Err(error) = &result {
        assert_eq!(error.device.location, Location::Mmio(ADDRESS));
    }
    memory.assert_clean();
    result
}

#[test]
fn a_disk_works() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(2048));
    let mmio = FakeMmio::new(&device);
    let transport = MmioTransport::new(mmio.registers(), ADDRESS, FakeDma::default())
        .expect("honest registers");
    let transport = transport.expect("a device");
    assert_eq!(transport.name().id, DeviceId::BLK);
    let disk = Blk::new(transport, blk::Options::default()).expect("honest");
    assert_eq!(disk.config().capacity, 2048);
    let mut disk = Blocking::new(disk);
    let mut left = 1000;
    let mut wait = || {
        left -= 1;
        left > 0
    };
    for sector in 0..64 {
        let block = Buffer::from(vec![sector as u8; 512]);
        disk.write(sector, block, &mut wait).expect("a sector");
        let block = Buffer::zeroed(512).expect("memory");
        let block = disk.read(sector, block, &mut wait).expect("a sector");
        assert_eq!(*block, [sector as u8; 512]);
    }
    drop(disk);
    memory.assert_clean();
}

#[test]
fn a_network_card_works() {
    let memory = Memory::fresh();
    let card = FakeDevice::new(FakeNic::new());
    let mmio = FakeMmio::new(&card);
    let transport = MmioTransport::new(mmio.registers(), ADDRESS, FakeDma::default())
        .expect("honest registers");
    let transport = transport.expect("a device");
    let mut net = Net::new(transport, net::Options::default()).expect("honest");
    let mut bytes = vec![7; 100];
    bytes[..6].copy_from_slice(&FakeNic::new().mac);
    for _ in 0..600 {
        card.with(|nic| nic.inject(bytes.as_slice()));
        card.pump();
        let frame = net.receive().expect("honest").expect("one came");
        assert_eq!(frame.to_vec(), bytes);
        drop(frame);
        net.flush();
        let mut frame = net.transmit(bytes.len()).expect("room");
        frame.copy_from_slice(&bytes);
        frame.send().expect("room");
        net.flush();
        assert_eq!(card.with(FakeNic::take_sent), [bytes.as_slice()]);
    }
    drop(net);
    memory.assert_clean();
}

#[test]
fn every_queue_has_its_bell() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(8);
    disk.queues = 3;
    let device = FakeDevice::new(disk);
    let mmio = FakeMmio::new(&device);
    let transport = MmioTransport::new(mmio.registers(), ADDRESS, FakeDma::default())
        .expect("honest registers");
    let mut transport = transport.expect("a device");
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest");
    let mut queues: Vec<Queue<_, Data>> = (0..3)
        .map(|index| {
            Queue::new(&mut transport, index, QueueOptions::default(), negotiated).expect("a queue")
        })
        .collect();
    let missing = Queue::<_, Data>::new(&mut transport, 3, QueueOptions::default(), negotiated);
    assert_eq!(
        missing.err().map(|error| error.cause),
        Some(Cause::NoSuchQueue)
    );
    driver_ok(&mut transport).expect("honest");
    device.set_pace(Pace::Manual);
    for queue in &mut queues {
        queue.submit(&[], Data::new(&[0xff; 16], 1)).expect("room");
        queue.kick();
        assert_eq!(device.notifications(queue.index()), 1);
    }
    let proof = transport.reset().expect("honest");
    for queue in &mut queues {
        queue.release(&proof);
    }
    drop(queues);
    memory.assert_clean();
}

#[test]
fn device_configuration_is_accessed_in_every_width() {
    let memory = Memory::fresh();
    let (_device, mmio) = bank();
    let mut transport = open(&mmio);
    assert_eq!(transport.config_u8(31), Ok(31));
    assert_eq!(transport.config_u16(2), Ok(0x0302));
    assert_eq!(transport.config_u32(4), Ok(0x0706_0504));
    // As two halves, so four bytes are alignment enough.
    assert_eq!(transport.config_u64(4), Ok(0x0b0a_0908_0706_0504));
    let mut odd = [0; 3];
    assert_eq!(transport.read_config(5, &mut odd), Ok(()));
    assert_eq!(odd, [5, 6, 7]);
    for (offset, len) in [(0x100, 1), (0xff, 2), (usize::MAX, 4), (0xfc, 8)] {
        let cause = Cause::ConfigOutOfRange { offset, len };
        let read = transport.read_config(offset, &mut [0; 8][..len]);
        assert_eq!(read.map_err(|error| error.cause), Err(cause));
        let written = transport.write_config(offset, &[0; 8][..len]);
        assert_eq!(written.map_err(|error| error.cause), Err(cause));
    }
    for (offset, len, unit) in [(1, 2, 2), (2, 4, 4), (6, 8, 4)] {
        let value = offset as u64;
        let cause = Cause::Misaligned { value, unit };
        let read = transport.read_config(offset, &mut [0; 8][..len]);
        assert_eq!(read.map_err(|error| error.cause), Err(cause));
        let written = transport.write_config(offset, &[0; 8][..len]);
        assert_eq!(written.map_err(|error| error.cause), Err(cause));
    }
    memory.assert_clean();
}

#[test]
fn interrupts_are_acknowledged_by_whoever_takes_their_causes() {
    let memory = Memory::fresh();
    let (device, mmio) = bank();
    let mut transport = open(&mmio);
    let handle = transport.interrupt_status().expect("the registers");
    let mut queue = queue(&mut transport).expect("a queue");
    driver_ok(&mut transport).expect("honest");
    assert_eq!(handle.take(), InterruptCauses::empty());
    let status = || mmio.registers().read_u32(INTERRUPT_STATUS);

    queue.submit(&[], Data::new(b"abc", 8)).expect("room");
    queue.kick();
    device.change_config(|_| ());
    assert_eq!(status(), 3);
    assert_eq!(handle.take(), InterruptCauses::all());
    assert_eq!(status(), 0, "acknowledged");
    assert_eq!(transport.take_interrupt_causes(), InterruptCauses::empty());

    device.change_config(|_| ());
    assert_eq!(transport.take_interrupt_causes(), InterruptCauses::CONFIG);
    assert_eq!(handle.take(), InterruptCauses::empty());

    // Bits that nobody defined are neither believed nor acknowledged, which the fake would note.
    mmio.set_register(INTERRUPT_STATUS, 0xffff_fffe);
    assert_eq!(handle.take(), InterruptCauses::CONFIG);
    mmio.set_register(INTERRUPT_STATUS, 0xffff_fffc);
    assert_eq!(handle.take(), InterruptCauses::empty());

    assert!(queue.poll(&mut []).expect("honest").is_some());
    queue.release(&transport.reset().expect("honest"));
    drop(queue);
    memory.assert_clean();
}

#[test]
fn shared_memory_is_found_with_all_its_64_bits() {
    let memory = Memory::fresh();
    let (_device, mmio) = bank();
    let region = SharedMemory {
        id: 7,
        address: 0x10_0000_4000,
        len: 0x1_4000_0000,
    };
    mmio.add_shared_memory(region);
    let transport = open(&mmio);
    assert_eq!(transport.shared_memory(7), Some(region));
    assert_eq!(transport.find_shared_memory(0), Ok(None));
    memory.assert_clean();
}

// Registers that lie.

#[test]
fn no_device_is_no_error() {
    assert!(probe(&[(DEVICE_ID, 0)]).expect("no error").is_none());
    // A place for a device with the legacy interface, on a machine that has several such places.
    assert!(
        probe(&[(VERSION, 1), (DEVICE_ID, 0)])
            .expect("no error")
            .is_none()
    );
}

#[test]
fn other_magic_and_versions_are_refused_by_name() {
    let cause = |lies: &[(usize, u32)]| probe(lies).map(drop).map_err(|error| error.cause);
    for magic in [0, u32::MAX, 0x7669_7274] {
        let expected = Cause::NotVirtioMmio { magic };
        assert_eq!(cause(&[(MAGIC_VALUE, magic)]), Err(expected));
        // Whatever else is there.
        assert_eq!(
            cause(&[(MAGIC_VALUE, magic), (DEVICE_ID, 0)]),
            Err(expected)
        );
    }
    assert_eq!(cause(&[(VERSION, 1)]), Err(Cause::LegacyOnly));
    for version in [0, 3, u32::MAX] {
        let expected = Cause::UnknownVersion { version };
        assert_eq!(cause(&[(VERSION, version)]), Err(expected));
        // Of an unknown version nothing is known, the device id neither.
        assert_eq!(cause(&[(VERSION, version), (DEVICE_ID, 0)]), Err(expected));
    }
    // The legacy interface has the id at the same place: it is known what is refused.
    let error = probe(&[(VERSION, 1)]).map(drop).expect_err("legacy");
    assert_eq!(error.device.id, DeviceId(4));
}

#[test]
fn registers_that_end_too_early_are_refused() {
    let (_device, mmio) = bank();
    for len in [0, 4, 0xff] {
        let result = MmioTransport::new(mmio.registers_of(len), ADDRESS, FakeDma::default());
        let cause = result.map(drop).expect_err("too short").cause;
        assert!(matches!(cause, Cause::InvalidParameter(_)), "{cause}");
    }
    let transport =
        MmioTransport::new(mmio.registers_of(0x100), ADDRESS, FakeDma::default()).expect("whole");
    let transport = transport.expect("a device");
    assert!(transport.config_u8(0).is_err(), "without configuration");
}

#[test]
fn a_queue_of_an_impossible_size_is_no_queue_or_a_smaller_one() {
    for (max, expected) in [(0, None), (u32::MAX, Some(256)), (0x1_0008, Some(256))] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(256));
        let mmio = FakeMmio::new(&device);
        mmio.set_register(QUEUE_SIZE_MAX, max);
        let mut transport = open(&mmio);
        let options = QueueOptions {
            size: 256,
            ..QueueOptions::default()
        };
        let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest otherwise");
        let result: vringlet::Result<EchoQueue> =
            Queue::new(&mut transport, 0, options, negotiated);
        match (result, expected) {
            (Ok(mut queue), Some(size)) => {
                assert_eq!(queue.size(), size);
                queue.release(&transport.reset().expect("honest"));
            }
            (Err(error), None) => {
                assert_eq!((error.queue, error.cause), (Some(0), Cause::NoSuchQueue));
            }
            (result, _) => panic!("{max}: {:?}", result.map(drop)),
        }
        memory.assert_clean();
    }
}

#[test]
fn a_queue_that_is_in_use_is_an_error() {
    for ready in [1, 2] {
        let memory = Memory::fresh();
        let (device, mmio) = bank();
        mmio.set_register(QUEUE_READY, ready);
        let mut transport = open(&mmio);
        let error = queue(&mut transport).map(drop).expect_err("a lie");
        assert_eq!((error.queue, error.cause), (Some(0), Cause::QueueInUse));
        // The queue's memory is free again: the device was told nothing of it.
        driver_ok(&mut transport).expect("honest otherwise");
        device.pump();
        memory.assert_clean();
    }
}

/// It may use the queue all the same: it knows where that is.
#[test]
fn a_queue_that_the_device_refused_is_not_freed_before_a_reset() {
    let memory = Memory::fresh();
    let (device, mmio) = bank();
    mmio.set_register(QUEUE_READY, 0);
    let mut transport = open(&mmio);
    let refused = |transport: &mut EchoTransport| -> EchoQueue {
        let negotiated = negotiate(transport, 0, 0, 0).expect("honest otherwise");
        let queue = Queue::allocate(transport, 0, QueueOptions::default(), negotiated);
        let mut queue = queue.expect("honest so far");
        let error = queue.enable(transport).expect_err("it stays off");
        assert_eq!((error.queue, error.cause), (Some(0), Cause::QueueRefused));
        queue
    };
    let mut queue = refused(&mut transport);
    queue.release(&transport.reset().expect("honest otherwise"));
    drop(queue);
    memory.assert_clean();
    let queue = refused(&mut transport);
    device.inject(Fault::ResetNeverEnds);
    transport.reset().expect_err("no end");
    let kept = memory.live();
    drop(queue);
    assert_eq!(memory.live(), kept, "the device may use it");
}

#[test]
fn a_reset_that_never_ends_is_an_error_in_bounded_time() {
    let memory = Memory::fresh();
    let (device, mmio) = bank();
    let mut transport = open(&mmio);
    negotiate(&mut transport, 0, 0, 0).expect("honest so far");
    device.inject(Fault::ResetNeverEnds);
    let error = transport.reset().expect_err("no end");
    assert_eq!(error.cause, Cause::ResetTimeout { status: 0xb });
    memory.assert_clean();
}

#[test]
fn a_status_beyond_its_8_bits_is_no_finished_reset() {
    let (_device, mmio) = bank();
    let mut transport = open(&mmio);
    mmio.set_register(0x70, 0x100);
    let error = transport.reset().expect_err("not 0");
    assert_eq!(error.cause, Cause::ResetTimeout { status: 0 });
}

#[test]
fn a_generation_that_never_settles_is_an_error_in_bounded_time() {
    let memory = Memory::fresh();
    let (device, mmio) = bank();
    let transport = open(&mmio);
    let read = || transport.config_snapshot(|transport| transport.config_u64(0));
    assert_eq!(read(), Ok(0x0706_0504_0302_0100));
    device.inject(Fault::ConfigNeverSettles);
    assert_eq!(
        read().map_err(|error| error.cause),
        Err(Cause::ConfigUnstable)
    );
    memory.assert_clean();
}

#[test]
fn absurd_shared_memory_is_refused_by_name() {
    for (address, len, field, value) in [
        (0x1000, 0, "SHMLen", 0),
        (u64::MAX - 1, 2, "SHMBase", u64::MAX - 1),
        (1 << 63, 1 << 63, "SHMBase", 1 << 63),
    ] {
        let (_device, mmio) = bank();
        mmio.add_shared_memory(SharedMemory {
            id: 0,
            address,
            len,
        });
        let transport = open(&mmio);
        let error = transport.find_shared_memory(0).expect_err("no room");
        assert_eq!(error.cause, Cause::BadConfig { field, value });
        assert_eq!(transport.shared_memory(0), None);
    }
}

#[test]
fn registers_that_read_all_ones_are_an_error_in_bounded_time() {
    let memory = Memory::fresh();
    let (device, mmio) = bank();
    let mut transport = open(&mmio);
    let handle = transport.interrupt_status().expect("the registers");
    device.inject(Fault::Gone);
    let error = transport.reset().expect_err("nobody there");
    assert_eq!(error.cause, Cause::ResetTimeout { status: 0xff });
    assert!(queue(&mut transport).is_err());
    // All ones: an interrupt handler is told so, and no more.
    assert_eq!(handle.take(), InterruptCauses::all());
    let error = MmioTransport::new(mmio.registers(), ADDRESS, FakeDma::default()).map(drop);
    let cause = error.expect_err("nobody there").cause;
    assert_eq!(cause, Cause::NotVirtioMmio { magic: u32::MAX });
    memory.assert_clean();
}
