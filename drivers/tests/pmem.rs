//! The pmem device: its region, and flushes shared by their callers, against a fake that is as choosy as QEMU's.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use vringlet::asynchronous::Asynchronous;
use vringlet::blocking::Blocking;
use vringlet::fake::{
    FakeDevice, FakeDma, FakePci, FakePmem, FakeTransport, Fault, Memory, Pace, PciLayout, Random,
};
use vringlet::features::RingFeatures;
use vringlet::pmem::{Config, Features, Flush, Options, Pmem};
use vringlet::transport::InterruptCauses;
use vringlet::{Cause, Driver, PciTransport, Token};

type Fake = Pmem<FakeTransport<FakePmem>>;

const QUEUE: u16 = 0;

fn open_with(model: FakePmem, options: Options) -> (FakeDevice<FakePmem>, Fake) {
    let device = FakeDevice::new(model);
    let pmem = Pmem::new(device.transport(), options).expect("an honest device");
    (device, pmem)
}

fn open() -> (FakeDevice<FakePmem>, Fake) {
    open_with(FakePmem::new(64), Options::default())
}

/// With a device that begins and finishes when told.
fn open_slow() -> (FakeDevice<FakePmem>, Fake) {
    let (device, pmem) = open();
    device.set_pace(Pace::Manual);
    (device, pmem)
}

fn refusal(model: FakePmem) -> Cause {
    let device = FakeDevice::new(model);
    match Fake::new(device.transport(), Options::default()) {
        Ok(_) => panic!("the device was accepted"),
        Err(error) => error.cause,
    }
}

fn turns(mut turns: usize) -> impl FnMut() -> bool {
    move || {
        turns = turns.saturating_sub(1);
        turns > 0
    }
}

fn write(device: &FakeDevice<FakePmem>, at: usize, value: u8) {
    device.with(|model| model.memory[at] = value);
}

fn persistent(device: &FakeDevice<FakePmem>, at: usize) -> u8 {
    device.with(|model| model.persistent[at])
}

fn begin(device: &FakeDevice<FakePmem>) {
    device.complete(QUEUE, 0);
}

fn finish(device: &FakeDevice<FakePmem>) {
    device.complete(QUEUE, 1);
}

fn ask(pmem: &mut Fake) -> Token {
    let token = pmem.submit(Flush).expect("room");
    pmem.kick();
    token
}

/// Who is told what, until there is nothing more.
fn answers(pmem: &mut Fake) -> Vec<(Token, Result<(), Cause>)> {
    let mut answers = Vec::new();
    while let Some(finished) = pmem.poll().expect("an honest ring") {
        answers.push((finished.token, finished.result.map_err(|error| error.cause)));
    }
    answers
}

/// One notification for each request, none for nothing.
fn assert_notified_once_each(device: &FakeDevice<FakePmem>) {
    let flushes = device.with(|model| model.flushes);
    assert_eq!(device.notifications(QUEUE), flushes);
    assert_eq!(device.needless_notifications(QUEUE), 0);
}

#[test]
fn a_flush_makes_persistent_what_was_written() {
    for declined in [
        RingFeatures::empty(),
        RingFeatures::EVENT_IDX,
        RingFeatures::INDIRECT_DESC,
    ] {
        let memory = Memory::fresh();
        let options = Options {
            declined: declined.bits(),
            ..Options::default()
        };
        let (device, pmem) = open_with(FakePmem::new(64), options);
        let mut pmem = Blocking::new(pmem);
        for value in 1..=200 {
            write(&device, 5, value);
            assert_eq!(persistent(&device, 5), value - 1);
            pmem.flush(turns(1)).expect("done");
            assert_eq!(persistent(&device, 5), value);
        }
        assert_notified_once_each(&device);
        let report = pmem.into_inner().report();
        assert_eq!(report.counters[0], ("flushes", 200));
        assert_eq!(report.counters[1], ("flushes_shared", 0));
        assert_eq!(report.queues[0].stats.kicks, 200);
        memory.assert_clean();
    }
}

#[test]
fn flushes_asked_for_before_the_kick_share_one_request() {
    let memory = Memory::fresh();
    let (device, mut pmem) = open();
    let tokens: Vec<Token> = (0..5).map(|_| pmem.submit(Flush).expect("room")).collect();
    assert!(answers(&mut pmem).is_empty());
    pmem.kick();
    pmem.kick();
    let all: Vec<_> = tokens.iter().map(|token| (*token, Ok(()))).collect();
    assert_eq!(answers(&mut pmem), all);
    assert_eq!(device.with(|model| model.flushes), 1);
    assert_notified_once_each(&device);
    assert_eq!(pmem.report().counters[1], ("flushes_shared", 4));
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn a_flush_under_way_does_not_count_for_a_later_write() {
    let memory = Memory::fresh();
    let (device, mut pmem) = open_slow();
    write(&device, 0, 1);
    let first = ask(&mut pmem);
    begin(&device);
    // The device has begun; what is written now it may or may not see.
    write(&device, 1, 1);
    let second = ask(&mut pmem);
    let third = ask(&mut pmem);
    assert_eq!(device.notifications(QUEUE), 1, "one at a time");
    finish(&device);
    assert_eq!(answers(&mut pmem), [(first, Ok(()))]);
    assert_eq!((persistent(&device, 0), persistent(&device, 1)), (1, 0));
    // The next one was sent with the completion of the first, for both.
    assert_eq!(device.notifications(QUEUE), 2);
    finish(&device);
    assert_eq!(answers(&mut pmem), [(second, Ok(())), (third, Ok(()))]);
    assert_eq!(persistent(&device, 1), 1);
    assert_eq!(device.with(|model| model.flushes), 2);
    assert_notified_once_each(&device);
    drop(pmem);
    memory.assert_clean();
}

/// Callers, writes and a device at random: whoever is told "done" finds what he wrote, and waits for two flushes at most.
#[test]
fn flushes_complete_neither_too_early_nor_too_late() {
    for seed in 0..200 {
        let memory = Memory::fresh();
        let mut random = Random::new(seed);
        let (device, mut pmem) = open_slow();
        let mut writes = 0u8;
        // Who waits: what he wrote, and how many flushes had been finished when he asked.
        let mut waiting: Vec<(Token, u8, u64)> = Vec::new();
        let (mut finished, mut told) = (0, 0);
        while told < 100 {
            match random.below(6) {
                0 | 1 if writes < 200 => {
                    writes += 1;
                    write(&device, 0, writes);
                    let token = pmem.submit(Flush).expect("room");
                    waiting.push((token, writes, finished));
                }
                2 => pmem.kick(),
                3 => begin(&device),
                4 => {
                    let held = device.complete(QUEUE, 1) as u64;
                    finished = device.with(|model| model.flushes) - held;
                }
                _ => {
                    for (token, result) in answers(&mut pmem) {
                        assert_eq!(result, Ok(()));
                        let place = waiting.iter().position(|(other, ..)| *other == token);
                        let (_, written, before) = waiting.remove(place.expect("he waits"));
                        assert!(persistent(&device, 0) >= written, "seed {seed}: too early");
                        assert!(finished <= before + 2, "seed {seed}: too late");
                        told += 1;
                    }
                }
            }
        }
        assert_eq!(device.needless_notifications(QUEUE), 0);
        drop(pmem);
        memory.assert_clean();
    }
}

#[test]
fn a_failed_flush_fails_only_its_own_callers() {
    let memory = Memory::fresh();
    for ret in [1, 5, u32::MAX] {
        let (device, mut pmem) = open_slow();
        let failing = [ask(&mut pmem)];
        device.with(|model| model.ret = ret);
        begin(&device);
        device.with(|model| model.ret = 0);
        let later = [ask(&mut pmem), ask(&mut pmem)];
        finish(&device);
        let failed = Err(Cause::FlushFailed { ret });
        assert_eq!(answers(&mut pmem), failing.map(|token| (token, failed)));
        finish(&device);
        assert_eq!(answers(&mut pmem), later.map(|token| (token, Ok(()))));
        assert_eq!(pmem.report().counters[2], ("errors", 1));
    }
    memory.assert_clean();
}

#[test]
fn an_answer_that_is_none_is_a_failure() {
    let memory = Memory::fresh();
    let (device, mut pmem) = open();
    for len in 0..4u8 {
        device.with(|model| model.ret_len = len.into());
        let token = ask(&mut pmem);
        let len = len.into();
        let short = Cause::ShortResponse { len, need: 4 };
        assert_eq!(answers(&mut pmem), [(token, Err(short))]);
    }
    device.with(|model| model.ret_len = 4);
    device.inject(Fault::UsedLength(5));
    let token = ask(&mut pmem);
    let long = Cause::BadUsedLength { len: 5, room: 4 };
    assert_eq!(answers(&mut pmem), [(token, Err(long))]);
    let token = ask(&mut pmem);
    assert_eq!(answers(&mut pmem), [(token, Ok(()))]);
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn a_device_that_breaks_the_ring_is_reset_and_all_callers_are_told() {
    for fault in [
        Fault::UsedId(7),
        Fault::UsedIdNotInFlight,
        Fault::UsedIndexAhead(3),
        Fault::UsedTwice,
        Fault::Noise(1),
    ] {
        let memory = Memory::fresh();
        let (device, mut pmem) = open_slow();
        let first = ask(&mut pmem);
        begin(&device);
        let second = ask(&mut pmem);
        device.inject(fault);
        finish(&device);
        let mut told = Vec::new();
        let error = loop {
            match pmem.poll() {
                Ok(Some(finished)) => told.push(finished.token),
                Ok(None) => panic!("{fault:?} was believed"),
                Err(error) => break error,
            }
        };
        assert_eq!((error.device, error.queue), (device.name(), Some(QUEUE)));
        device.heal();
        let returned = pmem.reset().expect("an honest device");
        told.extend(returned.into_iter().map(|(token, _)| token));
        assert_eq!(told, [first, second]);
        let rejected = pmem.submit(Flush).expect_err("it was reset");
        assert_eq!(rejected.error.cause, Cause::QueueBroken);
        device.set_pace(Pace::OnNotify);
        pmem.restart().expect("healed");
        let token = ask(&mut pmem);
        assert_eq!(answers(&mut pmem), [(token, Ok(()))]);
        drop(pmem);
        memory.take_violations();
        memory.assert_clean();
    }
}

#[test]
fn a_silent_device_costs_the_time_allowed() {
    let memory = Memory::fresh();
    let (device, pmem) = open_slow();
    let mut pmem = Blocking::new(pmem);
    for calls in [1, 10] {
        let error = pmem.flush(turns(calls)).expect_err("nobody answers");
        assert_eq!(error.cause, Cause::Timeout);
    }
    write(&device, 3, 9);
    let pump = || {
        device.pump();
        true
    };
    pmem.flush(pump).expect("the device is back");
    assert_eq!(persistent(&device, 3), 9);
    assert_notified_once_each(&device);
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn more_callers_than_there_is_room_for_wait_their_turn() {
    let memory = Memory::fresh();
    let options = Options {
        callers: 3,
        ..Options::default()
    };
    let (device, pmem) = open_with(FakePmem::new(64), options);
    device.set_pace(Pace::Manual);
    let shared = Asynchronous::new(pmem);
    let mut context = Context::from_waker(Waker::noop());
    type Task<'a> = Pin<Box<dyn Future<Output = vringlet::Result<()>> + 'a>>;
    let mut tasks: Vec<Task<'_>> = (0..10)
        .map(|_| Box::pin(shared.flush()) as Task<'_>)
        .collect();
    tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
    assert_eq!(tasks.len(), 10);
    shared.kick();
    // One that is not waited for any more changes nothing for the others.
    drop(tasks.remove(4));
    let mut rounds = 0;
    while !tasks.is_empty() {
        rounds += 1;
        assert!(rounds < 20, "{} tasks wait for ever", tasks.len());
        device.pump();
        shared.process().expect("an honest device");
        tasks.retain_mut(|task| match task.as_mut().poll(&mut context) {
            Poll::Ready(result) => {
                result.expect("done");
                false
            }
            Poll::Pending => true,
        });
    }
    assert_notified_once_each(&device);
    drop(tasks);
    let pmem = shared.into_inner();
    let asked = pmem.report().counters[0].1;
    assert_eq!(asked, 9, "the dropped one was in the backlog");
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn tasks_await_their_flushes() {
    let memory = Memory::fresh();
    let (device, pmem) = open();
    let shared = Asynchronous::new(pmem);
    let mut context = Context::from_waker(Waker::noop());
    let task = async |at: usize| {
        for value in 1..50 {
            write(&device, at, value);
            shared.flush().await.expect("done");
            assert_eq!(persistent(&device, at), value);
        }
    };
    let (mut one, mut two) = (Box::pin(task(1)), Box::pin(task(2)));
    let (mut one_done, mut two_done) = (false, false);
    for _ in 0..1000 {
        one_done = one_done || one.as_mut().poll(&mut context).is_ready();
        two_done = two_done || two.as_mut().poll(&mut context).is_ready();
        if one_done && two_done {
            break;
        }
        // The owner's turn.
        shared.kick();
        shared.process().expect("an honest device");
    }
    assert!(one_done && two_done);
    assert!(device.with(|model| model.flushes) < 98, "some were shared");
    assert_notified_once_each(&device);
    drop((one, two));
    drop(shared);
    memory.assert_clean();
}

#[test]
fn an_impossible_region_is_refused() {
    let memory = Memory::fresh();
    let mut model = FakePmem::new(64);
    model.size = 0;
    let field = "size";
    assert_eq!(refusal(model), Cause::BadConfig { field, value: 0 });
    let mut model = FakePmem::new(64);
    (model.start, model.size) = (u64::MAX - 10, 11);
    let (field, value) = ("start", u64::MAX - 10);
    assert_eq!(refusal(model), Cause::BadConfig { field, value });
    let mut model = FakePmem::new(64);
    model.queue_size = 1;
    assert_eq!(refusal(model), Cause::QueueSize { size: 2, max: 1 });
    let device = FakeDevice::new(FakePmem::new(64));
    device.inject(Fault::ConfigNeverSettles);
    let made = Fake::new(device.transport(), Options::default());
    assert_eq!(
        made.err().map(|error| error.cause),
        Some(Cause::ConfigUnstable)
    );
    memory.assert_clean();
}

#[test]
fn the_region_may_be_a_shared_memory_region() {
    let memory = Memory::fresh();
    let mut model = FakePmem::new(64);
    model.features = Features::SHMEM_REGION.bits();
    (model.start, model.size) = (0, 0);
    let device = FakeDevice::new(model.clone());
    let layout = PciLayout {
        address: 0x10_0000_0000,
        shared_memory: Some((0, 0x20_0000)),
        ..PciLayout::default()
    };
    let pci = FakePci::new(&device, layout);
    let transport = PciTransport::with_registers(
        &mut pci.clone(),
        pci.function(),
        FakeDma::default(),
        |address, len| pci.map(address, len),
    );
    let pmem = Pmem::new(transport.expect("whole"), Options::default());
    let pmem = pmem.expect("an honest device");
    let expected = Config {
        start: 0x10_0000_4000,
        size: 0x20_0000,
    };
    assert_eq!(pmem.config(), expected);
    assert!(pmem.negotiated().has(Features::SHMEM_REGION.bits()));
    drop(pmem);

    // Where no such region is to be seen, the feature is not taken and the configuration must say it.
    (model.start, model.size) = (1 << 40, 64);
    let (_, pmem) = open_with(model.clone(), Options::default());
    assert_eq!(pmem.config().start, 1 << 40);
    assert!(!pmem.negotiated().has(Features::SHMEM_REGION.bits()));
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn a_region_that_moved_during_a_restart_is_an_error() {
    let memory = Memory::fresh();
    let (device, mut pmem) = open();
    let before = pmem.config();
    pmem.restart().expect("nothing moved");
    device.with(|model| model.start += 4096);
    let error = pmem.restart().expect_err("it moved");
    let value = before.start + 4096;
    let field = "start";
    assert_eq!(error.cause, Cause::BadConfig { field, value });
    assert_eq!(pmem.config(), before);
    let rejected = pmem.submit(Flush).expect_err("it is stopped");
    assert_eq!(rejected.error.cause, Cause::QueueBroken);
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn a_device_that_needs_a_reset_is_an_error() {
    let memory = Memory::fresh();
    let (device, pmem) = open();
    pmem.config_changed().expect("it works");
    device.inject(Fault::NeedsReset);
    let error = pmem.config_changed().expect_err("it gave up");
    assert_eq!(error.cause, Cause::NeedsReset);
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn other_devices_and_no_callers_are_refused() {
    Memory::fresh();
    let device = FakeDevice::new(vringlet::fake::FakeBlk::new(1));
    let made = Pmem::new(device.transport(), Options::default());
    let cause = made.err().map(|error| error.cause);
    assert_eq!(cause, Some(Cause::WrongDeviceType { expected: 27 }));
    let device = FakeDevice::new(FakePmem::new(1));
    let options = Options {
        callers: 0,
        ..Options::default()
    };
    let made = Fake::new(device.transport(), options);
    assert!(matches!(
        made.err().map(|error| error.cause),
        Some(Cause::InvalidParameter(_))
    ));
}

/// Any mixture of lies, silence and restarts: an error or an answer, and never one for two callers.
#[test]
fn a_device_that_lies_at_random_gives_errors_and_nothing_else() {
    for seed in 0..300 {
        let memory = Memory::fresh();
        let mut random = Random::new(seed);
        let (device, mut pmem) = open_slow();
        let mut waiting: Vec<Token> = Vec::new();
        for _ in 0..200 {
            match random.below(8) {
                0 | 1 => {
                    if let Ok(token) = pmem.submit(Flush) {
                        assert!(!waiting.contains(&token), "seed {seed}: a token twice");
                        waiting.push(token);
                    }
                }
                2 => pmem.kick(),
                3 => {
                    device.complete(QUEUE, random.below(3));
                }
                4 => {
                    let number = random.next() as u32;
                    device.inject(match random.below(7) {
                        0 => Fault::UsedId(number % 4),
                        1 => Fault::UsedIdNotInFlight,
                        2 => Fault::UsedTwice,
                        3 => Fault::UsedLength(number % 9),
                        4 => Fault::UsedIndexAhead(number as u16 % 5),
                        5 => Fault::UsedIndexBack(number as u16 % 5),
                        _ => Fault::Noise(number.into()),
                    });
                }
                5 if random.below(4) == 0 => {
                    device.heal();
                    for (token, _) in pmem.reset().expect("it resets") {
                        let place = waiting.iter().position(|other| *other == token);
                        waiting.remove(place.expect("he waits"));
                    }
                    assert!(waiting.is_empty(), "seed {seed}: {waiting:?} forgotten");
                    pmem.restart().expect("it starts again");
                }
                _ => {
                    while let Ok(Some(finished)) = pmem.poll() {
                        let place = waiting.iter().position(|other| *other == finished.token);
                        waiting.remove(place.expect("he waits"));
                    }
                }
            }
        }
        device.heal();
        drop(pmem);
        // What the device did to its own ring is not the driver's doing.
        memory.take_violations();
        memory.assert_clean();
    }
}

#[test]
fn interrupts_come_after_a_restart_as_before() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
    ] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakePmem::new(4096));
        device.offer(ring);
        let pmem: Fake = Pmem::new(device.transport(), Options::default()).expect("a device");
        let face = Asynchronous::new(pmem);
        let context = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            for _ in 0..3 {
                let before = device.interrupts(0);
                let mut flush = pin!(face.flush());
                assert!(flush.as_mut().poll(context).is_pending());
                face.kick();
                assert_eq!(device.interrupts(0), before + 1);
                face.process().expect("an honest device");
                assert_eq!(flush.as_mut().poll(context), Poll::Ready(Ok(())));
            }
            face.stop(face.with(|pmem| pmem.error(Cause::NeedsReset)));
            face.restart().expect("an honest device");
        }
        drop(face);
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_did_not_come_back_is_not_notified() {
    let memory = Memory::fresh();
    let (device, mut pmem) = open();
    pmem.submit(Flush).expect("room");
    device.inject(Fault::FeaturesRefused);
    pmem.restart().expect_err("it refuses");
    pmem.kick();
    assert!(pmem.submit(Flush).is_err());
    pmem.kick();
    assert!(pmem.poll().is_err());
    memory.assert_no_violations();
    device.heal();
    pmem.restart().expect("an honest device again");
    ask(&mut pmem);
    pmem.kick();
    assert_eq!(answers(&mut pmem).len(), 1);
    drop(pmem);
    memory.assert_clean();
}

#[test]
fn why_it_interrupts_is_told_once() {
    let memory = Memory::fresh();
    let (device, mut pmem) = open_slow();
    assert_eq!(pmem.in_flight(), 0);
    pmem.submit(Flush).expect("room");
    pmem.kick();
    assert_eq!(pmem.in_flight(), 1);
    device.change_config(|_| ());
    assert!(
        pmem.take_interrupt_causes()
            .contains(InterruptCauses::CONFIG)
    );
    assert!(pmem.take_interrupt_causes().is_empty());
    drop(pmem);
    memory.assert_clean();
}
