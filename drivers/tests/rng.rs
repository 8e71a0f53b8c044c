//! The entropy device: bytes in order, however few at a time, and nothing that the device did not say it wrote.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use vringlet::asynchronous::Asynchronous;
use vringlet::blocking::Blocking;
use vringlet::fake::{FakeBlk, FakeDevice, FakeRng, FakeTransport};
use vringlet::fake::{Fault, Memory, Pace, Random};
use vringlet::features::RingFeatures;
use vringlet::rng::{Options, Request, Rng};
use vringlet::{Buffer, Cause, Driver, Token};

type Fake = Rng<FakeTransport<FakeRng>>;

const QUEUE: u16 = 0;

fn open_with(model: FakeRng, options: Options) -> (FakeDevice<FakeRng>, Fake) {
    let device = FakeDevice::new(model);
    let rng = Rng::new(device.transport(), options).expect("an honest device");
    (device, rng)
}

fn open() -> (FakeDevice<FakeRng>, Fake) {
    open_with(FakeRng::new(), Options::default())
}

/// With a device that gives at most so many bytes at a time.
fn open_rationed(chunk: usize) -> (FakeDevice<FakeRng>, Fake) {
    let model = FakeRng {
        chunk,
        ..FakeRng::new()
    };
    open_with(model, Options::default())
}

fn turns(mut turns: usize) -> impl FnMut() -> bool {
    move || {
        turns = turns.saturating_sub(1);
        turns > 0
    }
}

fn request(len: usize) -> Request {
    Request::new(Buffer::from(vec![0xee; len]))
}

fn ask(rng: &mut Fake, len: usize) -> Token {
    let token = rng.submit(request(len)).expect("room");
    rng.kick();
    token
}

/// What came of the one request that is done.
fn answer(rng: &mut Fake) -> Result<Vec<u8>, Cause> {
    let finished = rng.poll().expect("an honest ring").expect("it is done");
    let bytes = finished.request.bytes().to_vec();
    assert_eq!(finished.request.into_buffer().into_vec(), bytes);
    match finished.result {
        Ok(()) => Ok(bytes),
        Err(error) => {
            assert!(bytes.is_empty(), "of a failure nothing is believed");
            Err(error.cause)
        }
    }
}

fn given(device: &FakeDevice<FakeRng>) -> Vec<u8> {
    device.with(|model| model.given.clone())
}

fn counter(rng: &Fake, name: &str) -> u64 {
    let counters = rng.report().counters;
    let counter = counters.iter().find(|counter| counter.0 == name);
    counter.expect("there is one").1
}

#[test]
fn bytes_come_in_order_over_a_queue_of_any_size() {
    for queue_size in [1, 2, 4, 8, 256] {
        for declined in [
            RingFeatures::empty(),
            RingFeatures::EVENT_IDX,
            RingFeatures::INDIRECT_DESC,
        ] {
            let memory = Memory::fresh();
            let model = FakeRng {
                queue_size,
                ..FakeRng::new()
            };
            let options = Options {
                declined: declined.bits(),
                ..Options::default()
            };
            let (device, rng) = open_with(model, options);
            assert_eq!(rng.queue_size(), queue_size.min(8));
            let mut rng = Blocking::new(rng);
            let mut all = vec![0; 10_000];
            let (first, rest) = all.split_at_mut(1);
            rng.fill(first, turns(1)).expect("at once");
            rng.fill(rest, turns(1)).expect("at once");
            rng.fill(&mut [], turns(1)).expect("nothing to do");
            assert!(given(&device) == all, "queue of {queue_size}");
            let asked = device.with(|model| model.log.clone());
            assert_eq!(asked, [1, 4096, 4096, 1807]);
            let rng = rng.into_inner();
            assert_eq!(counter(&rng, "bytes"), 10_000);
            assert_eq!(counter(&rng, "partial_answers"), 0);
            assert_eq!(counter(&rng, "errors"), 0);
            drop(rng);
            memory.assert_clean();
        }
    }
}

#[test]
fn a_device_that_gives_little_is_asked_until_all_is_there() {
    for chunk in [1, 2, 7, 31, 32, 33] {
        let memory = Memory::fresh();
        let (device, rng) = open_rationed(chunk);
        let mut rng = Blocking::new(rng);
        let mut bytes = [0; 32];
        let some = rng.read(&mut bytes, turns(1)).expect("some");
        assert_eq!(some, chunk.min(32));
        assert_eq!(bytes[..some], given(&device));
        assert_eq!(bytes[some..], [0; 32][some..]);
        rng.fill(&mut bytes, turns(1)).expect("an honest device");
        assert_eq!(given(&device)[some..], bytes);
        let answers = device.with(|model| model.log.len());
        assert_eq!(answers, 1 + 32usize.div_ceil(chunk));
        drop(rng);
        memory.assert_clean();
    }
}

#[test]
fn what_the_device_wrote_and_did_not_say_is_cut_off() {
    let memory = Memory::fresh();
    let (device, mut rng) = open_rationed(5);
    device.with(|model| model.scribbles = true);
    ask(&mut rng, 16);
    assert_eq!(answer(&mut rng), Ok(given(&device)));
    assert_eq!(given(&device).len(), 5);
    assert_eq!(counter(&rng, "partial_answers"), 1);
    let mut rng = Blocking::new(rng);
    let mut bytes = [0; 16];
    assert_eq!(rng.read(&mut bytes, turns(1)), Ok(5));
    assert_eq!(bytes[5..], [0; 11]);
    drop(rng);
    memory.assert_clean();
}

#[test]
fn no_byte_is_an_error_and_not_asked_for_again() {
    let memory = Memory::fresh();
    let (device, mut rng) = open_rationed(0);
    device.with(|model| model.scribbles = true);
    let nothing = Cause::ShortResponse { len: 0, need: 1 };
    ask(&mut rng, 16);
    assert_eq!(answer(&mut rng), Err(nothing));
    let mut rng = Blocking::new(rng);
    let mut bytes = [0; 16];
    let error = rng.fill(&mut bytes, turns(1)).expect_err("nothing came");
    assert_eq!(error.cause, nothing);
    assert_eq!((error.device, error.queue), (device.name(), Some(QUEUE)));
    assert_eq!(bytes, [0; 16]);
    assert_eq!(device.with(|model| model.log.len()), 2);
    let rng = rng.into_inner();
    assert_eq!((counter(&rng, "bytes"), counter(&rng, "errors")), (0, 2));
    drop(rng);
    memory.assert_clean();
}

#[test]
fn a_length_beyond_the_buffer_is_an_error() {
    let memory = Memory::fresh();
    let (device, mut rng) = open();
    for len in [17, 4096, u32::MAX] {
        device.inject(Fault::UsedLength(len));
        ask(&mut rng, 16);
        assert_eq!(
            answer(&mut rng),
            Err(Cause::BadUsedLength { len, room: 16 })
        );
    }
    device.inject(Fault::UsedLength(16));
    ask(&mut rng, 16);
    assert_eq!(answer(&mut rng).map(|bytes| bytes.len()), Ok(16));
    assert_eq!(counter(&rng, "errors"), 3);
    drop(rng);
    memory.assert_clean();
}

#[test]
fn a_device_that_breaks_the_ring_is_reset_and_started_again() {
    for fault in [
        Fault::UsedId(7),
        Fault::UsedId(u32::MAX),
        Fault::UsedIdNotInFlight,
        Fault::UsedTwice,
        Fault::UsedIndexAhead(3),
        Fault::UsedIndexBack(1),
        Fault::Noise(1),
    ] {
        let memory = Memory::fresh();
        let (device, mut rng) = open();
        device.set_pace(Pace::Manual);
        let tokens = [ask(&mut rng, 8), ask(&mut rng, 8)];
        device.inject(fault);
        device.complete(QUEUE, 1);
        let mut told = Vec::new();
        let error = loop {
            match rng.poll() {
                Ok(Some(finished)) => told.push(finished.token),
                Ok(None) => panic!("{fault:?} was believed"),
                Err(error) => break error,
            }
        };
        assert_eq!((error.device, error.queue), (device.name(), Some(QUEUE)));
        device.heal();
        for (token, request) in rng.reset().expect("an honest device") {
            assert!(request.bytes().is_empty());
            told.push(token);
        }
        told.sort();
        assert_eq!(told, tokens, "{fault:?}");
        let rejected = rng.submit(request(8)).expect_err("it was reset");
        assert_eq!(rejected.error.cause, Cause::QueueBroken);
        device.set_pace(Pace::OnNotify);
        rng.restart().expect("healed");
        ask(&mut rng, 8);
        assert_eq!(answer(&mut rng).map(|bytes| bytes.len()), Ok(8));
        drop(rng);
        memory.take_violations();
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_does_not_start_is_refused() {
    for (fault, cause) in [
        (Fault::NeedsReset, Cause::NeedsReset),
        (
            Fault::QueueSize {
                queue: QUEUE,
                size: 0,
            },
            Cause::NoSuchQueue,
        ),
    ] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakeRng::new());
        device.inject(fault);
        let made = Fake::new(device.transport(), Options::default());
        assert_eq!(made.err().map(|error| error.cause), Some(cause));
        memory.assert_clean();
    }
    for fault in [Fault::FeaturesRefused, Fault::Gone] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakeRng::new());
        device.inject(fault);
        let made = Fake::new(device.transport(), Options::default());
        assert!(made.is_err(), "{fault:?}");
        memory.assert_clean();
    }
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(1));
    let made = Rng::new(device.transport(), Options::default());
    let cause = made.err().map(|error| error.cause);
    assert_eq!(cause, Some(Cause::WrongDeviceType { expected: 4 }));
    memory.assert_clean();
}

#[test]
fn a_device_that_does_not_end_its_reset_keeps_what_it_has() {
    let memory = Memory::fresh();
    let (device, mut rng) = open();
    device.set_pace(Pace::Manual);
    let token = ask(&mut rng, 8);
    device.inject(Fault::ResetNeverEnds);
    let error = rng.reset().expect_err("it never ends");
    assert!(matches!(error.cause, Cause::ResetTimeout { .. }), "{error}");
    assert!(rng.restart().is_err());
    device.heal();
    let returned = rng.reset().expect("healed");
    let tokens: Vec<_> = returned.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [token]);
    drop(rng);
    memory.assert_clean();
}

#[test]
fn a_silent_device_costs_the_time_allowed() {
    let memory = Memory::fresh();
    let (device, rng) = open();
    device.inject(Fault::Silent);
    let mut rng = Blocking::new(rng);
    let mut bytes = [0; 4];
    // More often than the queue is long.
    for _ in 0..20 {
        let error = rng.fill(&mut bytes, turns(10)).expect_err("silence");
        assert_eq!(error.cause, Cause::Timeout);
    }
    assert_eq!(rng.driver().in_flight(), 8);
    rng.driver().config_changed().expect("it works");
    device.inject(Fault::NeedsReset);
    let gave_up = rng.driver().config_changed().map_err(|error| error.cause);
    assert_eq!(gave_up, Err(Cause::NeedsReset));
    device.heal();
    rng.driver().restart().expect("healed");
    rng.fill(&mut bytes, turns(10)).expect("it is back");
    drop(rng);
    memory.assert_clean();
}

#[test]
fn tasks_share_it_and_may_be_cancelled() {
    let memory = Memory::fresh();
    let (device, rng) = open_rationed(3);
    device.set_pace(Pace::Manual);
    let face = Asynchronous::new(rng);
    let context = &mut Context::from_waker(Waker::noop());
    let (mut one, mut two, mut three) = ([0; 10], [0; 10], [0; 10]);
    {
        let mut one = pin!(face.fill(&mut one));
        let mut two = pin!(face.fill(&mut two));
        let mut three = Box::pin(face.fill(&mut three));
        assert!(one.as_mut().poll(context).is_pending());
        assert!(two.as_mut().poll(context).is_pending());
        assert!(three.as_mut().poll(context).is_pending());
        // Who leaves takes nothing from the others but the bytes of his one request.
        drop(three);
        let (mut one_done, mut two_done) = (false, false);
        for _ in 0..20 {
            face.kick();
            device.pump();
            face.process().expect("an honest device");
            let done = Poll::Ready(Ok(()));
            one_done = one_done || one.as_mut().poll(context) == done;
            two_done = two_done || two.as_mut().poll(context) == done;
            if one_done && two_done {
                break;
            }
        }
        assert!(one_done && two_done);
    }
    assert!(face.is_idle());
    let (mut expected_one, mut expected_two) = (Vec::new(), Vec::new());
    let given = given(&device);
    let mut answers = given.chunks(3);
    for round in 0..3 {
        expected_one.extend(answers.next().expect("three rounds"));
        expected_two.extend(answers.next().expect("three rounds"));
        if round == 0 {
            answers.next();
        }
    }
    // The last of each is one byte.
    let last = &given[given.len() - 2..];
    expected_one.push(last[0]);
    expected_two.push(last[1]);
    assert_eq!((one.to_vec(), two.to_vec()), (expected_one, expected_two));
    assert_eq!(three, [0; 10]);
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_stopped_device_tells_its_tasks_and_comes_back() {
    let memory = Memory::fresh();
    let (device, rng) = open();
    device.set_pace(Pace::Manual);
    let face = Asynchronous::new(rng);
    let context = &mut Context::from_waker(Waker::noop());
    let mut bytes = [0; 8];
    {
        let mut fill = pin!(face.fill(&mut bytes));
        assert!(fill.as_mut().poll(context).is_pending());
        let error = face.with(|rng| rng.error(Cause::NeedsReset));
        face.stop(error);
        assert_eq!(fill.as_mut().poll(context), Poll::Ready(Err(error)));
    }
    device.set_pace(Pace::OnNotify);
    face.restart().expect("an honest device");
    {
        let mut fill = pin!(face.fill(&mut bytes));
        assert!(fill.as_mut().poll(context).is_pending());
        let before = device.interrupts(QUEUE);
        face.kick();
        assert_eq!(device.interrupts(QUEUE), before + 1);
        face.process().expect("an honest device");
        assert_eq!(fill.as_mut().poll(context), Poll::Ready(Ok(())));
    }
    assert_eq!(bytes, given(&device)[..]);
    drop(face);
    memory.assert_clean();
}

#[cfg(feature = "rand_core")]
#[test]
fn rand_core_gets_bytes_or_the_error() {
    use rand_core::TryRngCore;
    use vringlet::rng::RandomSource;

    let memory = Memory::fresh();
    let (device, rng) = open_rationed(3);
    let mut source = RandomSource::new(Blocking::new(rng), || turns(5));
    let mut bytes = Vec::new();
    // Each call has turns of its own.
    for _ in 0..10 {
        bytes.extend(
            source
                .try_next_u32()
                .expect("an honest device")
                .to_le_bytes(),
        );
        bytes.extend(
            source
                .try_next_u64()
                .expect("an honest device")
                .to_le_bytes(),
        );
        let mut more = [0; 7];
        source.try_fill_bytes(&mut more).expect("an honest device");
        bytes.extend(more);
    }
    assert_eq!(bytes, given(&device));
    device.inject(Fault::Silent);
    let error = source.try_next_u64().expect_err("silence");
    assert_eq!(error.cause, Cause::Timeout);
    drop(source.into_inner());
    memory.assert_clean();
}

/// Any mixture of lies, silence and restarts: an error or bytes that the device gave, and nothing lost or told twice.
#[test]
fn a_device_that_lies_at_random_gives_errors_and_nothing_else() {
    for seed in 0..300 {
        let memory = Memory::fresh();
        let mut random = Random::new(seed);
        let (device, mut rng) = open_rationed(random.below(6));
        device.set_pace(Pace::Manual);
        let mut waiting: Vec<Token> = Vec::new();
        for _ in 0..200 {
            match random.below(8) {
                0 | 1 => {
                    if let Ok(token) = rng.submit(request(1 + random.below(8))) {
                        assert!(!waiting.contains(&token), "seed {seed}: a token twice");
                        waiting.push(token);
                    }
                }
                2 => rng.kick(),
                3 => {
                    device.complete(QUEUE, random.below(3));
                }
                4 => {
                    let number = random.next() as u32;
                    device.inject(match random.below(7) {
                        0 => Fault::UsedId(number % 10),
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
                    for (token, request) in rng.reset().expect("it resets") {
                        assert!(request.bytes().is_empty());
                        let place = waiting.iter().position(|other| *other == token);
                        waiting.remove(place.expect("it waits"));
                    }
                    assert!(waiting.is_empty(), "seed {seed}: {waiting:?} forgotten");
                    rng.restart().expect("it starts again");
                }
                _ => {
                    while let Ok(Some(finished)) = rng.poll() {
                        let place = waiting.iter().position(|other| *other == finished.token);
                        waiting.remove(place.expect("it waits"));
                        let some = !finished.request.bytes().is_empty();
                        assert_eq!(some, finished.result.is_ok());
                    }
                }
            }
        }
        device.heal();
        drop(rng);
        // What the device did to its own ring is not the driver's doing.
        memory.take_violations();
        memory.assert_clean();
    }
}
