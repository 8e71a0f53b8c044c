//! Devices that break the rules: each way ends in an error that names device and queue, and in nothing else.

mod common;

use common::{Data, Echo, EchoQueue, start};
use vringlet::authoring::queue::{Queue, QueueOptions};
use vringlet::authoring::start::{driver_ok, negotiate};
use vringlet::blk::Blk;
use vringlet::fake::{
    DeviceModel, FakeBlk, FakeDevice, FakeGpu, FakeNic, FakeSound, FakeTransport, Fault, Memory,
    Order, Pace, Random,
};
use vringlet::features::RingFeatures;
use vringlet::gpu::Gpu;
use vringlet::net::Net;
use vringlet::sound::Sound;
use vringlet::transport::Status;
use vringlet::{Cause, Transport};

struct Setup {
    memory: Memory,
    device: FakeDevice<Echo>,
    transport: FakeTransport<Echo>,
    queue: EchoQueue<Data>,
}

/// A queue of eight descriptors with nothing in flight; the device works when pumped.
fn setup() -> Setup {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    device.set_pace(Pace::Manual);
    let mut transport = device.transport();
    let queue = start(&mut transport, QueueOptions::default(), 0);
    Setup {
        memory,
        device,
        transport,
        queue,
    }
}

impl Setup {
    fn send(&mut self, count: usize) {
        for _ in 0..count {
            self.queue.submit(&[], Data::new(b"abc", 8)).expect("room");
        }
        self.queue.kick();
    }

    /// Polls until there is nothing more; the number of good completions, and the error if there was one.
    fn drain(&mut self) -> (usize, Option<Cause>) {
        let mut count = 0;
        loop {
            match self.queue.poll(&mut []) {
                Ok(Some(_)) => count += 1,
                Ok(None) => return (count, None),
                Err(error) => {
                    assert_eq!(error.device, self.device.name());
                    assert_eq!(error.queue, Some(0));
                    return (count, Some(error.cause));
                }
            }
        }
    }

    /// After an error: the queue takes nothing more, and a reset gives everything back.
    fn assert_broken_then_recover(mut self, in_flight: usize) {
        let rejected = self.queue.submit(&[], Data::new(b"x", 1));
        assert_eq!(
            rejected.err().map(|rejected| rejected.error.cause),
            Some(Cause::QueueBroken)
        );
        assert_eq!(self.drain(), (0, Some(Cause::QueueBroken)));
        assert!(!self.queue.has_completions());
        assert!(self.queue.stats().violations > 0);
        self.device.heal();
        let proof = self.transport.reset().expect("it resets");
        assert_eq!(self.queue.release(&proof).len(), in_flight);
        drop(self.queue);
        self.memory.assert_clean();

        // The device is as good as new.
        self.device.set_pace(Pace::OnNotify);
        let mut queue = start(&mut self.transport, QueueOptions::default(), 0);
        queue.submit(&[], Data::new(b"again", 8)).expect("room");
        queue.kick();
        assert!(queue.poll(&mut []).expect("healed").is_some());
        queue.release(&self.transport.reset().expect("it resets"));
        drop(queue);
        self.memory.assert_clean();
    }
}

// Bug 4 of others: used ids and lengths believed.

#[test]
fn an_id_out_of_range_breaks_the_queue() {
    for id in [8, 9, 0xffff, 0x1_0000, u32::MAX] {
        let mut setup = setup();
        setup.device.inject(Fault::UsedId(id));
        setup.send(3);
        setup.device.pump();
        assert_eq!(setup.drain(), (0, Some(Cause::BadUsedId { id })));
        setup.assert_broken_then_recover(3);
    }
}

#[test]
fn an_id_that_is_not_in_flight_breaks_the_queue() {
    let mut setup = setup();
    setup.device.inject(Fault::UsedIdNotInFlight);
    setup.send(2);
    setup.device.pump();
    assert_eq!(setup.drain(), (0, Some(Cause::BadUsedId { id: 2 })));
    setup.assert_broken_then_recover(2);
}

#[test]
fn a_double_completion_breaks_the_queue() {
    let mut setup = setup();
    setup.send(1);
    setup.device.pump();
    assert_eq!(setup.drain(), (1, None));
    setup.device.inject(Fault::UsedTwice);
    setup.send(3);
    // One of three, twice.
    setup.device.complete(0, 1);
    let (good, cause) = setup.drain();
    assert_eq!(good, 1);
    assert!(matches!(cause, Some(Cause::BadUsedId { .. })), "{cause:?}");
    setup.assert_broken_then_recover(2);
}

#[test]
fn a_length_beyond_the_buffer_is_reported_and_the_buffer_comes_back() {
    for len in [9, 65535, u32::MAX] {
        let mut setup = setup();
        setup.device.inject(Fault::UsedLength(len));
        setup.send(2);
        setup.device.pump();
        let completion = setup.queue.poll(&mut []).expect("no harm to the queue");
        let completion = completion.expect("one");
        let room = 8;
        assert_eq!(completion.written, Err(Cause::BadUsedLength { len, room }));
        assert_eq!(completion.payload.writable().len(), 8);
        // The next one is not affected.
        let next = setup.queue.poll(&mut []).expect("honest").expect("two");
        assert_eq!(next.written, Ok(3));
        assert_eq!(setup.queue.stats().violations, 1);
        let first = setup.queue.stats().first_violation;
        assert_eq!(first, Some(Cause::BadUsedLength { len, room }));
        let proof = setup.transport.reset().expect("it resets");
        assert!(setup.queue.release(&proof).is_empty());
        drop(setup.queue);
        setup.memory.assert_clean();
    }
}

#[test]
fn a_length_of_what_fits_exactly_is_fine() {
    let mut setup = setup();
    setup.device.inject(Fault::UsedLength(8));
    setup.send(1);
    setup.device.pump();
    let completion = setup.queue.poll(&mut []).expect("honest").expect("one");
    assert_eq!(completion.written, Ok(8));
    setup
        .queue
        .release(&setup.transport.reset().expect("it resets"));
}

#[test]
fn an_index_that_jumps_ahead_breaks_the_queue() {
    for by in [3, 8, 100, 0x7fff, 0xfff0] {
        let mut setup = setup();
        setup.device.inject(Fault::UsedIndexAhead(by));
        setup.send(3);
        setup.device.complete(0, 1);
        let (index, in_flight) = (by.wrapping_add(1), 3);
        let cause = Cause::BadUsedIndex { index, in_flight };
        assert_eq!(setup.drain(), (0, Some(cause)));
        setup.assert_broken_then_recover(3);
    }
}

#[test]
fn an_index_that_goes_back_breaks_the_queue() {
    for by in [1, 2, 0x7fff] {
        let mut setup = setup();
        setup.send(5);
        setup.device.pump();
        assert_eq!(setup.drain(), (5, None));
        setup.device.inject(Fault::UsedIndexBack(by));
        setup.send(3);
        setup.device.complete(0, 1);
        let (good, cause) = setup.drain();
        assert_eq!(good, 0);
        assert!(
            matches!(cause, Some(Cause::BadUsedIndex { .. })),
            "{cause:?}"
        );
        setup.assert_broken_then_recover(3);
    }
}

#[test]
fn noise_in_the_used_ring_is_survived() {
    let (mut broken, mut completed) = (0, 0);
    for seed in 0..5000 {
        let mut setup = setup();
        let mut random = Random::new(seed);
        setup.device.set_order(Order::Shuffled(seed));
        setup.device.inject(Fault::Noise(seed));
        for _ in 0..10 {
            for _ in 0..random.below(4) {
                // Full or broken: both are fine here.
                let _ = setup.queue.submit(&[], Data::new(b"abc", 8));
            }
            setup.queue.kick();
            setup.device.pump();
            // The bound: never more completions than requests.
            let (good, cause) = setup.drain();
            completed += good;
            if cause.is_some() {
                broken += 1;
                break;
            }
            setup.queue.enable_interrupts();
        }
        setup.device.heal();
        let in_flight = usize::from(setup.queue.in_flight());
        let proof = setup.transport.reset().expect("it resets");
        assert_eq!(setup.queue.release(&proof).len(), in_flight);
        drop(setup.queue);
        setup.memory.assert_clean();
    }
    assert!(broken > 3000 && completed > 100, "{broken} and {completed}");
}

// Bug 6 of others: waits with no bound.

#[test]
fn a_reset_that_never_ends_is_an_error() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let mut queue = start::<Data>(&mut transport, QueueOptions::default(), 0);
    device.inject(Fault::ResetNeverEnds);
    let error = transport.reset().unwrap_err();
    assert_eq!(error.device, device.name());
    assert_eq!(error.cause, Cause::ResetTimeout { status: 0xf });
    let error = negotiate(&mut transport, 0, 0, 0).unwrap_err();
    assert!(matches!(error.cause, Cause::ResetTimeout { .. }));
    device.heal();
    queue.release(&transport.reset().expect("healed"));
    drop(queue);
    memory.take_violations();
    memory.assert_clean();
}

#[test]
fn a_configuration_that_never_settles_is_an_error() {
    let device = FakeDevice::new(Echo::new(8));
    let transport = device.transport();
    assert_eq!(
        transport.config_snapshot(|t| t.config_u64(0)),
        Ok(0x0706_0504_0302_0100)
    );
    device.inject(Fault::ConfigNeverSettles);
    let error = transport.config_snapshot(|t| t.config_u64(0)).unwrap_err();
    assert_eq!(
        (error.device, error.cause),
        (device.name(), Cause::ConfigUnstable)
    );
}

#[test]
fn a_configuration_that_changes_once_is_read_again() {
    let device = FakeDevice::new(Echo::new(8));
    let transport = device.transport();
    let reads = std::cell::Cell::new(0);
    let value = transport.config_snapshot(|t| {
        reads.set(reads.get() + 1);
        if reads.get() == 1 {
            device.change_config(|_| {});
        }
        t.config_u8(1)
    });
    assert_eq!((value, reads.get()), (Ok(1), 2));
}

#[test]
fn a_silent_device_keeps_nobody_waiting_in_poll() {
    let mut setup = setup();
    setup.device.inject(Fault::Silent);
    setup.send(4);
    setup.device.pump();
    assert_eq!(setup.device.requests(0), 4, "taken");
    assert_eq!(setup.drain(), (0, None));
    assert!(!setup.queue.enable_interrupts());
    // Until it is full; then the caller hears of it.
    while setup.queue.submit(&[], Data::new(b"x", 1)).is_ok() {}
    let rejected = setup
        .queue
        .submit(&[], Data::new(b"x", 1))
        .expect_err("full");
    assert_eq!(rejected.error.cause, Cause::QueueFull);
    let in_flight = usize::from(setup.queue.in_flight());
    let proof = setup.transport.reset().expect("it resets");
    assert_eq!(setup.queue.release(&proof).len(), in_flight);
    drop(setup.queue);
    setup.memory.assert_clean();
}

// Initialisation.

#[test]
fn refused_features_are_an_error_that_says_which() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    device.inject(Fault::FeaturesRefused);
    let mut transport = device.transport();
    let error = negotiate(&mut transport, 0, 0, 0).unwrap_err();
    let features = RingFeatures::INDIRECT_DESC | RingFeatures::EVENT_IDX | RingFeatures::VERSION_1;
    let (offered, accepted) = (features.bits(), features.bits());
    assert_eq!(error.cause, Cause::FeaturesRefused { offered, accepted });
    assert!(device.status().contains(Status::FAILED));
    memory.assert_clean();
}

#[test]
fn a_device_without_version_1_is_refused() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    device.offer(RingFeatures::EVENT_IDX);
    let error = negotiate(&mut device.transport(), 0, 0, 0).unwrap_err();
    let offered = RingFeatures::EVENT_IDX.bits();
    let missing = RingFeatures::VERSION_1.bits();
    assert_eq!(error.cause, Cause::MissingFeatures { offered, missing });
    assert!(device.status().contains(Status::FAILED));
    memory.assert_clean();
}

#[test]
fn nothing_is_accepted_that_is_not_implemented() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    device.offer(RingFeatures::all());
    let negotiated = negotiate(&mut device.transport(), 0, 0, 0).expect("honest");
    let supported = vringlet::features::SUPPORTED.bits();
    assert_eq!(device.driver_features(), supported);
    assert_eq!(
        (negotiated.offered, negotiated.accepted),
        (RingFeatures::all().bits(), supported)
    );
    memory.assert_clean();
}

#[test]
fn initialisation_follows_the_specification_with_every_choice_of_features() {
    // The device notes any step out of order.
    for declined in [0, 1 << 28, 1 << 29, 3 << 28] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(8));
        let mut transport = device.transport();
        let mut queue = start::<Data>(&mut transport, QueueOptions::default(), declined);
        assert_eq!(device.driver_features() & declined, 0);
        queue.release(&transport.reset().expect("honest"));
        drop(queue);
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_needs_a_reset_at_once_is_an_error() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    device.inject(Fault::NeedsReset);
    let mut transport = device.transport();
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("not yet");
    let mut queue: EchoQueue<Data> =
        Queue::new(&mut transport, 0, QueueOptions::default(), negotiated).expect("a queue");
    let error = driver_ok(&mut transport).unwrap_err();
    assert_eq!(
        (error.device, error.cause),
        (device.name(), Cause::NeedsReset)
    );
    assert!(device.status().contains(Status::FAILED));
    queue.release(&transport.reset().expect("it resets"));
    drop(queue);
    memory.assert_clean();
}

#[test]
fn a_device_that_needs_a_reset_later_says_so_in_its_status() {
    let mut setup = setup();
    setup.send(2);
    setup.device.inject(Fault::NeedsReset);
    setup.device.pump();
    assert_eq!(setup.drain(), (0, None));
    assert!(
        setup
            .transport
            .status()
            .contains(Status::DEVICE_NEEDS_RESET)
    );
    let proof = setup.transport.reset().expect("it resets");
    assert_eq!(setup.queue.release(&proof).len(), 2);
    drop(setup.queue);
    setup.memory.assert_clean();
}

#[test]
fn queue_sizes_that_no_device_may_have_are_survived() {
    for (says, used) in [
        (0, None),
        (1, Some(1)),
        (3, Some(2)),
        (100, Some(64)),
        (0xffff, Some(256)),
    ] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(256));
        device.inject(Fault::QueueSize {
            queue: 0,
            size: says,
        });
        let mut transport = device.transport();
        let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest otherwise");
        let queue = EchoQueue::<Data>::new(&mut transport, 0, QueueOptions::default(), negotiated);
        match (queue, used) {
            (Ok(mut queue), Some(used)) => {
                assert_eq!(queue.size(), used);
                queue.release(&transport.reset().expect("it resets"));
            }
            (Err(error), None) => {
                assert_eq!((error.queue, error.cause), (Some(0), Cause::NoSuchQueue));
            }
            (queue, _) => panic!("size {says}: {:?}", queue.err()),
        }
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let setup = setup();
    setup.device.inject(Fault::Gone);
    let mut transport = setup.transport;
    let error = transport.reset().unwrap_err();
    assert_eq!(error.cause, Cause::ResetTimeout { status: 0xff });
    // What it may still write to is leaked, as the queue says.
    drop(setup.queue);
    setup.memory.assert_no_violations();
    assert!(setup.memory.live().0 > 0);
}

#[test]
fn every_error_reads_as_device_queue_and_cause() {
    let mut setup = setup();
    setup.device.inject(Fault::UsedId(77));
    setup.send(1);
    setup.device.pump();
    let error = setup.queue.poll(&mut []).expect_err("nobody has that id");
    let text = error.to_string();
    assert!(text.starts_with("virtio-rng at device "), "{text}");
    assert!(
        text.ends_with(": queue 0: device returned id 77, which is not in flight"),
        "{text}"
    );
    setup
        .queue
        .release(&setup.transport.reset().expect("it resets"));
}

#[test]
fn a_device_that_does_not_come_back_is_waited_for_once_when_it_is_dropped() {
    /// How often the fake's transport looked whether the reset is over: once for each.
    fn resets<M: DeviceModel, D>(
        model: M,
        make: impl FnOnce(FakeTransport<M>) -> vringlet::Result<D>,
    ) -> u64 {
        Memory::fresh();
        let device = FakeDevice::new(model);
        let driver = make(device.transport()).expect("honest until now");
        device.inject(Fault::ResetNeverEnds);
        let before = device.status_reads();
        drop(driver);
        device.status_reads() - before
    }
    let resets = [
        resets(FakeBlk::new(8), |it| Blk::new(it, Default::default())),
        resets(FakeNic::new(), |it| Net::new(it, Default::default())),
        resets(FakeGpu::new(), |it| Gpu::new(it, Default::default())),
        resets(FakeSound::new(), |it| Sound::new(it, Default::default())),
    ];
    assert_eq!(resets, [1; 4]);
}
