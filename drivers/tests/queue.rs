//! The queue against a device that follows the specification to the letter, and against a model of what it should do.

mod common;

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use common::{Data, Echo, EchoQueue, start};
use vringlet::authoring::queue::QueueOptions;
use vringlet::authoring::queue::{Chain, Payload};
use vringlet::authoring::start::{driver_ok, negotiate};
use vringlet::fake::{FakeDevice, FakeTransport, Fault, Memory, Order, Pace, Random};
use vringlet::features::RingFeatures;
use vringlet::{Buffer, Cause, Token, Transport};

const BOTH: [bool; 2] = [false, true];

/// The ring features to do without.
fn declined(indirect: bool, event_idx: bool) -> u64 {
    let mut declined = RingFeatures::empty();
    declined.set(RingFeatures::INDIRECT_DESC, !indirect);
    declined.set(RingFeatures::EVENT_IDX, !event_idx);
    declined.bits()
}

fn options(size: u16) -> QueueOptions {
    QueueOptions {
        size,
        ..QueueOptions::default()
    }
}

/// Resets the device and drops the queue; everything must have been given back then.
#[track_caller]
fn finish(memory: &Memory, transport: &mut FakeTransport<Echo>, mut queue: EchoQueue<Data>) {
    let proof = transport.reset().expect("an honest device");
    queue.release(&proof);
    drop(queue);
    memory.assert_clean();
}

#[test]
fn a_request_goes_out_and_comes_back() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let mut queue = start(&mut transport, QueueOptions::default(), 0);
    assert_eq!(queue.size(), 8, "the device's maximum");

    let token = queue
        .submit(&[], Data::new(b"hello", 16))
        .expect("an empty queue");
    assert_eq!(device.notifications(0), 0);
    queue.kick();
    let completion = queue.poll(&mut []).expect("an honest device").expect("one");
    assert_eq!(completion.token, token);
    assert_eq!(completion.written, Ok(5));
    assert_eq!(&completion.payload.writable()[..5], b"hello");
    finish(&memory, &mut transport, queue);
}

/// What the queue should know: the requests in flight and the descriptors that they take.
struct Model {
    size: usize,
    indirect: bool,
    in_flight: BTreeMap<Token, (Vec<u8>, usize)>,
    descriptors: usize,
}

impl Model {
    fn takes(&self, segments: usize) -> usize {
        if self.indirect && segments > 1 {
            1
        } else {
            segments
        }
    }

    fn has_room(&self, segments: usize) -> bool {
        self.descriptors + self.takes(segments) <= self.size
    }
}

/// A request of random segments that says `number`, and how long its answer is.
fn random_request(random: &mut Random, size: usize, number: u32) -> (Data, Vec<u8>, usize) {
    let most = size.min(7);
    let readable = random.below(most + 1);
    let writable = random
        .below(most + 1 - readable)
        .max(usize::from(readable == 0));
    let mut said = number.to_le_bytes().to_vec();
    let mut data = Data {
        readable: Vec::new(),
        writable: Vec::new(),
    };
    if readable == 0 {
        said.clear();
    } else {
        said.resize(4 + random.below(40), number as u8);
        // Cut into so many parts, none of them empty.
        let mut rest = said.as_slice();
        for left in (1..readable.min(said.len())).rev() {
            let (part, behind) = rest.split_at(1 + random.below(rest.len() - left));
            data.readable.push(Buffer::from(part.to_vec()));
            rest = behind;
        }
        data.readable.push(Buffer::from(rest.to_vec()));
    }
    for _ in 0..writable {
        data.writable
            .push(Buffer::from(vec![0xee; 1 + random.below(24)]));
    }
    let room = data.writable.iter().map(|buffer| buffer.len()).sum();
    (data, said, room)
}

/// Submits, kicks, lets the device work and polls, in a random order, until
/// `requests` have been made; the device answers out of order and sleeps unless notified.
fn interleave(size: u16, indirect: bool, event_idx: bool, requests: u32) {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(size));
    device.set_pace(Pace::Manual);
    let seed = u64::from(size) << 2 | u64::from(indirect) << 1 | u64::from(event_idx);
    device.set_order(Order::Shuffled(seed));
    let mut random = Random::new(seed);
    let mut transport = device.transport();
    let mut queue: EchoQueue<Data> =
        start(&mut transport, options(size), declined(indirect, event_idx));
    assert_eq!(queue.size(), size);
    let mut model = Model {
        size: size.into(),
        indirect,
        in_flight: BTreeMap::new(),
        descriptors: 0,
    };
    let mut number = 0;
    // The driver was told that nothing is there and would sleep until an interrupt.
    let mut asleep_since = None;
    let mut wants_none_since = None;
    while number < requests || !model.in_flight.is_empty() {
        match random.below(8) {
            // Now and then as much as fits.
            0..=2 if number < requests => {
                let burst = if random.below(50) == 0 { 40 } else { 3 };
                for _ in 0..1 + random.below(burst) {
                    let (data, said, room) = random_request(&mut random, size.into(), number);
                    let segments = data.readable.len() + data.writable.len();
                    assert_eq!(queue.has_room(segments), model.has_room(segments));
                    match queue.submit(&[], data) {
                        Ok(token) => {
                            assert!(model.has_room(segments), "taken without room");
                            let answer = said[..said.len().min(room)].to_vec();
                            let before = model.in_flight.insert(token, (answer, segments));
                            assert!(before.is_none(), "{token:?} twice");
                            assert!(token.index() < usize::from(size));
                            model.descriptors += model.takes(segments);
                            number += 1;
                        }
                        Err(rejected) => {
                            assert_eq!(rejected.error.cause, Cause::QueueFull);
                            assert!(!model.has_room(segments), "refused with room");
                            break;
                        }
                    }
                }
            }
            3 | 4 => queue.kick(),
            5 => {
                let before = device.interrupts(0);
                let used = device.with(|echo| echo.served);
                if random.below(2) == 0 {
                    device.pump_notified();
                } else {
                    device.complete(0, random.below(4));
                }
                let came = device.interrupts(0) - before;
                if let Some(completed) = asleep_since
                    && queue.has_completions()
                {
                    assert!(came > 0, "asleep since {completed}, {used} served");
                    asleep_since = None;
                }
                if let Some(completed) = wants_none_since
                    && queue.stats().completed - completed < 50_000
                {
                    assert_eq!(came, 0, "an interrupt that nobody asked for");
                }
            }
            6 => {
                for _ in 0..1 + random.below(6) {
                    let Some(completion) = queue.poll(&mut []).expect("an honest device") else {
                        break;
                    };
                    asleep_since = None;
                    let (answer, segments) = model
                        .in_flight
                        .remove(&completion.token)
                        .expect("a request in flight");
                    model.descriptors -= model.takes(segments);
                    assert_eq!(completion.written, Ok(answer.len() as u32));
                    let written: Vec<u8> = completion
                        .payload
                        .writable
                        .iter()
                        .flat_map(|buffer| buffer.iter().copied())
                        .take(answer.len())
                        .collect();
                    assert_eq!(written, answer);
                }
            }
            7 if random.below(4) == 0 => {
                if random.below(2) == 0 {
                    wants_none_since = None;
                    asleep_since = (!queue.enable_interrupts()).then(|| queue.stats().completed);
                } else {
                    asleep_since = None;
                    queue.disable_interrupts();
                    wants_none_since = Some(queue.stats().completed);
                }
            }
            _ => {}
        }
        assert_eq!(usize::from(queue.in_flight()), model.in_flight.len());
    }
    let stats = queue.stats();
    // The last burst may have gone past what was asked for.
    assert!(number >= requests);
    assert_eq!(
        (stats.submitted, stats.completed),
        (number.into(), number.into())
    );
    assert_eq!(stats.kicks, device.notifications(0));
    assert_eq!(stats.violations, 0);
    finish(&memory, &mut transport, queue);
}

/// More than two wraps of the indices.
const TWO_WRAPS: u32 = 2 * 65536 + 100;

macro_rules! interleavings {
    ($($name:ident: $sizes:expr, $requests:expr;)*) => {
        $(
            #[test]
            fn $name() {
                for size in $sizes {
                    for indirect in BOTH {
                        for event_idx in BOTH {
                            interleave(size, indirect, event_idx, $requests(size));
                        }
                    }
                }
            }
        )*
    };
}

interleavings! {
    interleavings_over_two_wraps_with_1_descriptor: [1], |_| TWO_WRAPS;
    interleavings_over_two_wraps_with_16_descriptors: [16], |_| TWO_WRAPS;
    interleavings_over_two_wraps_with_32768_descriptors: [32768], |_| TWO_WRAPS;
    interleavings_with_every_other_size:
        [2, 4, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384],
        |size| u32::from(size) + 4000;
}

/// Keeps the queue full to the last descriptor, so that every one is used and every entry of the rings, over two wraps.
#[test]
fn every_descriptor_of_every_size_is_used() {
    for size in (0..16).map(|shift| 1u16 << shift) {
        for event_idx in BOTH {
            let memory = Memory::fresh();
            let device = FakeDevice::new(Echo::new(size));
            device.set_pace(Pace::Manual);
            let mut transport = device.transport();
            let mut queue: EchoQueue<Data> =
                start(&mut transport, options(size), declined(true, event_idx));
            let mut data: Vec<Data> = (0..size)
                .map(|_| Data {
                    readable: Vec::new(),
                    writable: vec![Buffer::from(vec![0])],
                })
                .collect();
            let rounds = (TWO_WRAPS / u32::from(size)).min(40) + 2;
            for _ in 0..rounds {
                let mut tokens = vec![false; size.into()];
                while let Some(data) = data.pop() {
                    let token = queue
                        .submit(&[], data)
                        .expect("room for as many as there are");
                    assert!(!std::mem::replace(&mut tokens[token.index()], true));
                }
                let full = queue.submit(&[], Data::new(b"", 1)).map(drop);
                assert!(full.is_err());
                queue.kick();
                assert!(device.pump_notified(), "lost a kick");
                while let Some(completion) = queue.poll(&mut []).expect("honest") {
                    data.push(completion.payload);
                }
                assert_eq!(data.len(), size.into());
            }
            finish(&memory, &mut transport, queue);
        }
    }
}

/// Bug 1 of others: a device that sleeps until notified is woken by every batch, wherever the index stands.
#[test]
fn no_kick_is_lost_at_any_index() {
    for event_idx in BOTH {
        for batch in [1, 2, 3, 4] {
            let memory = Memory::fresh();
            // Nothing is copied: this goes round often.
            memory.set_bounce(false);
            let device = FakeDevice::new(Echo::new(4));
            device.set_pace(Pace::Manual);
            let mut transport = device.transport();
            let mut queue: EchoQueue<Data> =
                start(&mut transport, options(4), declined(true, event_idx));
            let mut data: Vec<Data> = (0..batch)
                .map(|_| Data {
                    readable: Vec::new(),
                    writable: vec![Buffer::from(vec![0])],
                })
                .collect();
            let mut index = 0u32;
            while index < 65536 + 8 {
                for data in data.drain(..) {
                    queue.submit(&[], data).expect("room");
                    index += 1;
                }
                queue.kick();
                assert!(
                    device.pump_notified(),
                    "asleep at {index}, batches of {batch}"
                );
                while let Some(completion) = queue.poll(&mut []).expect("honest") {
                    data.push(completion.payload);
                }
                assert_eq!(data.len(), batch, "at {index}");
            }
            finish(&memory, &mut transport, queue);
        }
    }
}

#[test]
fn a_device_that_is_awake_is_not_kicked() {
    for event_idx in BOTH {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(16));
        device.set_pace(Pace::Manual);
        let mut transport = device.transport();
        let mut queue = start(&mut transport, options(16), declined(true, event_idx));
        device.set_notifications(0, false);
        for round in 0..10 {
            queue.submit(&[], Data::new(b"x", 1)).expect("room");
            queue.kick();
            assert_eq!(device.notifications(0), 0, "round {round}");
            device.pump();
            assert!(queue.poll(&mut []).expect("honest").is_some());
        }
        assert_eq!((queue.stats().kicks, queue.stats().kicks_saved), (0, 10));
        finish(&memory, &mut transport, queue);
    }
}

#[test]
fn a_kick_with_nothing_new_is_none() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(16));
    let mut transport = device.transport();
    let mut queue = start(&mut transport, options(16), 0);
    queue.kick();
    queue.submit(&[], Data::new(b"x", 1)).expect("room");
    queue.submit(&[], Data::new(b"y", 1)).expect("room");
    queue.kick();
    queue.kick();
    assert_eq!(device.notifications(0), 1, "two requests share one");
    finish(&memory, &mut transport, queue);
}

#[test]
fn what_is_published_is_seen_without_a_kick() {
    for event_idx in BOTH {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(16));
        device.set_pace(Pace::Manual);
        let mut transport = device.transport();
        let mut queue = start(&mut transport, options(16), declined(true, event_idx));
        queue.submit(&[], Data::new(b"x", 1)).expect("room");
        device.pump();
        assert!(queue.poll(&mut []).expect("honest").is_none());
        queue.publish();
        queue.kick();
        assert_eq!(device.notifications(0), 0, "nothing is new for a kick");
        device.pump();
        assert!(queue.poll(&mut []).expect("honest").is_some());
        // The next request is none the worse for it.
        queue.submit(&[], Data::new(b"y", 1)).expect("room");
        queue.kick();
        assert_eq!(device.notifications(0), 1);
        finish(&memory, &mut transport, queue);
    }
}

#[test]
fn requests_come_back_in_the_order_of_the_device() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    device.set_pace(Pace::Manual);
    device.set_order(Order::Shuffled(3));
    let mut transport = device.transport();
    let mut queue: EchoQueue<Data> = start(&mut transport, options(8), 0);
    let tokens: Vec<Token> = (0..8u8)
        .map(|n| queue.submit(&[], Data::new(&[n], 1)).expect("room"))
        .collect();
    queue.kick();
    device.pump();
    let mut order = Vec::new();
    while let Some(completion) = queue.poll(&mut []).expect("honest") {
        let number = completion.payload.writable()[0];
        assert_eq!(completion.token, tokens[usize::from(number)]);
        order.push(number);
    }
    assert_ne!(order, [0, 1, 2, 3, 4, 5, 6, 7], "the seed shuffles");
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
    finish(&memory, &mut transport, queue);
}

#[test]
fn an_interrupt_comes_when_asked_for_and_not_before() {
    for event_idx in BOTH {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(8));
        device.set_pace(Pace::Manual);
        let mut transport = device.transport();
        let mut queue: EchoQueue<Data> =
            start(&mut transport, options(8), declined(true, event_idx));
        let send = |queue: &mut EchoQueue<Data>, count| {
            for _ in 0..count {
                queue.submit(&[], Data::new(b"x", 1)).expect("room");
            }
            queue.kick();
            device.complete(0, 0);
        };
        queue.disable_interrupts();
        send(&mut queue, 2);
        device.complete(0, 2);
        assert_eq!(device.interrupts(0), 0);
        assert!(queue.enable_interrupts(), "two are there already");
        while queue.poll(&mut []).expect("honest").is_some() {}
        assert!(!queue.enable_interrupts());
        send(&mut queue, 1);
        device.complete(0, 1);
        assert_eq!(device.interrupts(0), 1);
        while queue.poll(&mut []).expect("honest").is_some() {}

        // After three of four; without EVENT_IDX the device can't be told.
        send(&mut queue, 4);
        assert!(!queue.enable_interrupts_after(2));
        for done in 1..=4 {
            device.complete(0, 1);
            let wanted = match (event_idx, done) {
                (true, 3..) => 2,
                (true, _) => 1,
                (false, _) => 1 + done,
            };
            assert_eq!(device.interrupts(0), wanted, "after {done}");
        }
        while queue.poll(&mut []).expect("honest").is_some() {}

        // More than are in flight would be never: the last one interrupts at the latest.
        let before = device.interrupts(0);
        send(&mut queue, 3);
        assert!(!queue.enable_interrupts_after(100));
        device.complete(0, 3);
        assert!(
            device.interrupts(0) > before,
            "slept past the last completion"
        );
        finish(&memory, &mut transport, queue);
    }
}

#[test]
fn a_chain_of_the_queues_size_is_taken_and_a_longer_one_is_not() {
    for size in [1, 2, 4, 64, 256] {
        for indirect in BOTH {
            let memory = Memory::fresh();
            let device = FakeDevice::new(Echo::new(size));
            let mut transport = device.transport();
            let mut queue = start(&mut transport, options(size), declined(indirect, true));
            let of = |segments: usize| Data {
                readable: Vec::new(),
                writable: (0..segments).map(|_| Buffer::from(vec![0; 3])).collect(),
            };
            let long = queue
                .submit(&[], of(usize::from(size) + 1))
                .expect_err("too long");
            let (segments, max) = (usize::from(size) + 1, usize::from(size));
            assert_eq!(long.error.cause, Cause::TooManySegments { segments, max });
            assert_eq!(long.error.queue, Some(0));
            assert_eq!(long.payload.writable.len(), segments, "handed back whole");
            for _ in 0..3 {
                queue
                    .submit(&[], of(size.into()))
                    .expect("as long as the queue");
                queue.kick();
                assert!(queue.poll(&mut []).expect("honest").is_some());
            }
            finish(&memory, &mut transport, queue);
        }
    }
}

#[test]
fn requests_that_break_the_rules_come_back_unharmed() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let mut queue = start(&mut transport, options(8), 0);
    let nothing = Data {
        readable: Vec::new(),
        writable: Vec::new(),
    };
    let rejected = queue.submit(&[], nothing).expect_err("nothing to do");
    assert_eq!(rejected.error.cause, Cause::EmptyRequest);
    let rejected = queue
        .submit(&[], Data::new(b"", 4))
        .expect_err("an empty segment");
    assert_eq!(rejected.error.cause, Cause::EmptyRequest);
    let rejected = queue
        .submit(&[1], Data::new(b"x", 4))
        .expect_err("a header");
    assert!(matches!(rejected.error.cause, Cause::InvalidParameter(_)));
    assert_eq!(memory.live().1, 0, "nothing stays lent");
    finish(&memory, &mut transport, queue);
}

/// Names its segments in the order of the list, whatever the specification says.
struct AnyOrder(Vec<(Buffer, bool)>);

impl Payload for AnyOrder {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        for (buffer, writable) in &mut self.0 {
            match writable {
                true => chain.writable(buffer),
                false => chain.readable(buffer),
            }
        }
    }
}

/// Spec 2.7.4.2: a device need not look for something to read behind what it may write.
#[test]
fn readable_segments_come_before_writable_ones() {
    for indirect in BOTH {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(8));
        let mut transport = device.transport();
        let mut queue: EchoQueue<AnyOrder> =
            start(&mut transport, options(8), declined(indirect, true));
        for (order, taken) in [
            (&[false, false, true][..], true),
            (&[true, true], true),
            (&[true, false], false),
            (&[false, true, false], false),
            (&[false, true, true, false, true], false),
        ] {
            let segments = order
                .iter()
                .map(|writable| (Buffer::from(vec![1; 4]), *writable));
            match queue.submit(&[], AnyOrder(segments.collect())) {
                Ok(_) => assert!(taken, "{order:?}"),
                Err(rejected) => {
                    let cause = Cause::InvalidParameter("readable segment behind a writable");
                    assert_eq!(rejected.error.cause, cause);
                    assert!(!taken, "{order:?}");
                    assert_eq!(rejected.payload.0.len(), order.len());
                }
            }
            queue.kick();
            while queue.poll(&mut []).expect("honest").is_some() {}
            assert_eq!(queue.in_flight(), 0);
        }
        queue.release(&transport.reset().expect("honest"));
        drop(queue);
        memory.assert_clean();
    }
}

/// The device says in 32 bits how much it wrote.
#[test]
fn a_request_of_4_gib_is_not_taken() {
    const GIB: usize = 1 << 30;
    let memory = Memory::fresh();
    // A gibibyte would be copied otherwise.
    memory.set_bounce(false);
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let mut queue: EchoQueue<AnyOrder> = start(&mut transport, options(8), 0);
    // Nobody touches the bytes, so the system need not have that much.
    let parts = |lens: &[usize]| {
        let zeroed = |len: &usize| (Buffer::zeroed(*len).expect("addresses"), true);
        AnyOrder(lens.iter().map(zeroed).collect())
    };
    // What is left of 4 GiB is for header and footer.
    let largest = GIB - 4096 - 2;
    for (last, taken) in [(largest, true), (largest + 1, false), (GIB, false)] {
        match queue.submit(&[], parts(&[GIB, GIB, GIB, last])) {
            Ok(_) => assert!(taken, "{last}"),
            Err(rejected) => {
                assert_eq!(rejected.error.cause, Cause::RequestTooLong);
                assert!(!taken, "{last}");
            }
        }
    }
    queue.release(&transport.reset().expect("honest"));
    drop(queue);
    memory.assert_clean();
}

#[test]
fn a_queue_is_enabled_once_and_on_its_own_device() {
    let memory = Memory::fresh();
    let devices = [(); 2].map(|()| FakeDevice::new(Echo::new(8)));
    let [mut transport, mut other] = [0, 1].map(|index| devices[index].transport());
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("honest");
    negotiate(&mut other, 0, 0, 0).expect("honest");
    let cause = |result: vringlet::Result<()>| result.map_err(|error| error.cause);
    let mut long = options(8);
    (long.header_len, long.footer_len) = (4000, 97);
    let refused = EchoQueue::<Data>::new(&mut transport, 0, long, negotiated).map(drop);
    let too_long = Cause::InvalidParameter("header and footer too long");
    assert_eq!(cause(refused), Err(too_long));
    let queue = EchoQueue::allocate(&mut transport, 0, options(8), negotiated);
    let mut queue: EchoQueue<Data> = queue.expect("memory");
    let not_its_own = Cause::InvalidParameter("queue of another device");
    assert_eq!(cause(queue.enable(&mut other)), Err(not_its_own));
    assert_eq!(queue.enable(&mut transport), Ok(()));
    assert_eq!(cause(queue.enable(&mut transport)), Err(Cause::QueueInUse));
    driver_ok(&mut transport).expect("honest");
    let nothing = queue.accept(&[], &mut None, Waker::noop()).map(drop);
    assert_eq!(cause(nothing), Err(Cause::EmptyRequest));
    let mut data = Some(Data::new(b"x", 1));
    let token = queue.accept(&[], &mut data, Waker::noop()).expect("room");
    assert!(data.is_none());
    assert!(queue.take(token).is_none(), "it is not done");
    assert!(queue.done(token).is_none());
    queue.kick();
    assert_eq!(
        queue.complete().map(|it| it.map(|it| it.token)),
        Ok(Some(token))
    );
    assert!(queue.done(token).is_some());
    assert!(queue.take(token).is_some());
    assert!(queue.take(token).is_none(), "it was taken");
    finish(&memory, &mut transport, queue);
}

#[test]
fn a_header_longer_than_the_queues_is_refused() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let options = QueueOptions {
        size: 8,
        header_len: 4,
        footer_len: 0,
    };
    let mut queue: EchoQueue<Data> = start(&mut transport, options, 0);
    let refused = queue.submit(&[0; 5], Data::new(b"x", 1)).map(drop);
    let cause = Cause::InvalidParameter("header longer than the queue's");
    assert_eq!(refused.map_err(|rejected| rejected.error.cause), Err(cause));
    queue
        .submit(&[0; 4], Data::new(b"x", 1))
        .expect("as long as that");
    finish(&memory, &mut transport, queue);
}

#[test]
fn a_used_id_that_begins_no_chain_breaks_the_queue() {
    for id in [1, 7, 8, 0x1_0000] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(8));
        device.set_pace(Pace::Manual);
        let mut transport = device.transport();
        let mut queue = start(&mut transport, options(8), declined(false, true));
        // Descriptors 0 and 1.
        queue.submit(&[], Data::new(b"x", 1)).expect("room");
        queue.kick();
        device.claim_used(0, id, 0);
        let error = queue.poll(&mut []).expect_err("a lie");
        assert_eq!(error.cause, Cause::BadUsedId { id });
        assert_eq!(queue.failure(), Some(error));
        finish(&memory, &mut transport, queue);
    }
}

/// Bug 11 of others: what the device did not write is not taken for "OK".
#[test]
fn a_footer_that_the_device_does_not_write_reads_all_ones() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let options = QueueOptions {
        size: 8,
        header_len: 4,
        footer_len: 9,
    };
    let mut queue = start(&mut transport, options, 0);
    for round in 0..20 {
        let data = Data {
            readable: Vec::new(),
            writable: vec![Buffer::from(vec![0; 2])],
        };
        // Echo: two of the header's bytes go to the buffer, the others to the footer.
        queue.submit(&[1, 2, 3, round], data).expect("room");
        queue.kick();
        let mut footer = [0; 9];
        let completion = queue.poll(&mut footer).expect("honest").expect("one");
        assert_eq!(completion.written, Ok(4));
        assert_eq!(completion.payload.writable(), [1, 2]);
        assert_eq!(footer[..2], [3, round]);
        assert_eq!(footer[2..], [0xff; 7]);
    }
    finish(&memory, &mut transport, queue);
}

#[test]
fn a_part_of_a_buffer_can_be_lent() {
    #[derive(Debug)]
    struct Part(Buffer, std::ops::Range<usize>);
    impl vringlet::authoring::queue::Payload for Part {
        fn segments<'a>(&'a mut self, chain: &mut vringlet::authoring::queue::Chain<'a>) {
            chain.readable_part(&self.0, self.1.clone());
        }
    }
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let options = QueueOptions {
        footer_len: 8,
        ..QueueOptions::default()
    };
    let mut queue: EchoQueue<Part> = start(&mut transport, options, 0);
    let buffer = || Buffer::from(b"0123456789".to_vec());
    queue.submit(&[], Part(buffer(), 3..6)).expect("room");
    queue.kick();
    let mut footer = [0; 8];
    assert!(queue.poll(&mut footer).expect("honest").is_some());
    assert_eq!(&footer[..3], b"345");
    let outside = queue
        .submit(&[], Part(buffer(), 3..11))
        .expect_err("ends behind");
    assert!(matches!(outside.error.cause, Cause::InvalidParameter(_)));
    queue.release(&transport.reset().expect("honest"));
    drop(queue);
    memory.assert_clean();
}

#[test]
fn memory_that_runs_out_is_an_error_and_leaks_nothing() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let options = QueueOptions {
        size: 8,
        header_len: 8,
        footer_len: 8,
    };
    // Ring, headers, footers and short tables are one.
    let mut transport = device.transport();
    let negotiated =
        vringlet::authoring::start::negotiate(&mut transport, 0, 0, 0).expect("honest");
    memory.fail_allocations_after(0);
    let result = EchoQueue::<Data>::new(&mut transport, 0, options, negotiated);
    memory.fail_allocations_after(None);
    let error = result.err().expect("no memory");
    assert_eq!((error.queue, error.cause), (Some(0), Cause::NoDmaMemory));
    memory.assert_clean();

    let mut transport = device.transport();
    let mut queue = start(&mut transport, options, 0);
    memory.fail_allocations_after(0);
    // A table longer than the ones at hand.
    let long = || Data {
        readable: (0..4).map(|_| Buffer::from(vec![1])).collect(),
        writable: vec![Buffer::from(vec![1])],
    };
    let rejected = queue.submit(&[1; 8], long()).expect_err("no memory");
    assert_eq!(rejected.error.cause, Cause::NoDmaMemory);
    queue
        .submit(&[1; 8], Data::new(b"x", 1))
        .expect("a short one needs none");
    memory.fail_allocations_after(None);
    queue
        .submit(&[1; 8], long())
        .expect("there is memory again");
    queue.kick();
    assert!(queue.poll(&mut []).expect("honest").is_some());
    assert!(queue.poll(&mut []).expect("honest").is_some());
    finish(&memory, &mut transport, queue);
}

#[test]
fn a_buffer_that_cannot_be_mapped_is_an_error_of_its_request_alone() {
    for indirect in BOTH {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(8));
        let mut transport = device.transport();
        let mut queue = start(&mut transport, options(8), declined(indirect, true));
        let whole = |queue: &mut EchoQueue<Data>, text: &[u8]| {
            queue.submit(&[], Data::new(text, 8)).expect("room");
            queue.kick();
            let completion = queue.poll(&mut []).expect("honest").expect("one");
            assert_eq!(completion.payload.writable()[..text.len()], *text);
        };
        whole(&mut queue, b"before");
        // The first of two buffers is mapped, or neither.
        for mapped in [0, 1] {
            memory.fail_loans_after(mapped);
            let rejected = queue
                .submit(&[], Data::new(b"lost", 8))
                .expect_err("no room");
            assert_eq!(rejected.error.cause, Cause::NoDmaMemory);
            assert_eq!(*rejected.payload.readable[0], *b"lost");
            assert_eq!(memory.live().1, 0, "what was mapped is given back");
            assert_eq!(queue.in_flight(), 0);
        }
        memory.fail_loans_after(None);
        whole(&mut queue, b"after");
        finish(&memory, &mut transport, queue);
    }
}

#[test]
fn the_context_learns_whether_the_platform_translates() {
    for offered in BOTH {
        let memory = Memory::fresh();
        let device = FakeDevice::new(Echo::new(8));
        let mut features = RingFeatures::VERSION_1;
        features.set(RingFeatures::ACCESS_PLATFORM, offered);
        device.offer(features);
        let mut transport = device.transport();
        assert_eq!(transport.dma().access_platform(), None);
        let queue = start(&mut transport, options(8), 0);
        assert_eq!(transport.dma().access_platform(), Some(offered));
        finish(&memory, &mut transport, queue);
    }
}

#[test]
fn a_queue_is_enabled_once_on_its_own_device_and_in_its_own_session() {
    let memory = Memory::fresh();
    let (one, other) = (FakeDevice::new(Echo::new(8)), FakeDevice::new(Echo::new(8)));
    let (mut transport, mut stranger) = (one.transport(), other.transport());
    let allocate = |transport: &mut FakeTransport<Echo>| {
        let negotiated = negotiate(transport, 0, 0, 0).expect("honest");
        EchoQueue::<Data>::allocate(transport, 0, options(8), negotiated).expect("room")
    };
    let cause = |enabled: vringlet::Result<()>| enabled.map_err(|error| error.cause);
    let mut early = allocate(&mut transport);
    early.submit(&[], Data::new(b"early", 8)).expect("room");
    early.kick();
    let of_another = Err(Cause::InvalidParameter("queue of another device"));
    assert_eq!(cause(early.enable(&mut stranger)), of_another);
    let mut queue = allocate(&mut transport);
    let outdated = Err(Cause::InvalidParameter("queue of before a reset"));
    assert_eq!(cause(early.enable(&mut transport)), outdated);
    // It was lent, and nobody learned of it.
    drop(early);
    // What is submitted before is seen as soon as the device works.
    queue.submit(&[], Data::new(b"first", 8)).expect("room");
    queue.kick();
    assert_eq!(one.notifications(0), 0);
    assert_eq!(cause(queue.enable(&mut transport)), Ok(()));
    assert_eq!(cause(queue.enable(&mut transport)), Err(Cause::QueueInUse));
    driver_ok(&mut transport).expect("honest");
    queue.kick();
    let completion = queue.poll(&mut []).expect("honest").expect("one");
    assert_eq!(completion.payload.writable()[..5], *b"first");
    finish(&memory, &mut transport, queue);
}

#[test]
fn a_proof_of_an_earlier_reset_releases_nothing() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let other = FakeDevice::new(Echo::new(8));
    device.inject(Fault::Silent);
    let mut transport = device.transport();
    let stale = transport.reset().expect("an honest device");
    let mut queue = start(&mut transport, QueueOptions::default(), 0);
    let token = queue.submit(&[], Data::new(b"x", 1)).expect("room");
    queue.kick();

    assert!(queue.release(&stale).is_empty());
    let foreign = other.transport().reset().expect("an honest device");
    assert!(queue.release(&foreign).is_empty());
    assert_eq!(queue.in_flight(), 1, "the device still has it");

    let proof = transport.reset().expect("an honest device");
    let submitted = queue.stats().submitted;
    let back = queue.release(&proof);
    assert!(submitted > 0 && !back.is_empty());
    assert_eq!(queue.stats().submitted, submitted, "what came back counts");
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].0, token);
    drop(queue);
    memory.assert_clean();
}

/// Bug 3 of others: who gives up waiting does not free what the device may still write to.
#[test]
fn a_queue_dropped_while_the_device_works_keeps_its_memory_for_it() {
    let memory = Memory::fresh();
    memory.set_bounce(false);
    let device = FakeDevice::new(Echo::new(8));
    device.set_pace(Pace::Manual);
    let mut transport = device.transport();
    let mut queue = start(&mut transport, QueueOptions::default(), 0);
    queue.submit(&[], Data::new(b"late", 4)).expect("room");
    queue.kick();
    let live = memory.live();
    assert_eq!(live.1, 2);
    drop(queue);
    // The device answers late, into memory that is still the request's.
    device.pump();
    assert_eq!(device.with(|echo| echo.served), 1);
    memory.assert_no_violations();
    assert_eq!(memory.live(), live, "leaked on purpose");
}

#[test]
fn a_queue_needs_a_size_that_is_a_power_of_two() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(256));
    let mut transport = device.transport();
    let negotiated =
        vringlet::authoring::start::negotiate(&mut transport, 0, 0, 0).expect("honest");
    for size in [0, 3, 255, 32769, 65535] {
        let result = EchoQueue::<Data>::new(&mut transport, 0, options(size), negotiated);
        let error = result.err().expect("not a power of two");
        let (size, max) = (size.into(), 256);
        assert_eq!(error.cause, Cause::QueueSize { size, max });
    }
    let error = EchoQueue::<Data>::new(&mut transport, 1, options(8), negotiated).err();
    let error = error.expect("there is one queue");
    assert_eq!((error.queue, error.cause), (Some(1), Cause::NoSuchQueue));
    memory.assert_clean();
}

/// A payload whose author made a mistake.
struct Panics {
    buffer: Buffer,
    panics: bool,
}

impl Payload for Panics {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        chain.writable(&mut self.buffer);
        assert!(!self.panics, "a mistake");
    }
}

#[test]
fn a_panic_while_segments_are_named_leaves_no_loan() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let with_header = QueueOptions {
        header_len: 8,
        ..QueueOptions::default()
    };
    let mut queue: EchoQueue<Panics> = start(&mut transport, with_header, 0);
    let request = |panics| Panics {
        buffer: Buffer::from(vec![0; 16]),
        panics,
    };
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = queue.submit(&[1; 8], request(true));
    }));
    assert!(caught.is_err());
    assert_eq!(memory.live().1, 0, "nothing is lent");
    queue.submit(&[1; 8], request(false)).ok().expect("room");
    assert_eq!(memory.live().1, 1, "one buffer is");
    queue.kick();
    let completion = queue.poll(&mut []).expect("an honest device").expect("one");
    assert_eq!(completion.payload.buffer[..8], [1; 8]);
    queue.release(&transport.reset().expect("an honest device"));
    drop(queue);
    memory.assert_clean();
}

/// A buffer that was freed with a panic on its way is not written to afterwards, as taking back its loan would.
#[test]
fn a_panic_while_segments_are_lent_leaves_no_loan_to_be_taken_back() {
    /// Marks the bytes as freed; they are the test's own.
    unsafe fn release(start: NonNull<u8>, _: *mut ()) {
        // SAFETY: it is the begin of the test's bytes, which nobody else uses any more.
        unsafe { start.write(FREED) };
    }
    const FREED: u8 = 0x11;
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let mut queue: EchoQueue<Data> = start(&mut transport, QueueOptions::default(), 0);
    let bytes = NonNull::from(Box::leak(Box::new([0u8; 16]))).cast::<u8>();
    // SAFETY: the bytes are there for good, and used by nobody else until `release`.
    let first = unsafe { Buffer::from_raw(bytes, 16, release, std::ptr::null_mut()) };
    memory.panic_after_loans(1);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let data = Data {
            readable: Vec::new(),
            writable: vec![first, Buffer::from(vec![0; 16])],
        };
        let _ = queue.submit(&[], data);
    }));
    assert!(caught.is_err());
    // SAFETY: the bytes are there for good.
    let byte = || unsafe { bytes.read() };
    assert_eq!(byte(), FREED, "unwinding freed it");
    queue.release(&transport.reset().expect("an honest device"));
    drop(queue);
    assert_eq!(byte(), FREED, "what was freed was written to");
}

/// How often memory of [`raw`] was given back.
static RELEASED: AtomicUsize = AtomicUsize::new(0);

/// A buffer of memory that is no `Vec`'s, aligned to a page.
fn raw(pages: usize) -> Buffer {
    unsafe fn release(start: NonNull<u8>, context: *mut ()) {
        RELEASED.fetch_add(1, Ordering::Relaxed);
        let layout = Layout::from_size_align(context.addr() * 4096, 4096).expect("a layout");
        // SAFETY: allocated so by `raw`.
        unsafe { std::alloc::dealloc(start.as_ptr(), layout) };
    }
    let layout = Layout::from_size_align(pages * 4096, 4096).expect("a layout");
    // SAFETY: there is at least a page.
    let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
    let context = std::ptr::without_provenance_mut(pages);
    // SAFETY: it was allocated for this alone.
    unsafe { Buffer::from_raw(start, layout.size(), release, context) }
}

#[test]
fn memory_of_any_kind_is_lent_and_given_back() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let mut queue = start(&mut transport, QueueOptions::default(), 0);
    let mut page = raw(1);
    page[..5].copy_from_slice(b"hello");
    let data = Data {
        readable: vec![page],
        writable: vec![raw(2)],
    };
    queue.submit(&[], data).expect("room");
    queue.kick();
    let done = queue.poll(&mut []).expect("honest").expect("one");
    assert!(done.payload.writable().starts_with(b"hello\0"));
    assert_eq!(RELEASED.load(Ordering::Relaxed), 0);
    drop(done);
    assert_eq!(RELEASED.load(Ordering::Relaxed), 2);
    // What is in flight comes back with a reset.
    device.set_pace(Pace::Manual);
    let data = Data {
        readable: vec![raw(1)],
        writable: vec![raw(1)],
    };
    queue.submit(&[], data).expect("room");
    queue.kick();
    let lent = queue.release(&transport.reset().expect("honest"));
    assert_eq!(RELEASED.load(Ordering::Relaxed), 2);
    drop(lent);
    assert_eq!(RELEASED.load(Ordering::Relaxed), 4);
    drop(queue);
    memory.assert_clean();
}
