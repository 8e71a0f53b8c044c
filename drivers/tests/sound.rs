//! The sound driver's core and its faces, against a device in plain memory that knows the rules of streams.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use vringlet::asynchronous::Asynchronous;
use vringlet::blocking::Blocking;
use vringlet::fake::{
    DeviceModel, FakeControl, FakeDevice, FakeSound, FakeState, FakeStream, FakeTransport, Fault,
    Memory, Pace, Queues,
};
use vringlet::features::RingFeatures;
use vringlet::sound::{
    Capture, Direction, Event, Format, FrameSink, FrameSource, Inventory, Kind, Layout, Options,
    Params, Playback, Rate, Request, Role, Sound, State, ValueType, copy,
};
use vringlet::transport::{InterruptCauses, Status};
use vringlet::{Buffer, Cause, DeviceId, Driver};

type Card = Sound<FakeTransport<FakeSound>>;
type Face = Asynchronous<Card>;

const JACK_INFO: u32 = 1;
const PCM_INFO: u32 = 0x100;
const SET_PARAMS: u32 = 0x101;
const PREPARE: u32 = 0x102;
const RELEASE: u32 = 0x103;
const START: u32 = 0x104;
const STOP: u32 = 0x105;
const CHMAP_INFO: u32 = 0x200;
const NOT_SUPP: u32 = 0x8002;
const IO_ERR: u32 = 0x8003;

const OUT: u32 = 0;
const IN: u32 = 1;

const EVENT_QUEUE: u16 = 1;

const CD: Layout = Layout {
    format: Format::S16,
    rate: Rate::Hz44100,
    channels: 2,
};

/// Four periods of 64 frames, 256 bytes each.
fn params() -> Params {
    Params::new(CD, 64, 4).expect("plain parameters")
}

fn open_with(model: FakeSound, options: Options) -> (FakeDevice<FakeSound>, Card) {
    let device = FakeDevice::new(model);
    let card = Sound::new(device.transport(), options).expect("an honest device");
    (device, card)
}

fn open(model: FakeSound) -> (FakeDevice<FakeSound>, Card) {
    open_with(model, Options::default())
}

/// A card of which the streams are known, shared.
fn share(model: FakeSound) -> (FakeDevice<FakeSound>, Face) {
    let (device, card) = open(model);
    let face = Asynchronous::new(card);
    run(&face, face.query()).expect("streams");
    (device, face)
}

fn blocking(model: FakeSound) -> (FakeDevice<FakeSound>, Blocking<Card>) {
    let (device, card) = open(model);
    let mut card = Blocking::new(card);
    card.query(now).expect("streams");
    (device, card)
}

/// A wait that ends at once: an honest device is done by then.
fn now() -> bool {
    false
}

fn refusal(model: FakeSound) -> Cause {
    let device = FakeDevice::new(model);
    match Card::new(device.transport(), Options::default()) {
        Ok(_) => panic!("the device was accepted"),
        Err(error) => error.cause,
    }
}

/// Does the owner's work until the future is done, or `None` when it would never be.
fn try_run<F: Future>(face: &Face, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let context = &mut Context::from_waker(Waker::noop());
    for _ in 0..1000 {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Some(output);
        }
        face.kick();
        // What goes wrong here comes back with the future too.
        let _ = face.process();
    }
    None
}

fn run<F: Future>(face: &Face, future: F) -> F::Output {
    try_run(face, future).expect("a future that ends")
}

fn play(face: &Face) -> Playback<'_, FakeTransport<FakeSound>> {
    run(face, face.play(OUT, params())).expect("an output stream")
}

fn record(face: &Face) -> Capture<'_, FakeTransport<FakeSound>> {
    run(face, face.record(IN, params())).expect("an input stream")
}

fn take_log(device: &FakeDevice<FakeSound>) -> Vec<u32> {
    device.with(|model| model.log.drain(..).map(|(kind, _)| kind).collect())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 % 253) as u8).collect()
}

fn recorded(len: usize) -> Vec<u8> {
    (0..len).map(FakeStream::sample).collect()
}

/// A model whose stream `id` has so many periods to give, and then waits.
fn paced(id: u32, credit: usize) -> FakeSound {
    let mut model = FakeSound::new();
    model.streams[id as usize].credit = credit;
    model
}

/// Lets `periods` elapse on a stream.
fn elapse(device: &FakeDevice<FakeSound>, id: u32, periods: usize) {
    device.with(|model| model.streams[id as usize].credit += periods);
    device.pump();
}

#[test]
fn streams_jacks_and_channel_maps_are_read_at_the_start() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.jacks = vec![vec![0; 24], {
        let mut jack = vec![0; 24];
        jack[4] = 1;
        jack[16] = 1;
        jack
    }];
    let mut chmap = vec![0; 24];
    chmap[5..9].copy_from_slice(&[3, 3, 4, 99]);
    model.chmaps = vec![chmap];
    let (device, card) = blocking(model);
    let mut card = card.into_inner();
    let config = card.config();
    assert_eq!((config.streams, config.jacks, config.chmaps), (2, 2, 1));
    assert_eq!(config.controls, 0);
    let items = card.items();
    let [out, input] = items.streams.items() else {
        panic!("two streams and not {:?}", items.streams);
    };
    assert_eq!(out.direction, Direction::Output);
    assert_eq!(input.direction, Direction::Input);
    let formats: Vec<_> = out.formats().map(|format| format.to_string()).collect();
    assert_eq!(formats, ["s8", "u8", "s16", "u16", "s32", "u32", "float"]);
    assert_eq!(out.rates().map(Rate::hz).max(), Some(384_000));
    assert!(out.takes(CD));
    let jacks = items.jacks.items();
    assert!(!jacks[0].connected && !jacks[0].can_remap);
    assert!(jacks[1].connected && jacks[1].can_remap);
    let names: Vec<_> = items.chmaps.items()[0].names().collect();
    assert_eq!(names, ["FL", "FR", "?"]);
    assert_eq!(items.controls, Inventory::Unknown);

    // Only the one jack may be remapped.
    let refused = card.submit(Request::remap_jack(0, 1, 2).expect("memory"));
    assert_eq!(refused.expect_err("no").error.cause, Cause::Unsupported);
    let mut card = Blocking::new(card);
    let request = Request::remap_jack(1, 5, 6).expect("memory");
    card.perform(request, now).expect("a jack that can");
    assert_eq!(device.with(|model| model.remapped), Some((1, 5, 6)));
    drop(card);
    memory.assert_clean();
}

#[test]
fn a_device_that_will_not_tell_of_its_jacks_is_used_all_the_same() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.jacks = vec![vec![0; 24]];
    model.chmaps = vec![vec![0; 24]];
    model.refused = vec![JACK_INFO, CHMAP_INFO];
    let (_device, face) = share(model);
    face.with(|card| {
        let refused = Cause::Refused {
            command: "JACK_INFO",
            code: NOT_SUPP,
            name: "NOT_SUPP",
        };
        assert_eq!(card.items().jacks, Inventory::Refused(refused));
        assert!(matches!(card.items().chmaps, Inventory::Refused(_)));
        assert_eq!(card.items().streams.items().len(), 2);
    });
    let _ = play(&face);
    drop(face);
    memory.assert_clean();
}

#[test]
fn every_offered_format_rate_and_channel_count_is_played_as_it_is() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.streams[0].formats = (1 << Format::ALL.len()) - 1;
    model.streams[0].rates = (1 << Rate::ALL.len()) - 1;
    model.streams[0].channels = (1, 8);
    let (device, face) = share(model);
    for format in Format::ALL.iter().copied() {
        for rate in Rate::ALL.iter().copied() {
            for channels in 1..=8 {
                let layout = Layout {
                    format,
                    rate,
                    channels,
                };
                let params = Params::new(layout, 16, 3).expect("plain parameters");
                let frames = layout.bytes(16 * 7 + 2).expect("whole bytes") as usize;
                let frames = pattern(frames);
                let played = run(&face, async {
                    let mut playback = face.play(OUT, params).await?;
                    playback.write_all(&frames).await?;
                    playback.flush().await?;
                    playback.close().await?;
                    Ok::<_, vringlet::Error>(())
                });
                assert_eq!(played, Ok(()), "{layout}");
                let heard = device.with(|model| std::mem::take(&mut model.streams[0].played));
                assert!(heard == frames, "{layout}");
            }
        }
    }
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_stream_lives_in_the_order_of_the_specification() {
    let memory = Memory::fresh();
    let (device, face) = share(FakeSound::new());
    let mut playback = play(&face);
    assert_eq!(take_log(&device), [SET_PARAMS, PREPARE]);
    assert_eq!(face.with(|card| card.state(OUT)), Some(State::Prepared));
    // Two periods and a part of four: pre-buffered, and not started.
    run(&face, playback.write_all(&pattern(700))).expect("room");
    face.kick();
    assert_eq!(take_log(&device), []);
    assert_eq!(device.with(|model| model.streams[0].waiting()), 2);
    run(&face, playback.flush()).expect("all played");
    assert_eq!(take_log(&device), [START]);
    assert!(device.with(|model| model.streams[0].played.clone()) == pattern(700));
    run(&face, playback.close()).expect("an end");
    assert_eq!(take_log(&device), [STOP, RELEASE]);
    assert_eq!(face.with(|card| card.state(OUT)), Some(State::Set));
    // And again.
    let playback = play(&face);
    run(&face, playback.close()).expect("an end");
    assert_eq!(take_log(&device), [SET_PARAMS, PREPARE, RELEASE]);
    let stats = face.with(|card| card.stats(OUT)).expect("a stream");
    assert_eq!((stats.periods, stats.bytes, stats.errors), (3, 700, 0));
    drop(face);
    assert_eq!(device.with(|model| model.unreleased), 0);
    memory.assert_clean();
}

#[test]
fn commands_out_of_order_never_reach_the_device() {
    let memory = Memory::fresh();
    let (device, mut card) = blocking(FakeSound::new());
    let wrong = |command, state| Cause::WrongState { command, state };
    let cause = |result: Result<(), vringlet::Error>| result.expect_err("no").cause;
    assert_eq!(cause(card.start(OUT, now)), wrong("PCM_START", "unset"));
    assert_eq!(cause(card.release(OUT, now)), wrong("PCM_RELEASE", "unset"));
    card.prepare(OUT, params(), now).expect("a stream");
    assert_eq!(cause(card.stop(OUT, now)), wrong("PCM_STOP", "prepared"));
    card.start(OUT, now).expect("a stream");
    assert_eq!(cause(card.start(OUT, now)), wrong("PCM_START", "running"));
    assert_eq!(
        cause(card.release(OUT, now)),
        wrong("PCM_RELEASE", "running")
    );
    card.stop(OUT, now).expect("a stream");
    card.start(OUT, now).expect("a stream that goes on");
    card.stop(OUT, now).expect("a stream");
    card.release(OUT, now).expect("a stream");
    let no_such = Cause::InvalidParameter("no such stream is known");
    assert_eq!(cause(card.start(7, now)), no_such);
    // Frames where there is nothing to play them on.
    let buffer = || Buffer::zeroed(256).expect("memory");
    let mut card = card.into_inner();
    for request in [
        Request::play(OUT, buffer(), 256),
        Request::play(7, buffer(), 256),
        Request::play(IN, buffer(), 256),
        Request::record(IN, buffer()),
        Request::record(OUT, buffer()),
    ] {
        let rejected = card.submit(request).expect_err("no");
        let (buffer, _) = rejected.payload.into_frames().expect("the buffer");
        assert_eq!(buffer.len(), 256);
    }
    card.kick();
    assert_eq!(device.requests(2), 0);
    drop(card);
    memory.assert_clean();
}

#[test]
fn periods_have_the_length_and_number_that_was_said() {
    let memory = Memory::fresh();
    let (_device, mut card) = blocking(paced(OUT, 0));
    card.prepare(OUT, params(), now).expect("a stream");
    card.prepare(IN, params(), now).expect("a stream");
    let mut card = card.into_inner();
    let buffer = || Buffer::zeroed(512).expect("memory");
    let mut cause = |request| card.submit(request).map_err(|it| it.error.cause);
    let length = Cause::InvalidParameter("frames of another length than a period");
    let empty = cause(Request::play(OUT, buffer(), 0));
    assert_eq!(empty, Err(Cause::EmptyRequest));
    assert_eq!(cause(Request::play(OUT, buffer(), 257)), Err(length));
    assert_eq!(cause(Request::record(IN, buffer())), Err(length));
    for _ in 0..4 {
        cause(Request::play(OUT, buffer(), 256)).expect("room");
    }
    let fifth = cause(Request::play(OUT, buffer(), 256));
    assert_eq!(fifth, Err(Cause::Busy));
    drop(card);
    memory.assert_clean();
}

#[test]
fn parameters_that_are_not_offered_are_refused_before_the_device_sees_them() {
    let memory = Memory::fresh();
    let (device, face) = share(FakeSound::new());
    for layout in [
        Layout {
            format: Format::S24,
            ..CD
        },
        Layout {
            rate: Rate::Hz12000,
            ..CD
        },
        Layout { channels: 3, ..CD },
        Layout { channels: 0, ..CD },
    ] {
        let Ok(params) = Params::new(layout, 64, 4) else {
            assert_eq!(layout.channels, 0);
            continue;
        };
        let error = run(&face, face.play(OUT, params)).err().expect("refused");
        assert!(matches!(error.cause, Cause::InvalidParameter(_)), "{error}");
    }
    assert_eq!(take_log(&device), []);
    // The stream is nobody's again.
    let _ = play(&face);
    drop(face);
    memory.assert_clean();
}

#[test]
fn all_periods_are_kept_with_the_device_and_none_is_allocated_anew() {
    let memory = Memory::fresh();
    let (device, face) = share(paced(OUT, 0));
    let mut playback = play(&face);
    let mut written = 0;
    let mut addresses = std::collections::BTreeSet::new();
    for round in 0..50 {
        // As much as there is room for.
        while let Some(space) = try_now(&face, playback.space()) {
            let space = space.expect("room");
            addresses.insert(space.as_ptr() as usize);
            let len = space.len();
            for (index, byte) in space.iter_mut().enumerate() {
                *byte = ((written + index) * 7 % 253) as u8;
            }
            playback.commit(len);
            written += len;
        }
        assert_eq!(device.with(|model| model.streams[0].waiting()), 4);
        elapse(&device, OUT, 1 + round % 3);
        face.process().expect("an honest device");
    }
    assert_eq!(addresses.len(), 4);
    let heard = device.with(|model| model.streams[0].played.clone());
    assert!(heard == pattern(heard.len()) && heard.len() > 20_000);
    let stats = face.with(|card| card.stats(OUT)).expect("a stream");
    assert_eq!((stats.xruns, stats.errors), (0, 0));
    drop(playback);
    face.process().expect("an honest device");
    drop(face);
    assert_eq!(device.with(|model| model.unreleased), 0);
    memory.assert_clean();
}

/// What a future gives without waiting for more to elapse.
fn try_now<F: Future>(face: &Face, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let context = &mut Context::from_waker(Waker::noop());
    for _ in 0..10 {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Some(output);
        }
        face.kick();
        face.process().expect("an honest device");
    }
    None
}

#[test]
fn an_underrun_is_counted_once() {
    let memory = Memory::fresh();
    let (device, face) = share(paced(OUT, 0));
    let mut playback = play(&face);
    let frames = pattern(256);
    let xruns = || face.with(|card| card.stats(OUT)).expect("a stream").xruns;
    for _ in 0..4 {
        run(&face, playback.write_all(&frames)).expect("room");
    }
    // The fifth starts the stream and waits for room.
    assert!(try_now(&face, playback.space()).is_none());
    elapse(&device, OUT, 3);
    run(&face, playback.write_all(&frames)).expect("room");
    face.kick();
    assert_eq!(xruns(), 0);
    elapse(&device, OUT, 9);
    run(&face, playback.write_all(&frames)).expect("room");
    assert_eq!(xruns(), 1);
    // The end of a stream is none.
    run(&face, playback.flush()).expect("all played");
    run(&face, playback.close()).expect("an end");
    assert_eq!(xruns(), 1);
    drop(face);
    memory.assert_clean();
}

#[test]
fn what_is_recorded_comes_in_order_and_whole() {
    let memory = Memory::fresh();
    let (device, face) = share(paced(IN, 0));
    let mut capture = record(&face);
    assert_eq!(take_log(&device), [SET_PARAMS, PREPARE, START]);
    assert_eq!(device.with(|model| model.streams[1].waiting()), 4);
    let mut heard = Vec::new();
    for round in 0..40 {
        elapse(&device, IN, 1 + round % 3);
        face.process().expect("an honest device");
        while let Some(frames) = try_now(&face, capture.frames()) {
            let frames = frames.expect("frames");
            let len = frames.len().min(100);
            heard.extend_from_slice(&frames[..len]);
            capture.consume(len);
        }
        face.kick();
        assert_eq!(device.with(|model| model.streams[1].waiting()), 4);
    }
    assert!(heard == recorded(heard.len()) && heard.len() == 79 * 256);
    let stats = face.with(|card| card.stats(IN)).expect("a stream");
    assert_eq!((stats.periods, stats.xruns, stats.errors), (79, 0, 0));
    // All periods full is one too late.
    elapse(&device, IN, 4);
    face.process().expect("an honest device");
    let len = run(&face, capture.frames()).expect("frames").len();
    capture.consume(len);
    let stats = face.with(|card| card.stats(IN)).expect("a stream");
    assert_eq!(stats.xruns, 1);
    run(&face, capture.close()).expect("an end");
    assert_eq!(take_log(&device), [STOP, RELEASE]);
    drop(face);
    memory.assert_clean();
}

#[test]
fn the_rest_of_a_recording_has_its_status_right_behind_it() {
    // 100 bytes, of which the whole frames count; 252 leave the status half in the buffer.
    for rest in [0, 100, 252, 255] {
        let memory = Memory::fresh();
        let mut model = paced(IN, 0);
        model.streams[1].rest = rest;
        let (_device, mut card) = blocking(model);
        card.prepare(IN, params(), now).expect("a stream");
        card.start(IN, now).expect("a stream");
        let card_ = card.driver();
        let buffer = Buffer::zeroed(256).expect("memory");
        card_.submit(Request::record(IN, buffer)).expect("room");
        card_.kick();
        card.stop(IN, now).expect("a stream");
        let card_ = card.driver();
        let release = Request::release(IN).expect("memory");
        let release = card_.submit(release).expect("a stopped stream");
        card_.kick();
        // The recording comes before the RELEASE that ended it.
        let finished = card_.poll().expect("no lies").expect("the recording");
        assert_ne!(finished.token, release);
        assert_eq!(finished.result, Ok(()), "{rest}");
        let (buffer, len) = finished.request.into_frames().expect("the buffer");
        assert_eq!(len, rest);
        assert_eq!(buffer[..len], recorded(len));
        let finished = card_.poll().expect("no lies").expect("the RELEASE");
        assert_eq!((finished.token, finished.result), (release, Ok(())));
        drop(card);
        memory.assert_clean();
    }
}

#[test]
fn frames_go_from_a_source_to_a_sink() {
    let memory = Memory::fresh();
    let (device, face) = share(FakeSound::new());
    let mut capture = record(&face);
    let mut playback = play(&face);
    let copied = run(&face, copy(&mut capture, &mut playback, 10_000));
    assert_eq!(copied, Ok(10_000));
    run(&face, playback.flush()).expect("all played");
    assert!(device.with(|model| model.streams[0].played.clone()) == recorded(10_000));
    drop((capture, playback));
    face.process().expect("an honest device");
    face.with(|card| {
        assert_eq!(card.state(OUT), Some(State::Set));
        assert_eq!(card.state(IN), Some(State::Set));
    });
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_stream_that_is_dropped_is_stopped_and_released() {
    let memory = Memory::fresh();
    let (device, face) = share(paced(OUT, 0));
    let mut playback = play(&face);
    run(&face, playback.write_all(&pattern(1024))).expect("room");
    assert!(try_now(&face, playback.space()).is_none());
    take_log(&device);
    // Even while somebody else wants it.
    assert_eq!(
        run(&face, face.play(OUT, params()))
            .err()
            .map(|it| it.cause),
        Some(Cause::Busy)
    );
    drop(playback);
    face.process().expect("an honest device");
    assert_eq!(take_log(&device), [STOP, RELEASE]);
    face.with(|card| {
        assert_eq!(card.in_flight(), 0);
        assert_eq!(card.state(OUT), Some(State::Set));
    });
    // It is there for the next.
    let playback = play(&face);
    // And is ended even if nobody has time for it but the reset.
    drop(playback);
    drop(face);
    assert_eq!(device.with(|model| model.unreleased), 0);
    memory.assert_clean();
}

#[test]
fn a_future_that_is_dropped_anywhere_leaves_no_stream_behind() {
    for polls in 0..8 {
        let memory = Memory::fresh();
        let (device, face) = share(FakeSound::new());
        {
            let future = async {
                let mut playback = face.play(OUT, params()).await?;
                playback.write_all(&pattern(2000)).await?;
                playback.flush().await?;
                playback.close().await
            };
            let mut future = pin!(future);
            let context = &mut Context::from_waker(Waker::noop());
            for _ in 0..polls {
                let _ = future.as_mut().poll(context);
                face.kick();
            }
        }
        face.process().expect("an honest device");
        let state = device.with(|model| model.streams[0].state);
        assert!(
            matches!(state, FakeState::Unset | FakeState::Set),
            "{state:?} after {polls} polls"
        );
        run(&face, play(&face).close()).expect("a stream that is nobody's");
        drop(face);
        memory.assert_clean();
    }
}

#[test]
fn streams_are_released_before_the_device_is_reset() {
    let memory = Memory::fresh();
    let (device, mut card) = blocking(paced(OUT, 0));
    for stream in [OUT, IN] {
        card.prepare(stream, params(), now).expect("a stream");
        card.start(stream, now).expect("a stream");
    }
    let card_ = card.driver();
    let buffer = Buffer::zeroed(256).expect("memory");
    card_.submit(Request::play(OUT, buffer, 256)).expect("room");
    card_.kick();
    take_log(&device);
    let returned = card_.reset().expect("a reset");
    assert_eq!(returned.len(), 1);
    assert_eq!(take_log(&device), [STOP, STOP, RELEASE, RELEASE]);
    assert_eq!(device.with(|model| model.unreleased), 0);
    card_.restart().expect("an honest device");
    assert_eq!(card_.state(OUT), Some(State::Unset));
    card.query(now).expect("streams");
    card.prepare(OUT, params(), now).expect("a stream");
    drop(card);
    assert_eq!(device.with(|model| model.unreleased), 0);
    memory.assert_clean();
}

#[test]
fn a_silent_device_is_reset_all_the_same() {
    let memory = Memory::fresh();
    let (device, mut card) = blocking(FakeSound::new());
    card.prepare(OUT, params(), now).expect("a stream");
    card.start(OUT, now).expect("a stream");
    device.inject(Fault::Silent);
    drop(card);
    assert_eq!(device.with(|model| model.unreleased), 1);
    memory.assert_clean();
}

#[test]
fn streams_that_an_earlier_driver_left_over_are_released_first() {
    let memory = Memory::fresh();
    let mut model = paced(OUT, 0);
    model.remembers = true;
    let (device, mut card) = blocking(model);
    card.prepare(OUT, params(), now).expect("a stream");
    card.start(OUT, now).expect("a stream");
    for _ in 0..3 {
        let buffer = Buffer::zeroed(256).expect("memory");
        let request = Request::play(OUT, buffer, 256);
        card.driver().submit(request).expect("room");
    }
    card.driver().kick();
    // It stops answering.
    device.inject(Fault::Silent);
    drop(card);
    device.heal();
    assert_eq!(device.with(|model| model.unreleased), 1);

    let card = Sound::new(device.transport(), Options::default());
    let face: Face = Asynchronous::new(card.expect("a device that seems fine"));
    run(&face, face.query()).expect("streams");
    elapse(&device, OUT, 1);
    assert!(face.process().is_err());
    face.restart().expect("a device that has forgotten");
    assert_eq!(device.with(|model| model.streams[0].waiting()), 0);
    device.with(|model| {
        model.streams[0].credit = usize::MAX;
        model.streams[0].state = FakeState::Unset;
        model.streams[0].played.clear();
    });
    // The device's, who used memory that it was no longer lent.
    let _ = memory.take_violations();
    run(&face, face.query()).expect("streams");
    run(&face, async {
        let mut playback = face.play(OUT, params()).await?;
        playback.write_all(&pattern(3000)).await?;
        playback.flush().await?;
        playback.close().await
    })
    .expect("a stream");
    assert!(device.with(|model| model.streams[0].played.clone()) == pattern(3000));
    drop(face);
    memory.assert_clean();
}

#[test]
fn errors_of_periods_are_told_and_counted_and_the_stream_goes_on() {
    let memory = Memory::fresh();
    let (device, face) = share(FakeSound::new());
    let mut playback = play(&face);
    run(&face, playback.write_all(&pattern(256))).expect("room");
    device.with(|model| model.streams[0].next_status = Some(IO_ERR));
    let error = run(&face, playback.flush()).expect_err("a failed period");
    let expected = Cause::Refused {
        command: "output",
        code: IO_ERR,
        name: "IO_ERR",
    };
    assert_eq!(error.cause, expected);
    run(&face, playback.write_all(&pattern(256))).expect("room");
    device.with(|model| {
        model.streams[0].next_status = Some(u32::MAX);
        model.streams[0].latency = 77;
    });
    let error = run(&face, playback.flush()).expect_err("a period of no status");
    assert_eq!(error.cause, Cause::NoStatus);
    run(&face, playback.write_all(&pattern(256))).expect("room");
    run(&face, playback.flush()).expect("all played");
    let stats = face.with(|card| card.stats(OUT)).expect("a stream");
    assert_eq!((stats.errors, stats.periods), (2, 1));
    assert_eq!((stats.latency_bytes, stats.latency_bytes_max), (77, 77));
    drop(playback);
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_command_that_is_refused_changes_nothing() {
    let memory = Memory::fresh();
    let (device, face) = share(FakeSound::new());
    for command in [SET_PARAMS, PREPARE] {
        device.with(|model| model.answers.push((command, NOT_SUPP)));
        let error = run(&face, face.play(OUT, params())).err().expect("refused");
        assert!(matches!(error.cause, Cause::Refused { .. }), "{error}");
        face.process().expect("an honest device");
    }
    let mut playback = play(&face);
    device.with(|model| model.answers.push((START, IO_ERR)));
    run(&face, playback.write_all(&pattern(100))).expect("room");
    assert!(run(&face, playback.flush()).is_err());
    assert_eq!(face.with(|card| card.state(OUT)), Some(State::Prepared));
    run(&face, playback.flush()).expect("another time");
    // A device that will not stop is released, and one that will not release is left alone.
    device.with(|model| {
        model.answers.push((STOP, IO_ERR));
        model.answers.push((RELEASE, IO_ERR));
    });
    assert!(run(&face, playback.close()).is_err());
    face.process().expect("an honest device");
    face.with(|card| assert_ne!(card.state(OUT), Some(State::Running)));
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_stream_that_is_not_released_is_lost_until_the_restart() {
    let memory = Memory::fresh();
    let (device, face) = share(FakeSound::new());
    let playback = play(&face);
    device.with(|model| model.answers.push((RELEASE, IO_ERR)));
    drop(playback);
    face.process().expect("an honest device");
    assert_eq!(face.with(|card| card.state(OUT)), Some(State::Lost));
    assert!(run(&face, face.play(OUT, params())).is_err());
    let error = face.with(|card| card.error(Cause::NeedsReset));
    face.stop(error);
    face.restart().expect("an honest device");
    run(&face, face.query()).expect("streams");
    run(&face, play(&face).close()).expect("a stream");
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_playback_of_before_a_restart_ends_nothing_of_after() {
    let memory = Memory::fresh();
    let (device, face) = share(FakeSound::new());
    let old = play(&face);
    face.stop(face.with(|card| card.error(Cause::NeedsReset)));
    face.restart().expect("an honest device");
    run(&face, face.query()).expect("streams");
    let new = play(&face);
    take_log(&device);
    drop(old);
    face.process().expect("an honest device");
    assert_eq!(take_log(&device), []);
    drop(new);
    drop(face);
    memory.assert_clean();
}

#[test]
fn streams_of_one_direction_share_their_queue_fairly() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.streams[1] = FakeStream::new(0);
    let (_device, face) = share(model);
    let with = |periods| Params::new(CD, 8, periods).expect("plain parameters");
    let first = run(&face, face.play(0, with(40))).expect("room");
    let open = |periods| {
        run(&face, face.play(1, with(periods)))
            .err()
            .map(|it| it.cause)
    };
    assert_eq!(open(25), Some(Cause::Busy));
    face.process().expect("an honest device");
    assert_eq!(open(24), None);
    face.process().expect("an honest device");
    drop(first);
    face.process().expect("an honest device");
    assert_eq!(open(64), None);
    face.process().expect("an honest device");
    let most = Cause::InvalidParameter("more periods than the queue takes");
    assert_eq!(open(65), Some(most));
    drop(face);
    memory.assert_clean();
}

#[test]
fn without_indirect_descriptors_fewer_periods_fit() {
    let memory = Memory::fresh();
    let options = Options {
        declined: RingFeatures::INDIRECT_DESC.bits(),
        ..Options::default()
    };
    let (device, card) = open_with(FakeSound::new(), options);
    let face = Asynchronous::new(card);
    run(&face, face.query()).expect("streams");
    let with = |periods| Params::new(CD, 8, periods).expect("plain parameters");
    assert!(run(&face, face.play(OUT, with(22))).is_err());
    let frames = pattern(5000);
    run(&face, async {
        let mut playback = face.play(OUT, with(21)).await?;
        playback.write_all(&frames).await?;
        playback.flush().await?;
        playback.close().await
    })
    .expect("a stream");
    assert!(device.with(|model| model.streams[0].played.clone()) == frames);
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_device_gets_room_for_events_when_it_has_told_what_it_has() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.jacks = vec![vec![0; 24]];
    let (device, card) = open(model);
    let face = Asynchronous::new(card);
    device.with(|model| model.tell(0x1000, 0));
    device.pump();
    let streams = Request::info(Kind::Streams, 2).expect("memory");
    run(&face, face.perform(streams)).expect("streams");
    device.pump();
    face.process().expect("an honest device");
    assert_eq!(face.with(Card::take_event), None);

    run(&face, face.query()).expect("streams");
    device.pump();
    // It finds the buffers by itself. There is one that, notified of them, does nothing else any more.
    assert_eq!(device.notifications(EVENT_QUEUE), 0);
    face.process().expect("an honest device");
    assert_eq!(face.with(Card::take_event), Some(Event::JackConnected(0)));
    drop(face);
    memory.assert_clean();
}

#[test]
fn events_are_taken_in_order_and_kept_in_bounds() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.jacks = vec![vec![0; 24]];
    model.streams[0].features = 1 << 4;
    let (device, face) = share(model);
    device.with(|model| {
        model.tell(0x1000, 0);
        model.tell(0x1101, OUT);
        // No such jack, no such stream, no such event.
        model.tell(0x1001, 1);
        model.tell(0x1101, 99);
        model.tell(0x4321, 0);
    });
    device.pump();
    face.process().expect("an honest device");
    face.with(|card| {
        assert!(card.items().jacks.items()[0].connected);
        assert_eq!(card.take_event(), Some(Event::JackConnected(0)));
        assert_eq!(card.take_event(), Some(Event::Xrun(OUT)));
        assert_eq!(card.take_event(), None);
        assert_eq!(card.stats(OUT).map(|it| it.xrun_events), Some(1));
    });
    for _ in 0..300 {
        device.with(|model| model.tell(0x1001, 0));
        device.pump();
        face.process().expect("an honest device");
    }
    let count = std::iter::from_fn(|| face.with(Card::take_event)).count();
    assert_eq!(count, 64);
    let report = face.with(|card| card.report());
    for (name, value) in [("events", 305), ("bad_events", 3), ("lost_events", 236)] {
        assert!(report.counters.contains(&(name, value)), "{name}");
    }
    drop(face);
    memory.assert_clean();
}

/// An enumerated element of two values, and a volume.
fn with_controls() -> FakeSound {
    let mut model = FakeSound::new();
    model.features = 1;
    let info = |role: u32, kind: u32, access: u32, count: u32, name: &str, value: [u32; 3]| {
        let mut info = Vec::new();
        for word in [0, role, kind, access, count, 0] {
            info.extend(word.to_le_bytes());
        }
        let mut text = [0; 44];
        text[..name.len()].copy_from_slice(name.as_bytes());
        info.extend(text);
        info.extend(value.iter().flat_map(|word| word.to_le_bytes()));
        info.extend([0; 12]);
        info
    };
    model.controls = vec![
        FakeControl {
            info: info(2, 1, 0x3 | 0x10, 2, "Master Volume", [0, 100, 1]),
            value: vec![9; 512],
            items: Vec::new(),
            tlv: vec![1, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0],
        },
        FakeControl {
            info: info(0, 3, 0x1, 1, "Source", [2, 0, 0]),
            value: vec![0; 512],
            items: vec!["Mic", "Line"],
            tlv: Vec::new(),
        },
    ];
    model
}

#[test]
fn controls_are_read_and_written_as_far_as_they_may_be() {
    let memory = Memory::fresh();
    let (device, face) = share(with_controls());
    let controls = face.with(|card| card.items().controls.items().to_vec());
    assert_eq!(controls[0].name, "Master Volume");
    assert_eq!(controls[0].role, Role::Volume(Direction::Output));
    let range = ValueType::Integer {
        min: 0,
        max: 100,
        step: 1,
    };
    assert_eq!(controls[0].value_type, range);
    let names = run(&face, face.control_items(1)).expect("names");
    assert_eq!(names, ["Mic", "Line"]);
    assert!(run(&face, face.control_items(0)).is_err());
    let values = run(&face, face.read_control(0)).expect("values");
    assert_eq!(values, [9; 8]);
    run(&face, face.write_control(0, &[1, 0, 0, 0, 2, 0, 0, 0])).expect("written");
    let values = run(&face, face.read_control(0)).expect("values");
    assert_eq!(values, [1, 0, 0, 0, 2, 0, 0, 0]);
    assert!(run(&face, face.write_control(0, &[1])).is_err());
    let denied = run(&face, face.write_control(1, &[0; 4])).expect_err("read-only");
    assert_eq!(denied.cause, Cause::Unsupported);
    assert!(run(&face, face.read_control(2)).is_err());
    // Metadata is as long as it is.
    let request = Request::read_tlv(0, 64).expect("memory");
    let request = run(&face, face.perform(request)).expect("metadata");
    assert_eq!(request.answer(), [1, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0]);
    let request = Request::write_tlv(0, 1, &[5]).expect("memory");
    let failed = run(&face, face.perform(request)).expect_err("no right");
    assert_eq!(failed.error.cause, Cause::Unsupported);
    assert!(Request::tlv_command(0, 1, &vec![0; 20_000]).is_err());
    device.with(|model| model.tell(0x1200, 1 << 16));
    device.pump();
    face.process().expect("an honest device");
    let changed = Event::ControlChanged {
        control: 0,
        what: 1,
    };
    assert_eq!(face.with(Card::take_event), Some(changed));
    drop(face);
    memory.assert_clean();
}

#[test]
fn controls_of_every_type_and_role_are_told() {
    let memory = Memory::fresh();
    let mut model = with_controls();
    let template = model.controls[0].info.clone();
    let control = |role: u32, kind: u32, count: u32, value: [u64; 3]| {
        let mut info = template.clone();
        info[4..8].copy_from_slice(&role.to_le_bytes());
        info[8..12].copy_from_slice(&kind.to_le_bytes());
        info[16..20].copy_from_slice(&count.to_le_bytes());
        for (to, from) in info[68..92].chunks_exact_mut(8).zip(value) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        FakeControl {
            info,
            value: vec![0; 512],
            items: Vec::new(),
            tlv: Vec::new(),
        }
    };
    model.controls = vec![
        control(4, 0, 128, [0; 3]),
        control(5, 2, 64, [-5i64 as u64, 1 << 40, 3]),
        control(6, 4, 512, [0; 3]),
        control(7, 5, 1, [0; 3]),
        control(3, 0, 1, [0; 3]),
    ];
    let (_device, face) = share(model);
    let controls = face.with(|card| card.items().controls.items().to_vec());
    let told: Vec<_> = controls
        .iter()
        .map(|control| (control.role, control.value_type, control.value_len()))
        .collect();
    let long = ValueType::Integer64 {
        min: -5,
        max: 1 << 40,
        step: 3,
    };
    let (output, input) = (Direction::Output, Direction::Input);
    assert_eq!(
        told,
        [
            (Role::Mute(output), ValueType::Boolean, 512),
            (Role::Mute(input), long, 512),
            (Role::Gain(output), ValueType::Bytes, 512),
            (Role::Gain(input), ValueType::Iec958, 176),
            (Role::Volume(input), ValueType::Boolean, 4),
        ]
    );
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_stream_in_hand_says_what_it_is() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.jacks = vec![{
        let mut jack = vec![0; 24];
        jack[4] = 1;
        jack
    }];
    let (device, face) = share(model);
    assert_eq!(face.with(|card| card.params(OUT)), None);
    let playback = play(&face);
    assert_eq!((playback.stream(), playback.params()), (OUT, params()));
    assert_eq!(playback.layout(), params().layout());
    assert_eq!(face.with(|card| card.params(OUT)), Some(params()));
    let capture = record(&face);
    assert_eq!((capture.stream(), capture.params()), (IN, params()));
    assert_eq!(capture.layout(), params().layout());
    run(&face, playback.close()).expect("an end");
    run(&face, capture.close()).expect("an end");

    // A stream flows one way, if there is one.
    let cause = |result: Result<(), vringlet::Error>| result.expect_err("no stream").cause;
    let other_way = Cause::InvalidParameter("the stream flows the other way");
    let none = Cause::InvalidParameter("no such stream is known");
    for (stream, expected) in [(IN, other_way), (9, none)] {
        let played = run(&face, face.play(stream, params())).map(drop);
        assert_eq!(cause(played), expected);
    }
    for (stream, expected) in [(OUT, other_way), (9, none)] {
        let recorded = run(&face, face.record(stream, params())).map(drop);
        assert_eq!(cause(recorded), expected);
    }
    run(&face, face.remap_jack(0, 5, 6)).expect("a jack that can");
    assert_eq!(device.with(|model| model.remapped), Some((0, 5, 6)));
    assert!(run(&face, face.remap_jack(9, 5, 6)).is_err());
    drop(face);
    memory.assert_clean();
}

#[test]
fn what_frames_are_is_said_as_people_write_it() {
    assert_eq!(CD.to_string(), "s16 44100 Hz 2 channels");
    let padded = format!("{:>7}|{:<7}|", Direction::Output, Direction::Input);
    assert_eq!(padded, " output|input  |");
    assert_eq!(format!("{:>10}", State::Prepared), "  prepared");
}

#[test]
fn why_it_interrupts_is_told_once() {
    let memory = Memory::fresh();
    let (device, card) = open(FakeSound::new());
    device.change_config(|_| ());
    assert_eq!(card.take_interrupt_causes(), InterruptCauses::CONFIG);
    assert_eq!(card.take_interrupt_causes(), InterruptCauses::empty());
    drop(card);
    memory.assert_clean();
}

#[test]
fn impossible_streams_and_answers_are_errors() {
    let streams: [fn(&mut FakeSound); 7] = [
        |model| model.streams[0].direction = 2,
        |model| model.streams[0].channels = (2, 1),
        |model| model.streams[1].channels = (0, 0),
        |model| model.lengths = vec![(PCM_INFO, 3)],
        |model| model.lengths = vec![(PCM_INFO, 67)],
        |model| model.answers = vec![(PCM_INFO, 0)],
        |model| model.lengths = vec![(PCM_INFO, u32::MAX)],
    ];
    for tamper in streams {
        let memory = Memory::fresh();
        let mut model = FakeSound::new();
        tamper(&mut model);
        let (_device, card) = open(model);
        let mut card = Blocking::new(card);
        assert!(card.query(now).is_err());
        assert!(card.driver().items().streams.items().is_empty());
        drop(card);
        memory.assert_clean();
    }
    let controls: [fn(&mut FakeSound); 4] = [
        |model| model.controls[0].info[8] = 6,
        |model| model.controls[0].info[16] = 0,
        |model| model.controls[0].info[16] = 129,
        |model| model.controls[0].info[4] = 9,
    ];
    for tamper in controls {
        let memory = Memory::fresh();
        let mut model = with_controls();
        tamper(&mut model);
        let (_device, mut card) = blocking(model);
        let items = card.driver().items();
        assert!(matches!(items.controls, Inventory::Refused(_)));
        assert_eq!(items.streams.items().len(), 2);
        drop(card);
        memory.assert_clean();
    }
    let memory = Memory::fresh();
    let mut model = with_controls();
    // 2^32 items, of 64 bytes each.
    model.controls[1].info[68..72].fill(0xff);
    let (_device, face) = share(model);
    assert!(run(&face, face.control_items(1)).is_err());
    let mut chmap = vec![0; 24];
    chmap[5] = 19;
    drop(face);
    let mut model = FakeSound::new();
    model.chmaps = vec![chmap];
    let (_device, mut card) = blocking(model);
    assert!(matches!(
        card.driver().items().chmaps,
        Inventory::Refused(_)
    ));
    drop(card);
    memory.assert_clean();
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    for place in 0..3 {
        let memory = Memory::fresh();
        let mut counts = [0, 2, 0, 0];
        counts[place] = u32::MAX;
        let mut model = FakeSound::new();
        model.counts = Some(counts);
        assert!(matches!(refusal(model), Cause::BadConfig { .. }));
        memory.assert_clean();
    }
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.queue_size = 2;
    assert!(matches!(refusal(model), Cause::TooManySegments { .. }));
    let mut model = FakeSound::new();
    model.queue_size = 0;
    assert_eq!(refusal(model), Cause::NoSuchQueue);
    // More items than there are: the answer is too short.
    let mut model = FakeSound::new();
    model.counts = Some([0, 200, 0, 0]);
    let (_device, card) = open(model);
    assert!(Blocking::new(card).query(now).is_err());
    memory.assert_clean();
}

#[test]
fn lies_about_what_is_used_stop_the_device_and_nothing_else() {
    for fault in [
        Fault::UsedId(u32::MAX),
        Fault::UsedIdNotInFlight,
        Fault::UsedTwice,
        Fault::UsedIndexAhead(200),
        Fault::UsedIndexBack(3),
        Fault::UsedLength(u32::MAX),
        Fault::UsedLength(7),
        Fault::NeedsReset,
    ] {
        for (direction, credit) in [(OUT, usize::MAX), (IN, 0)] {
            let memory = Memory::fresh();
            let (device, face) = share(paced(direction, credit));
            {
                let session = async {
                    match direction {
                        OUT => {
                            let mut playback = face.play(OUT, params()).await?;
                            device.inject(fault);
                            playback.write_all(&pattern(3000)).await?;
                            playback.flush().await?;
                            playback.close().await
                        }
                        _ => {
                            let mut capture = face.record(IN, params()).await?;
                            device.inject(fault);
                            elapse(&device, IN, 8);
                            for _ in 0..8 {
                                let len = capture.frames().await?.len();
                                assert!(len <= 256);
                                capture.consume(len);
                            }
                            capture.close().await
                        }
                    }
                };
                // It ends, in whatever way, or waits for a device that will do no more.
                let _ = try_run(&face, session);
            }
            device.heal();
            face.stop(face.with(|card| card.error(Cause::NeedsReset)));
            face.restart().expect("an honest device");
            run(&face, face.query()).expect("streams");
            run(&face, play(&face).close()).expect("a stream");
            drop(face);
            let _ = memory.take_violations();
            memory.assert_clean();
        }
    }
}

#[test]
fn noise_in_the_rings_ends_only_the_session() {
    for seed in 0..60 {
        let memory = Memory::fresh();
        let (device, face) = share(FakeSound::new());
        device.inject(Fault::Noise(seed));
        {
            let session = async {
                let mut playback = face.play(OUT, params()).await?;
                playback.write_all(&pattern(3000)).await?;
                playback.flush().await
            };
            let _ = try_run(&face, session);
        }
        device.heal();
        face.stop(face.with(|card| card.error(Cause::NeedsReset)));
        face.restart().expect("an honest device");
        drop(face);
        let _ = memory.take_violations();
        memory.assert_clean();
    }
}

#[test]
fn features_are_those_that_are_implemented() {
    let memory = Memory::fresh();
    let mut model = FakeSound::new();
    model.features = 0xff;
    let (device, mut card) = open(model);
    assert_eq!(device.driver_features() & 0xffff, 1);
    assert_eq!(card.config().controls, 0);
    assert_eq!(card.config_changed(), Ok(None));
    device.inject(Fault::NeedsReset);
    let error = card.config_changed().expect_err("broken");
    assert_eq!(error.cause, Cause::NeedsReset);
    device.heal();
    card.restart().expect("an honest device");
    assert!(device.status().contains(Status::DRIVER_OK));
    drop(card);
    memory.assert_clean();
}

#[test]
fn kicks_are_shared_by_what_is_submitted_together() {
    let memory = Memory::fresh();
    let (device, mut card) = blocking(FakeSound::new());
    device.set_pace(Pace::OnNotify);
    card.prepare(OUT, params(), now).expect("a stream");
    let mut card = card.into_inner();
    for _ in 0..4 {
        let buffer = Buffer::zeroed(256).expect("memory");
        card.submit(Request::play(OUT, buffer, 256)).expect("room");
    }
    assert_eq!(device.notifications(2), 0);
    card.kick();
    assert_eq!(device.notifications(2), 1);
    drop(card);
    memory.assert_clean();
}

/// A card whose device returned a transfer that it was not given, so that it seems to remember an earlier driver, and
/// then falls silent. All `streams` of it are running if `running`.
fn silenced(streams: usize, running: bool) -> (FakeDevice<FakeSound>, Card) {
    let mut model = FakeSound::new();
    model.streams = (0..streams).map(|_| FakeStream::new(0)).collect();
    let (device, mut card) = blocking(model);
    for stream in 0..if running { streams as u32 } else { 1 } {
        let one = Params::new(CD, 64, 1).expect("plain parameters");
        card.prepare(stream, one, now).expect("a stream");
        card.start(stream, now).expect("a stream");
    }
    let mut card = card.into_inner();
    device.inject(Fault::UsedId(99));
    let buffer = Buffer::zeroed(256).expect("memory");
    card.submit(Request::play(OUT, buffer, 256)).expect("room");
    card.kick();
    assert!(matches!(
        card.poll().map_err(|error| error.cause),
        Err(Cause::BadUsedId { id: 99 })
    ));
    device.heal();
    device.inject(Fault::Silent);
    (device, card)
}

#[test]
fn a_silent_device_is_waited_for_once_however_many_streams_it_has() {
    let memory = Memory::fresh();
    for (streams, running) in [(1, true), (30, true), (256, false)] {
        let (device, mut card) = silenced(streams, running);
        let before = device.status_reads();
        card.restart()
            .expect("a device that is silent and can be reset");
        // Of this session nothing can be awaited, since a queue is broken; once for all streams of an earlier one, and a
        // few reads for resets.
        let reads = device.status_reads() - before;
        assert!((100_000..100_100).contains(&reads), "{reads}, {streams}");
        let before = device.status_reads();
        drop(card);
        let reads = device.status_reads() - before;
        assert!(reads < 100, "{reads}: there is nothing to wait for");
    }
    let _ = memory.take_violations();
    memory.assert_clean();
}

#[test]
fn a_device_that_needs_a_reset_is_not_waited_for() {
    let memory = Memory::fresh();
    let (device, mut card) = blocking(FakeSound::new());
    card.prepare(OUT, params(), now).expect("a stream");
    card.start(OUT, now).expect("a stream");
    device.inject(Fault::Silent);
    device.inject(Fault::NeedsReset);
    let before = device.status_reads();
    card.driver().reset().expect("a reset");
    let reads = device.status_reads() - before;
    assert!(reads < 100, "{reads}");
    drop(card);
    memory.assert_clean();
}

#[test]
fn all_streams_left_over_are_released_however_many_there_are() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::INDIRECT_DESC,
    ] {
        let memory = Memory::fresh();
        let mut model = FakeSound::new();
        model.streams = (0..200).map(|_| FakeStream::new(0)).collect();
        model.queue_size = 8;
        let device = FakeDevice::new(model);
        device.offer(ring);
        let mut card: Card = Sound::new(device.transport(), Options::default()).expect("a device");
        // As if an earlier driver had them.
        device.with(|model| {
            model.remembers = true;
            for stream in &mut model.streams {
                stream.state = FakeState::Running;
            }
        });
        device.inject(Fault::UsedIndexAhead(1));
        assert!(matches!(
            spoil(&device, &mut card),
            Cause::BadUsedIndex { .. }
        ));
        card.restart().expect("an honest device");
        let left = device.with(|model| {
            let runs = |stream: &&FakeStream| stream.state != FakeState::Set;
            model.streams.iter().filter(runs).count()
        });
        assert_eq!(left, 0);
        let _ = memory.take_violations();
        drop(card);
        memory.assert_clean();
    }
}

/// Has the device break the rules of the transmit queue.
fn spoil(device: &FakeDevice<FakeSound>, card: &mut Card) -> Cause {
    device.with(|model| model.streams[0].state = FakeState::Unset);
    for request in [
        Request::info(Kind::Streams, 200),
        Request::set_params(0, Params::new(CD, 64, 1).expect("plain parameters")),
        Request::prepare(0),
        Request::start(0),
    ] {
        device.heal();
        card.submit(request.expect("memory")).expect("room");
        card.kick();
        assert!(
            card.poll()
                .expect("no trouble")
                .expect("done")
                .result
                .is_ok()
        );
    }
    device.inject(Fault::UsedIndexAhead(1));
    let buffer = Buffer::zeroed(256).expect("memory");
    card.submit(Request::play(0, buffer, 256)).expect("room");
    card.kick();
    card.poll().expect_err("it lies").cause
}

#[test]
fn events_without_end_keep_nobody_in_poll() {
    /// Has one jack, and answers every buffer for events with an event, at once.
    struct Chatter {
        events: u64,
    }
    impl DeviceModel for Chatter {
        fn id(&self) -> DeviceId {
            DeviceId::SOUND
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> Vec<u16> {
            vec![64; 4]
        }
        fn config(&self) -> Vec<u8> {
            let mut config = vec![0; 16];
            config[0] = 1;
            config
        }
        fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
            let answer = match queue {
                0 => [&0x8000u32.to_le_bytes()[..], &[0; 24]].concat(),
                EVENT_QUEUE => [0x1000u32, 0]
                    .iter()
                    .flat_map(|it| it.to_le_bytes())
                    .collect(),
                _ => return,
            };
            while self.events < 10_000
                && let Some(request) = queues.pop(queue)
            {
                self.events += u64::from(queue == EVENT_QUEUE);
                request.write(0, &answer);
                queues.push(queue, request, answer.len() as u32);
            }
        }
    }
    let memory = Memory::fresh();
    let device = FakeDevice::new(Chatter { events: 0 });
    let mut card = Sound::new(device.transport(), Options::default()).expect("a device");
    // It may tell of events when it was asked for all that it has.
    let request = Request::info(Kind::Jacks, 1).expect("memory");
    card.submit(request).expect("room");
    card.kick();
    card.poll().expect("no rule is broken").expect("done");
    device.pump();
    let events = |card: &Sound<_>| card.report().queues[1].stats.completed;
    let mut last = 0;
    for _ in 0..50 {
        assert!(card.poll().expect("no rule is broken").is_none());
        let now = events(&card);
        assert!(now - last <= 64, "{} at one call", now - last);
        last = now;
    }
    assert_eq!(last, 50 * 64, "and no event is lost");
    drop(card);
    memory.assert_clean();
}

#[test]
fn frames_are_with_the_device_before_it_is_told_to_start() {
    let memory = Memory::fresh();
    let (device, card) = blocking(paced(OUT, 0));
    let mut card = card.into_inner();
    for request in [
        Request::set_params(OUT, params()),
        Request::prepare(OUT),
        Request::set_params(IN, params()),
        Request::prepare(IN),
    ] {
        card.submit(request.expect("memory")).expect("room");
        card.kick();
        card.poll().expect("no trouble").expect("done");
    }
    // Whatever was submitted first: one kick for all of it.
    for (id, record) in [(OUT, false), (IN, true)] {
        let start = Request::start(id).expect("memory");
        card.submit(start).expect("room");
        for _ in 0..4 {
            let buffer = Buffer::zeroed(256).expect("memory");
            let request = match record {
                true => Request::record(id, buffer),
                false => Request::play(id, buffer, 256),
            };
            card.submit(request).expect("room");
        }
    }
    card.kick();
    assert_eq!(device.with(|model| model.started_with.clone()), [4, 4]);
    drop(card);
    memory.assert_clean();
}

#[test]
fn interrupts_come_after_a_restart_as_before() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
    ] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakeSound::new());
        device.offer(ring);
        let card = Sound::new(device.transport(), Options::default()).expect("an honest device");
        let face: Face = Asynchronous::new(card);
        for _ in 0..3 {
            let before = device.interrupts(0);
            run(&face, face.query()).expect("streams");
            // One kind of items, one command, one interrupt.
            assert_eq!(device.interrupts(0), before + 1);
            let before = device.interrupts(2);
            run(&face, async {
                let mut playback = face.play(OUT, params()).await?;
                playback.write_all(&pattern(1024)).await?;
                playback.flush().await?;
                playback.close().await
            })
            .expect("a stream");
            assert!(device.interrupts(2) > before, "frames interrupt");
            face.stop(face.with(|card| card.error(Cause::NeedsReset)));
            face.restart().expect("an honest device");
        }
        drop(face);
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_did_not_come_back_is_not_notified() {
    let memory = Memory::fresh();
    let (device, card) = blocking(FakeSound::new());
    let mut card = card.into_inner();
    for request in [Request::set_params(OUT, params()), Request::prepare(OUT)] {
        card.submit(request.expect("memory")).expect("room");
        card.kick();
        card.poll().expect("no trouble").expect("done");
    }
    // In a queue each, and the device was told of neither.
    let buffer = Buffer::zeroed(256).expect("memory");
    card.submit(Request::play(OUT, buffer, 256)).expect("room");
    card.submit(Request::info(Kind::Streams, 2).expect("memory"))
        .expect("room");
    device.inject(Fault::FeaturesRefused);
    card.restart().expect_err("it refuses");
    card.kick();
    assert!(
        card.submit(Request::info(Kind::Streams, 2).expect("memory"))
            .is_err()
    );
    card.kick();
    assert!(card.poll().is_err());
    let claim = card.claim(OUT).expect("nobody's");
    card.end(OUT, claim);
    memory.assert_no_violations();
    device.heal();
    card.restart().expect("an honest device again");
    drop(card);
    memory.assert_clean();
}
