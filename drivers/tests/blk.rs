//! The block device's core and its blocking face, against a RAM disk.

#![expect(
    clippy::single_range_in_vec_init,
    reason = "one range of sectors is meant"
)]

use vringlet::blk::{
    Blk, CacheMode, Config, Data, DiscardLimits, Features, Operation, Options, Request, SECTOR_LEN,
    WriteZeroesLimits,
};
use vringlet::blocking::Blocking;
use vringlet::fake::{
    FakeBlk, FakeDevice, FakeTransport, Fault, Interrupt, Memory, Order, Pace, Random,
};
use vringlet::features::RingFeatures;
use vringlet::transport::Status;
use vringlet::{Buffer, Cause, Driver, Error, Transport};

type Disk = Blk<FakeTransport<FakeBlk>>;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn open_with(disk: FakeBlk, options: Options) -> (FakeDevice<FakeBlk>, Disk) {
    let device = FakeDevice::new(disk);
    let blk = Blk::new(device.transport(), options).expect("an honest device");
    (device, blk)
}

fn open(disk: FakeBlk) -> (FakeDevice<FakeBlk>, Disk) {
    open_with(disk, Options::default())
}

fn refusal(disk: FakeBlk) -> Cause {
    let device = FakeDevice::new(disk);
    match Disk::new(device.transport(), Options::default()) {
        Ok(_) => panic!("the device was accepted"),
        Err(error) => error.cause,
    }
}

/// Bytes that differ from sector to sector and from seed to seed.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

fn buffer(len: usize) -> Buffer {
    Buffer::zeroed(len).expect("memory")
}

/// A wait of a number of turns.
fn turns(mut turns: usize) -> impl FnMut() -> bool {
    move || {
        turns = turns.saturating_sub(1);
        turns > 0
    }
}

/// Submits one request and takes its completion.
fn perform(blk: &mut Disk, request: Request) -> (Request, Result<(), Error>) {
    let token = blk.submit(request).expect("room");
    blk.kick();
    let finished = blk.poll().expect("an honest ring").expect("a completion");
    assert_eq!(finished.token, token);
    (finished.request, finished.result)
}

fn rejection(blk: &mut Disk, request: Request) -> Cause {
    match blk.submit(request) {
        Ok(_) => panic!("the request was taken"),
        Err(rejected) => rejected.error.cause,
    }
}

#[test]
fn each_kind_of_request_does_what_it_says() {
    let memory = Memory::fresh();
    let (device, blk) = open(FakeBlk::new(64));
    let mut blk = Blocking::new(blk);
    let written = bytes(4 * SECTOR_LEN, 1);
    blk.write(3, Buffer::from(written.clone()), turns(1))
        .expect("done");
    let read = blk.read(3, buffer(4 * SECTOR_LEN), turns(1)).expect("done");
    assert_eq!(*read, *written);
    device.with(|disk| assert_eq!(disk.disk[3 * 512..7 * 512], *written));
    blk.flush(turns(1)).expect("done");
    blk.write_zeroes(&[4..5], true, turns(1)).expect("done");
    device.with(|disk| {
        assert_eq!(disk.disk[3 * 512..4 * 512], written[..512]);
        assert_eq!(disk.disk[4 * 512..5 * 512], [0; 512]);
        assert_eq!(disk.disk[5 * 512..7 * 512], written[1024..]);
    });
    blk.discard(&[5..7], turns(1)).expect("done");
    assert_eq!(blk.get_id(turns(1)).expect("done"), b"fake");
    let log = [OUT, IN, FLUSH, WRITE_ZEROES, DISCARD, GET_ID];
    device.with(|disk| assert_eq!(disk.log, log));
    let report = blk.into_inner().report();
    let counters = [("bytes_read", 2048), ("bytes_written", 2048), ("errors", 0)];
    assert_eq!(report.counters, counters);
    assert_eq!(report.queues[0].stats.completed, 6);
    memory.assert_clean();
}

#[test]
fn an_id_may_be_as_long_as_its_field_and_hold_anything() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(1);
    disk.serial = vec![0xff; 30];
    let (_, blk) = open(disk);
    let mut blk = Blocking::new(blk);
    assert_eq!(blk.get_id(turns(1)).expect("done"), [0xff; 20]);
    drop(blk);
    memory.assert_clean();
}

#[test]
fn each_status_becomes_its_error() {
    let memory = Memory::fresh();
    let statuses = [
        (1, Cause::DeviceError),
        (2, Cause::Unsupported),
        (3, Cause::UnknownStatus(3)),
        (254, Cause::UnknownStatus(254)),
        (255, Cause::NoStatus),
    ];
    for kind in [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES] {
        let (device, mut blk) = open(FakeBlk::new(64));
        for (status, cause) in statuses {
            device.with(|disk| disk.errors = vec![(kind, 0, u64::MAX, status)]);
            let request = match kind {
                IN => Request::read(1, buffer(512)),
                OUT => Request::write(1, buffer(512)),
                FLUSH => Request::flush(),
                GET_ID => Request::get_id().expect("memory"),
                DISCARD => Request::discard(&[1..2]).expect("memory"),
                _ => Request::write_zeroes(&[1..2], false).expect("memory"),
            };
            let (_, result) = perform(&mut blk, request);
            let error = result.expect_err("the device said so");
            assert_eq!((error.cause, error.queue), (cause, Some(0)));
            assert_eq!(error.device, device.name());
        }
        assert_eq!(blk.report().counters[2], ("errors", statuses.len() as u64));
    }
    memory.assert_clean();
}

#[test]
fn a_request_without_a_status_fails() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(8);
    disk.omit_status = true;
    let (_, mut blk) = open(disk);
    for request in [
        Request::flush(),
        Request::write(0, buffer(512)),
        Request::read(0, buffer(512)),
    ] {
        let (_, result) = perform(&mut blk, request);
        assert_eq!(result.expect_err("no status").cause, Cause::NoStatus);
    }
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_read_that_was_not_written_in_full_is_no_read() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(8));
    for len in [0, 1, 511, 1023] {
        device.inject(Fault::UsedLength(len));
        let (_, result) = perform(&mut blk, Request::read(0, buffer(1024)));
        let cause = Cause::ShortResponse { len, need: 1024 };
        assert_eq!(result.expect_err("short").cause, cause);
    }
    for len in [1026, 65535, u32::MAX] {
        device.inject(Fault::UsedLength(len));
        let (_, result) = perform(&mut blk, Request::read(0, buffer(1024)));
        let cause = Cause::BadUsedLength { len, room: 1025 };
        assert_eq!(result.expect_err("long").cause, cause);
    }
    // The device goes on, and so does the driver.
    let (_, result) = perform(&mut blk, Request::read(0, buffer(1024)));
    result.expect("an honest answer");
    drop(blk);
    memory.assert_clean();
}

/// What devices that there are say of how much they wrote: kvmtool and Cloud Hypervisor (until April 2026) the length of the
/// data, whichever way it went, or 0; QEMU's sample daemon the same and 1.
#[test]
fn a_status_counts_whatever_the_device_says_of_how_much_it_wrote() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(64));
    type Make = fn() -> Request;
    let requests: [(Make, &[u32]); 6] = [
        (|| Request::read(0, buffer(512)), &[512, 513]),
        (
            || Request::write(0, buffer(512)),
            &[0, 1, 512, 513, u32::MAX],
        ),
        (Request::flush, &[0, 1, 2]),
        (|| Request::get_id().expect("memory"), &[20, 21]),
        (
            || Request::discard(&[0..8]).expect("memory"),
            &[0, 1, 16, 17],
        ),
        (
            || Request::write_zeroes(&[0..8], false).expect("memory"),
            &[0, 1, 16, 17],
        ),
    ];
    let mut too_long = 0;
    for (request, lens) in requests {
        for &len in lens {
            device.inject(Fault::UsedLength(len));
            let (done, result) = perform(&mut blk, request());
            result.unwrap_or_else(|error| panic!("{:?}, {len}: {error}", done.operation()));
            let room = match done.operation() {
                Operation::Read => 513,
                Operation::GetId => {
                    assert_eq!(done.id(), b"fake", "{len}");
                    21
                }
                _ => 1,
            };
            too_long += u64::from(len > room);
        }
    }
    // A name that the device may not have written is none: memory has what was there before.
    for len in [0, 4, 22] {
        device.inject(Fault::UsedLength(len));
        let (_, result) = perform(&mut blk, Request::get_id().expect("memory"));
        let wrong = match len {
            22 => Cause::BadUsedLength { len, room: 21 },
            _ => Cause::ShortResponse { len, need: 20 },
        };
        assert_eq!(result.expect_err("no name").cause, wrong);
        too_long += u64::from(len > 21);
    }
    assert_eq!(blk.report().queues[0].stats.violations, too_long);
    // A failure is one, too.
    device.with(|disk| disk.errors = vec![(IN, 0, 8, 1), (OUT, 0, 8, 1)]);
    for (len, request) in [
        (0, Request::read(0, buffer(512))),
        (514, Request::read(0, buffer(512))),
        (513, Request::write(0, buffer(512))),
    ] {
        device.inject(Fault::UsedLength(len));
        let (_, result) = perform(&mut blk, request);
        assert_eq!(result.expect_err("bad").cause, Cause::DeviceError);
    }
    // And where no status was written, there is none, whatever the length.
    device.with(|disk| {
        disk.errors.clear();
        disk.omit_status = true;
    });
    for len in [0, 1, 513] {
        device.inject(Fault::UsedLength(len));
        let (_, result) = perform(&mut blk, Request::write(0, buffer(512)));
        assert_eq!(result.expect_err("no status").cause, Cause::NoStatus);
    }
    drop(blk);
    memory.assert_clean();
}

#[test]
fn what_the_device_cannot_do_is_not_asked() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(64));
    let out_of_range = |start, count| Cause::OutOfRange {
        start,
        count,
        capacity: 64,
    };
    let cases = [
        (Request::read(63, buffer(1024)), out_of_range(63, 2)),
        (Request::read(64, buffer(512)), out_of_range(64, 1)),
        (
            Request::write(u64::MAX, buffer(512)),
            out_of_range(u64::MAX, 1),
        ),
        (
            Request::read(0, buffer(100)),
            Cause::Misaligned {
                value: 100,
                unit: 512,
            },
        ),
        (Request::read(0, buffer(0)), Cause::EmptyRequest),
        (Request::write(0, Vec::<Buffer>::new()), Cause::EmptyRequest),
        (
            Request::write(0, vec![buffer(512), buffer(0)]),
            Cause::EmptyRequest,
        ),
        (Request::discard(&[]).expect("memory"), Cause::EmptyRequest),
        (
            Request::discard(&[7..7]).expect("memory"),
            Cause::EmptyRequest,
        ),
        (
            Request::discard(&[63..65]).expect("memory"),
            out_of_range(63, 2),
        ),
        (
            Request::write_zeroes(&[0..5000], false).expect("memory"),
            Cause::RangeTooLong {
                sectors: 5000,
                max: 4096,
            },
        ),
        (
            Request::write_zeroes(&[0..1, 2..3], false).expect("memory"),
            Cause::TooManyRanges { ranges: 2, max: 1 },
        ),
    ];
    for (request, cause) in cases {
        assert_eq!(rejection(&mut blk, request), cause);
    }
    assert_eq!(device.requests(0), 0);
    device.with(|disk| assert!(disk.log.is_empty()));
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_read_only_disk_is_read() {
    let memory = Memory::fresh();
    let (_, mut blk) = open(FakeBlk::read_only(8));
    assert!(blk.config().read_only);
    let writes = [
        Request::write(0, buffer(512)),
        Request::discard(&[0..1]).expect("memory"),
        Request::write_zeroes(&[0..1], false).expect("memory"),
    ];
    for request in writes {
        assert_eq!(rejection(&mut blk, request), Cause::ReadOnly);
    }
    perform(&mut blk, Request::read(0, buffer(512)))
        .1
        .expect("done");
    drop(blk);
    memory.assert_clean();
}

#[test]
fn blocks_of_4096_bytes_are_read_whole() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(64);
    disk.block_size = 4096;
    let (_, mut blk) = open(disk);
    assert_eq!(blk.config().block_size, 4096);
    assert_eq!(blk.config().physical_block_size(), Some(32768));
    let unit = |value, unit| Cause::Misaligned { value, unit };
    let request = Request::read(8, buffer(512));
    assert_eq!(rejection(&mut blk, request), unit(512, 4096));
    let request = Request::read(4, buffer(4096));
    assert_eq!(rejection(&mut blk, request), unit(4, 8));
    let request = Request::discard(&[8..12]).expect("memory");
    assert_eq!(rejection(&mut blk, request), unit(2048, 4096));
    // Whole blocks together, whatever the pieces.
    let pieces = vec![buffer(1000), buffer(3000), buffer(96)];
    perform(&mut blk, Request::read(8, pieces)).1.expect("done");
    drop(blk);
    memory.assert_clean();
}

#[test]
fn requests_have_as_many_segments_as_device_and_queue_allow() {
    let memory = Memory::fresh();
    for (seg_max, queue_size, allowed) in [(254, 256, 254), (3, 256, 3), (254, 16, 14)] {
        for declined in [RingFeatures::empty(), RingFeatures::INDIRECT_DESC] {
            let mut disk = FakeBlk::new(512);
            disk.seg_max = seg_max;
            let (device, mut blk) = open_with(
                disk,
                Options {
                    queue_size,
                    declined: declined.bits(),
                },
            );
            assert_eq!(blk.segments_max(), allowed);
            let data: Vec<Vec<u8>> = (0..allowed as u64).map(|seed| bytes(512, seed)).collect();
            let buffers: Vec<Buffer> = data.iter().cloned().map(Buffer::from).collect();
            perform(&mut blk, Request::write(5, buffers))
                .1
                .expect("done");
            device.with(|disk| assert_eq!(disk.disk[5 * 512..][..allowed * 512], data.concat()));
            let buffers: Vec<Buffer> = (0..allowed).map(|_| buffer(512)).collect();
            let (request, result) = perform(&mut blk, Request::read(5, buffers));
            result.expect("done");
            let Data::Several(buffers) = request.into_data() else {
                panic!("other buffers than were given");
            };
            assert!(buffers.iter().map(|buffer| &buffer[..]).eq(&data));

            let buffers: Vec<Buffer> = (0..=allowed).map(|_| buffer(512)).collect();
            let cause = Cause::TooManySegments {
                segments: allowed + 1,
                max: allowed,
            };
            assert_eq!(rejection(&mut blk, Request::read(0, buffers)), cause);
        }
    }
    memory.assert_clean();
}

#[test]
fn a_buffer_longer_than_a_segment_may_be_goes_in_pieces() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(64);
    disk.features |= Features::SIZE_MAX.bits();
    disk.size_max = 700;
    let (device, mut blk) = open(disk);
    let written = bytes(8 * 512, 9);
    perform(&mut blk, Request::write(1, Buffer::from(written.clone())))
        .1
        .expect("done");
    device.with(|disk| assert_eq!(disk.disk[512..9 * 512], *written));
    let (request, result) = perform(&mut blk, Request::read(1, buffer(8 * 512)));
    result.expect("done");
    assert_eq!(*request.into_buffer().expect("one"), *written);
    drop(blk);
    memory.assert_clean();
}

#[test]
fn the_bounds_of_segments_hold_for_every_request_with_data() {
    let memory = Memory::fresh();
    const RANGES: &[core::ops::Range<u64>] = &[0..8, 16..24, 32..40];
    let requests: [(fn() -> Request, usize); 4] = [
        (|| Request::read(0, buffer(512)), 32),
        (|| Request::get_id().expect("memory"), 2),
        (|| Request::discard(RANGES).expect("memory"), 3),
        (|| Request::write_zeroes(RANGES, true).expect("memory"), 3),
    ];
    for seg_max in [1, 2, 3, 31, 32] {
        let mut disk = FakeBlk::new(64);
        disk.features |= Features::SIZE_MAX.bits();
        (disk.size_max, disk.seg_max, disk.max_ranges) = (16, seg_max, 3);
        let (_, mut blk) = open(disk);
        for (request, segments) in requests {
            let max = seg_max as usize;
            if segments > max {
                let cause = Cause::TooManySegments { segments, max };
                assert_eq!(rejection(&mut blk, request()), cause);
            } else {
                perform(&mut blk, request()).1.expect("done");
            }
        }
    }
    memory.assert_clean();
}

#[test]
fn without_a_feature_its_requests_are_not_sent() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(8);
    disk.features = 0;
    let (_, mut blk) = open(disk);
    let bare = Config {
        capacity: 8,
        block_size: 512,
        read_only: false,
        size_max: None,
        seg_max: None,
        geometry: None,
        topology: None,
        discard: None,
        write_zeroes: None,
        flush: false,
        cache_mode: CacheMode::WriteThrough,
    };
    assert_eq!(blk.config(), bare);
    let requests = [
        Request::flush(),
        Request::discard(&[0..1]).expect("memory"),
        Request::write_zeroes(&[0..1], false).expect("memory"),
    ];
    for request in requests {
        assert_eq!(rejection(&mut blk, request), Cause::Unsupported);
    }
    let error = blk
        .set_cache_mode(CacheMode::WriteBack)
        .expect_err("no CONFIG_WCE");
    assert_eq!(error.cause, Cause::Unsupported);
    drop(blk);
    memory.assert_clean();
}

#[test]
fn the_cache_mode_is_the_device_s() {
    let memory = Memory::fresh();
    let (device, blk) = open(FakeBlk::new(8));
    assert_eq!(blk.config().cache_mode, CacheMode::WriteBack);
    for (mode, writeback) in [
        (CacheMode::WriteThrough, false),
        (CacheMode::WriteBack, true),
    ] {
        assert_eq!(blk.set_cache_mode(mode), Ok(mode));
        device.with(|disk| assert_eq!(disk.writeback, writeback));
        assert_eq!(blk.config().cache_mode, mode);
    }
    drop(blk);
    memory.assert_clean();
}

#[test]
fn an_impossible_configuration_is_refused() {
    let memory = Memory::fresh();
    type Spoil = fn(&mut FakeBlk);
    let cases: [(&str, u64, Spoil); 3] = [
        ("blk_size", 0, |disk| disk.block_size = 0),
        ("blk_size", 256, |disk| disk.block_size = 256),
        ("blk_size", 513, |disk| disk.block_size = 513),
    ];
    for (field, value, spoil) in cases {
        let mut disk = FakeBlk::new(8);
        spoil(&mut disk);
        assert_eq!(refusal(disk), Cause::BadConfig { field, value });
        memory.assert_clean();
    }
}

/// QEMU's storage daemon says that a segment has 0 bytes at most; no limit can be 0.
#[test]
fn a_limit_of_zero_is_none() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(512);
    disk.features |= Features::SIZE_MAX.bits();
    (disk.size_max, disk.seg_max) = (0, 0);
    (disk.max_range_sectors, disk.max_ranges) = (0, 0);
    let (device, mut blk) = open(disk);
    let config = blk.config();
    assert_eq!((config.size_max, config.seg_max), (None, Some(1)));
    let discard = DiscardLimits {
        max_sectors: u32::MAX,
        max_ranges: 1,
        alignment: 8,
    };
    assert_eq!(config.discard, Some(discard));
    let write_zeroes = WriteZeroesLimits {
        max_sectors: u32::MAX,
        max_ranges: 1,
        may_unmap: true,
    };
    assert_eq!(config.write_zeroes, Some(write_zeroes));
    let written = bytes(512 * 512, 4);
    let write = Request::write(0, Buffer::from(written.clone()));
    // The model is as strict as a device that means what it says.
    device.with(|disk| (disk.size_max, disk.seg_max) = (u32::MAX, 1));
    perform(&mut blk, write).1.expect("done");
    device.with(|disk| assert_eq!(disk.disk, written));
    drop(blk);
    memory.assert_clean();
}

#[test]
fn advice_that_cannot_be_followed_is_passed_over() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(8);
    // With eight of them in a physical block.
    disk.block_size = 1 << 29;
    let (_, blk) = open(disk);
    assert_eq!(blk.config().topology, None);
    assert_eq!(blk.config().physical_block_size(), None);
    drop(blk);
    memory.assert_clean();
}

/// So that a buffer which is aligned to blocks is so in all its pieces.
#[test]
fn the_pieces_of_a_buffer_are_whole_blocks_where_they_can_be() {
    let memory = Memory::fresh();
    for (size_max, block_size, longest) in [
        (700, 512, 512),
        (65536, 512, 65536),
        (9000, 4096, 8192),
        // No block fits.
        (700, 4096, 700),
    ] {
        let mut disk = FakeBlk::new(64);
        disk.features |= Features::SIZE_MAX.bits();
        (disk.size_max, disk.block_size) = (size_max, block_size);
        let (device, mut blk) = open(disk);
        let block = block_size as usize;
        let data = Buffer::aligned(5 * block, block).expect("memory");
        perform(&mut blk, Request::write(0, data)).1.expect("done");
        let segments = (5 * block).div_ceil(longest);
        let lens = device.with(|disk| disk.data_segments.clone());
        assert_eq!(lens.len(), segments, "{size_max} of {block_size}");
        let others = lens.iter().rev().skip(1);
        assert!(
            others.clone().all(|len| *len as usize == longest),
            "{lens:?}"
        );
        drop(blk);
    }
    memory.assert_clean();
}

#[test]
fn a_queue_too_small_for_data_is_refused() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(8);
    disk.queue_size = 2;
    assert_eq!(refusal(disk), Cause::QueueSize { size: 2, max: 2 });
    memory.assert_clean();
}

#[test]
fn a_failure_on_the_way_leaves_nothing_behind() {
    let memory = Memory::fresh();
    let mut failures = 0;
    for allocations in 0.. {
        let device = FakeDevice::new(FakeBlk::new(8));
        memory.fail_allocations_after(allocations);
        let made = Disk::new(device.transport(), Options::default());
        memory.fail_allocations_after(None);
        match made {
            Ok(_) => break,
            Err(error) => assert_eq!(error.cause, Cause::NoDmaMemory),
        }
        assert!(device.status().contains(Status::FAILED));
        memory.assert_clean();
        failures += 1;
    }
    assert_eq!(failures, 1, "the queue");
    let device = FakeDevice::new(FakeBlk::new(8));
    device.inject(Fault::NeedsReset);
    let made = Disk::new(device.transport(), Options::default());
    assert_eq!(made.err().map(|error| error.cause), Some(Cause::NeedsReset));
    memory.assert_clean();
}

#[test]
fn ring_features_can_be_declined() {
    let memory = Memory::fresh();
    let both = RingFeatures::INDIRECT_DESC | RingFeatures::EVENT_IDX;
    let options = Options {
        declined: both.bits(),
        ..Options::default()
    };
    let (device, mut blk) = open_with(FakeBlk::new(8), options);
    assert_eq!(device.driver_features() & both.bits(), 0);
    perform(&mut blk, Request::read(0, buffer(512)))
        .1
        .expect("done");
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_batch_is_one_kick_and_comes_back_in_the_device_s_order() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(256));
    device.set_order(Order::Shuffled(7));
    device.set_pace(Pace::Manual);
    device.with(|disk| disk.disk = bytes(256 * 512, 3));
    let sectors: Vec<u64> = (0..256).collect();
    for sector in &sectors {
        blk.submit(Request::read(*sector, buffer(512)))
            .expect("room");
    }
    let full = rejection(&mut blk, Request::read(0, buffer(512)));
    assert_eq!(full, Cause::QueueFull);
    blk.kick();
    device.pump();
    let mut order = Vec::new();
    while let Some(finished) = blk.poll().expect("an honest ring") {
        finished.result.expect("done");
        let sector = finished.request.sector();
        let data = finished.request.into_buffer().expect("one");
        device.with(|disk| assert_eq!(*data, disk.disk[sector as usize * 512..][..512]));
        order.push(sector);
    }
    assert_ne!(order, sectors, "the device was told to shuffle");
    order.sort_unstable();
    assert_eq!(order, sectors);
    assert_eq!(device.notifications(0), 1);
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_resize_is_seen_and_counts_at_once() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(8));
    assert!(matches!(
        rejection(&mut blk, Request::read(8, buffer(512))),
        Cause::OutOfRange { .. }
    ));
    let (sender, changes) = std::sync::mpsc::channel();
    device.on_interrupt(move |interrupt| sender.send(interrupt).expect("a receiver"));
    device.change_config(|disk| disk.disk.resize(16 * 512, 7));
    assert_eq!(changes.try_recv(), Ok(Interrupt::Config));
    let change = blk.config_changed().expect("an honest device");
    let change = change.expect("a change");
    assert_eq!((change.old.capacity, change.new.capacity), (8, 16));
    assert_eq!(change.new.bytes(), 16 * 512);
    perform(&mut blk, Request::read(8, buffer(512)))
        .1
        .expect("done");
    assert_eq!(blk.config_changed(), Ok(None));
    assert_eq!(blk.report().config_changes, 1);

    // An impossible one is refused, and the old one stays.
    device.change_config(|disk| disk.block_size = 3);
    let error = blk.config_changed().expect_err("3-byte blocks");
    assert_eq!(
        error.cause,
        Cause::BadConfig {
            field: "blk_size",
            value: 3
        }
    );
    assert_eq!(blk.config().capacity, 16);
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_change_of_the_limits_counts_at_once() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(64));
    let room = blk.segments_max();
    let read = |segments: usize| {
        let buffers: Vec<_> = (0..segments).map(|_| buffer(512)).collect();
        Request::read(0, buffers)
    };
    for max in [3, 1, 7, 1000] {
        device.change_config(|disk| disk.seg_max = max);
        blk.config_changed().expect("an honest device");
        let max = room.min(max as usize);
        assert_eq!(blk.segments_max(), max);
        if max < room {
            let segments = max + 1;
            assert_eq!(
                rejection(&mut blk, read(segments)),
                Cause::TooManySegments { segments, max }
            );
        }
        perform(&mut blk, read(max.min(64)))
            .1
            .expect("as many as allowed");
    }
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_device_that_wants_a_reset_says_so_and_starts_again() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(8));
    device.set_pace(Pace::Manual);
    let token = blk.submit(Request::read(1, buffer(512))).expect("room");
    blk.kick();
    device.inject(Fault::NeedsReset);
    assert_eq!(
        blk.config_changed().expect_err("needs reset").cause,
        Cause::NeedsReset
    );
    let returned = blk.reset().expect("an honest device");
    let [(back, request)] = &returned[..] else {
        panic!("{returned:?}");
    };
    assert_eq!((*back, request.sector()), (token, 1));
    assert_eq!(rejection(&mut blk, Request::flush()), Cause::QueueBroken);
    device.heal();
    device.set_pace(Pace::OnNotify);
    blk.restart().expect("healed");
    perform(&mut blk, Request::read(1, buffer(512)))
        .1
        .expect("done");
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_silent_device_costs_the_time_allowed_and_no_memory() {
    let memory = Memory::fresh();
    let (device, blk) = open(FakeBlk::new(8));
    let mut blk = Blocking::new(blk);
    device.set_pace(Pace::Manual);
    let mut calls = 0;
    let failed = blk.read(0, buffer(512), || {
        calls += 1;
        calls < 10
    });
    let failed = failed.expect_err("nobody answers");
    assert_eq!((failed.error.cause, calls), (Cause::Timeout, 10));
    assert!(failed.request.is_none(), "the device has the buffer");
    assert_eq!(memory.live().1, 1, "and may write to it");
    // The late answer is not taken for the next request's.
    device.with(|disk| disk.disk[512..1024].fill(7));
    let pump = || {
        device.pump();
        true
    };
    let read = blk.read(1, buffer(512), pump).expect("both are answered");
    assert_eq!(*read, [7; 512]);
    assert_eq!(memory.live().1, 0);
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_queue_full_of_late_requests_is_waited_for() {
    let memory = Memory::fresh();
    let options = Options {
        queue_size: 4,
        ..Options::default()
    };
    let (device, blk) = open_with(FakeBlk::new(8), options);
    let mut blk = Blocking::new(blk);
    device.set_pace(Pace::Manual);
    for _ in 0..4 {
        let failed = blk
            .read(0, buffer(512), turns(1))
            .expect_err("nobody answers");
        assert!(failed.request.is_none());
    }
    let failed = blk.read(0, buffer(512), turns(3)).expect_err("no room");
    assert_eq!(failed.error.cause, Cause::Timeout);
    assert!(failed.request.is_some(), "the device never had the buffer");
    blk.read(0, buffer(512), || {
        device.pump();
        true
    })
    .expect("the device is back");
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_device_that_breaks_the_ring_while_room_is_waited_for_is_reset() {
    for comes_back in [true, false] {
        let memory = Memory::fresh();
        let options = Options {
            queue_size: 4,
            declined: RingFeatures::INDIRECT_DESC.bits(),
        };
        let (device, blk) = open_with(FakeBlk::new(8), options);
        let mut blk = Blocking::new(blk);
        device.set_pace(Pace::Manual);
        blk.read(0, buffer(512), turns(2)).expect_err("no answer");
        let mut breaks = || {
            if !comes_back {
                device.inject(Fault::ResetNeverEnds);
            }
            device.claim_used(0, 99, 0);
            true
        };
        let failed = blk.read(0, buffer(512), &mut breaks);
        let failed = failed.expect_err("it lies");
        assert_eq!(failed.error.cause, Cause::BadUsedId { id: 99 });
        let request = failed.request.expect("the device never had it");
        assert_eq!(request.len(), 512);
        // The first one came back from the reset, if there was one, and nobody waits for it.
        assert_eq!(memory.live().1, usize::from(!comes_back));
        device.heal();
        blk.driver().restart().expect("honest again");
        device.set_pace(Pace::OnNotify);
        blk.read(0, request, turns(2)).expect("an honest device");
        drop(blk);
        memory.assert_clean();
    }
}

#[test]
fn a_request_gives_its_buffers_back_whatever_it_is() {
    let flush = Request::flush();
    assert!(flush.data().buffers().is_empty());
    assert!(flush.id().is_empty());
    assert!(flush.into_buffer().is_none());
    let read = Request::read(0, vec![buffer(512), buffer(512)]);
    assert_eq!(read.data().buffers().len(), 2);
    assert!(read.into_buffer().is_none(), "there are two");
    let read = Request::read(0, Buffer::from(b"not a name".to_vec()));
    assert!(read.id().is_empty());
    assert_eq!(read.into_buffer().as_deref(), Some(&b"not a name"[..]));
}

#[test]
fn a_device_that_breaks_the_ring_is_reset_and_the_buffer_comes_back() {
    let memory = Memory::fresh();
    for fault in [
        Fault::UsedId(77),
        Fault::UsedIdNotInFlight,
        Fault::UsedIndexAhead(5),
        Fault::Noise(3),
    ] {
        let (device, blk) = open(FakeBlk::new(8));
        let mut blk = Blocking::new(blk);
        device.inject(fault);
        let failed = blk.read(0, buffer(512), turns(10)).expect_err("a lie");
        let cause = failed.error.cause;
        assert!(
            matches!(cause, Cause::BadUsedId { .. } | Cause::BadUsedIndex { .. }),
            "{fault:?}: {cause}"
        );
        assert_eq!(failed.request.map(|buffer| buffer.len()), Some(512));
        device.heal();
        blk.driver().restart().expect("healed");
        blk.read(0, buffer(512), turns(1))
            .expect("an honest answer");
        drop(blk);
        memory.take_violations();
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_cannot_be_reset_keeps_its_memory() {
    let memory = Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(8));
    device.set_pace(Pace::Manual);
    blk.submit(Request::read(0, buffer(512))).expect("room");
    blk.kick();
    device.inject(Fault::ResetNeverEnds);
    let error = blk.reset().expect_err("it never ends");
    assert!(matches!(error.cause, Cause::ResetTimeout { .. }));
    let (allocations, loans) = memory.live();
    drop(blk);
    assert_eq!(memory.live(), (allocations, loans), "leaked on purpose");
    assert_eq!(loans, 1);
    // It still writes, and harms nobody.
    device.pump();
    memory.assert_no_violations();
}

#[test]
fn other_devices_are_refused() {
    Memory::fresh();
    let device = FakeDevice::new(vringlet::fake::FakeNic::new());
    let made = Blk::new(device.transport(), Options::default());
    let error = made.err().expect("not a disk");
    assert_eq!(error.cause, Cause::WrongDeviceType { expected: 2 });
}

/// Any mixture of requests leaves the disk as a plain array would be.
#[test]
fn random_work_on_the_disk_equals_work_on_an_array() {
    for seed in 0..20 {
        let memory = Memory::fresh();
        let mut random = Random::new(seed);
        let sectors = 128;
        let declined = RingFeatures::from_bits_truncate(random.next() & (3 << 28));
        let options = Options {
            queue_size: 64,
            declined: declined.bits(),
        };
        let (device, mut blk) = open_with(FakeBlk::new(sectors), options);
        device.set_order(Order::Shuffled(seed));
        let mut model = vec![0; sectors * 512];
        for _ in 0..200 {
            let start = random.below(sectors);
            let count = 1 + random.below(16.min(sectors - start));
            let range = start * 512..(start + count) * 512;
            match random.below(4) {
                0 => {
                    let data = bytes(count * 512, random.next());
                    model[range].copy_from_slice(&data);
                    // Cut where it comes.
                    let cut = 1 + random.below(data.len() - 1);
                    let (head, tail) = data.split_at(cut);
                    let pieces = vec![Buffer::from(head.to_vec()), Buffer::from(tail.to_vec())];
                    perform(&mut blk, Request::write(start as u64, pieces))
                        .1
                        .expect("done");
                }
                1 => {
                    let zeroed = start as u64..(start + count) as u64;
                    model[range].fill(0);
                    let request = Request::write_zeroes(&[zeroed], false).expect("memory");
                    perform(&mut blk, request).1.expect("done");
                }
                _ => {
                    let request = Request::read(start as u64, buffer(count * 512));
                    let (request, result) = perform(&mut blk, request);
                    result.expect("done");
                    assert_eq!(*request.into_buffer().expect("one"), model[range]);
                }
            }
        }
        device.with(|disk| assert_eq!(disk.disk, model));
        let name = blk.name();
        assert_eq!(name, device.name());
        drop(blk);
        memory.assert_clean();
    }
}

#[test]
fn the_transport_is_still_the_caller_s_to_ask() {
    Memory::fresh();
    let (device, mut blk) = open(FakeBlk::new(8));
    perform(&mut blk, Request::read(0, buffer(512)))
        .1
        .expect("done");
    assert!(!blk.take_interrupt_causes().is_empty());
    assert!(blk.take_interrupt_causes().is_empty());
    assert_eq!(device.transport().name(), blk.name());
}
