//! Sound cards: each has a task that owns it, and is shared by whoever plays and records.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::ops::Deref;
use core::pin::pin;
use core::time::Duration;

use embassy_futures::select::select3;
use spin::Mutex;
use vringlet::asynchronous::Asynchronous;
use vringlet::blocking::Blocking;
use vringlet::sound::{
    CopyError, Direction, FrameSink, FrameSource, Layout, Options, Params, Sound, StreamInfo,
    StreamStats, copy,
};
use vringlet::{Cause, Driver, Error, Report};

use super::owner::{self, Owner, Shared};
use super::{DeviceTransport, Driven, Found};
use crate::platform::interrupts::Event;
use crate::platform::time::{self, Instant};
use crate::runtime::task;

/// The queues of a card: control, events, output, input.
const QUEUES: usize = 4;
/// How long a device may take for what it should do at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a stream runs on after its last frame was used up. QEMU reports no latency and has some: what it has not
/// played when the stream is stopped is lost.
const RUN_OUT: Duration = Duration::from_millis(300);

/// In which portions frames go to a device and come from it.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// How long one sounds: how often the device and the driver speak of the stream.
    pub length: Duration,
    /// How many the device has at a time: how late a task may come for the next.
    pub count: u32,
}

impl Default for Periods {
    /// Half a second together: a machine that emulates another one beside much else is late at times.
    fn default() -> Self {
        Self {
            length: Duration::from_millis(20),
            count: 24,
        }
    }
}

/// A sound card. Dereferences to the driver's asynchronous face.
pub struct Card {
    /// Its name, such as `snd0`.
    pub name: String,
    shared: Shared<Sound<DeviceTransport>>,
    /// It must not be started again.
    silenced: Event,
}

impl Deref for Card {
    type Target = Asynchronous<Sound<DeviceTransport>>;

    fn deref(&self) -> &Self::Target {
        &self.shared
    }
}

static CARDS: Mutex<Vec<&'static Card>> = Mutex::new(Vec::new());

/// All cards, in the order they were found.
pub fn all() -> Vec<&'static Card> {
    CARDS.lock().clone()
}

/// Ends all streams, for good: the machine is about to stop, and a device that is not told goes on with them.
pub fn silence() {
    for card in all() {
        let device = card.control().name();
        card.silenced.raise();
        card.stop(Error::new(device, Cause::NeedsReset));
    }
}

/// Brings a card up.
pub(super) fn start(found: Found) -> Result<Box<dyn Driven>, Error> {
    let mut sound = Blocking::new(Sound::new(found.transport, Options::default())?);
    let start = time::now();
    let wait = || start.elapsed() < PATIENCE;
    if let Err(error) = sound.query(wait) {
        // It may still be busy with what it was given before the machine was reset.
        log::warn!("{}: {error}", found.name);
        sound.driver().restart()?;
        sound.query(wait)?;
        log::warn!("{}: started again", found.name);
    }
    let card: &'static Card = Box::leak(Box::new(Card {
        name: found.name,
        shared: Shared::new(sound.into_inner(), found.interrupts, QUEUES).with_notice(),
        silenced: Event::new(),
    }));
    CARDS.lock().push(card);
    card.shared.serve();
    task::spawn(card.own());
    Ok(Box::new(card))
}

impl Card {
    /// The owner's task, until the card is silenced.
    async fn own(&self) {
        select3(
            self.silenced.wait(),
            self.serve_for_ever(),
            self.tell_events(),
        )
        .await;
    }

    async fn serve_for_ever(&self) {
        let mut owner = Owner::new(&self.name, &self.shared, owner::timeout());
        // Only commands are answered at once: events and frames come in their time.
        let queues = || {
            let mut queues = self.with(|sound| sound.report()).queues;
            queues.truncate(1);
            queues
        };
        let mut restarted = false;
        while owner.serve(self.watch(restarted), queues).await {
            restarted = true;
        }
    }

    /// Tells of the device's events.
    async fn tell_events(&self) {
        loop {
            while let Some(event) = self.with(Sound::take_event) {
                log::info!("{}: {event:?}", self.name);
            }
            self.shared.interrupted().await;
        }
    }

    /// Finds out again what the device has, if it was restarted; then waits until it wants to be reset.
    async fn watch(&self, restarted: bool) -> Error {
        if restarted && let Err(error) = self.query().await {
            return error;
        }
        self.shared.watch_config(|_| {}).await
    }

    /// The first stream of a direction, and what it can do.
    pub fn stream(&self, direction: Direction) -> Option<(u32, StreamInfo)> {
        self.with(|sound| {
            let streams = (0..).zip(sound.items().streams.items());
            let mut streams = streams.filter(|(_, info)| info.direction == direction);
            streams.next().map(|(id, info)| (id, *info))
        })
    }

    /// Plays `frames` frames of a source on an output stream, fewer if the source ends, and waits until they are heard.
    ///
    /// # Errors
    ///
    /// The device, or the source, fails or is too slow.
    pub async fn play_from<S: FrameSource>(
        &self,
        stream: u32,
        source: &mut S,
        frames: u64,
        periods: Periods,
    ) -> Result<Played, Failed<S::Error>> {
        let layout = source.layout();
        let before = self.stats(stream);
        let playing = async {
            let mut sink = self.play(stream, self.params(layout, periods)?).await?;
            let limit = byte_count(layout, frames);
            let copied = copy(source, &mut sink, limit).await;
            let bytes = copied.map_err(|error| match error {
                CopyError::Source(error) => Failed::Other(error),
                CopyError::Sink(error) => Failed::Device(error),
            })?;
            sink.flush().await?;
            time::after(RUN_OUT).await;
            sink.close().await?;
            Ok(bytes)
        };
        let bytes = self.in_time(&[stream], playing).await?;
        Ok(self.played(layout, bytes, before, stream))
    }

    /// Records `frames` frames from an input stream into a sink.
    ///
    /// # Errors
    ///
    /// The device, or the sink, fails or is too slow.
    pub async fn record_to<S: FrameSink>(
        &self,
        stream: u32,
        sink: &mut S,
        frames: u64,
        periods: Periods,
    ) -> Result<Played, Failed<S::Error>> {
        let layout = sink.layout();
        let before = self.stats(stream);
        let recording = async {
            let mut source = self.record(stream, self.params(layout, periods)?).await?;
            let limit = byte_count(layout, frames);
            let copied = copy(&mut source, sink, limit).await;
            let bytes = copied.map_err(|error| match error {
                CopyError::Source(error) => Failed::Device(error),
                CopyError::Sink(error) => Failed::Other(error),
            })?;
            sink.flush().await.map_err(Failed::Other)?;
            source.close().await?;
            Ok(bytes)
        };
        let bytes = self.in_time(&[stream], recording).await?;
        Ok(self.played(layout, bytes, before, stream))
    }

    /// Plays `frames` frames on an output stream as they are recorded from an input stream.
    ///
    /// # Errors
    ///
    /// The device fails or is too slow.
    pub async fn loop_back(
        &self,
        (input, output): (u32, u32),
        layout: Layout,
        frames: u64,
        periods: Periods,
    ) -> Result<Played, Failed<Error>> {
        let params = self.params(layout, periods)?;
        let before = self.stats(output);
        let looping = async {
            let mut source = self.record(input, params).await?;
            let mut sink = self.play(output, params).await?;
            let limit = byte_count(layout, frames);
            let copied = copy(&mut source, &mut sink, limit).await;
            let bytes = copied.map_err(|error| match error {
                CopyError::Source(error) | CopyError::Sink(error) => Failed::Device(error),
            })?;
            source.close().await?;
            sink.flush().await?;
            time::after(RUN_OUT).await;
            sink.close().await?;
            Ok(bytes)
        };
        let bytes = self.in_time(&[input, output], looping).await?;
        Ok(self.played(layout, bytes, before, output))
    }

    /// Plays a source without end for a while, and measures how long the device keeps each period. Those that it has before the
    /// stream begins wait for that, too, and are left out.
    ///
    /// # Errors
    ///
    /// As [`Self::play_from`], or memory is short.
    pub async fn measure<S: FrameSource>(
        &self,
        stream: u32,
        source: &mut S,
        frames: u64,
        periods: Periods,
        done: impl Fn(u64),
    ) -> Result<Measured, Failed<S::Error>> {
        let params = self.params(source.layout(), periods)?;
        let (period_bytes, at_a_time) = (params.period_bytes(), params.periods() as usize);
        let count = byte_count(params.layout(), frames).div_ceil(period_bytes.max(1).into());
        let before = self.stats(stream);
        let measuring = async {
            let no_memory = || self.with(|sound| sound.error(Cause::NoMemory));
            let (mut kept, mut given) = (Vec::new(), VecDeque::new());
            let room = usize::try_from(count).map_err(|_| no_memory())?;
            kept.try_reserve_exact(room).map_err(|_| no_memory())?;
            given
                .try_reserve_exact(at_a_time)
                .map_err(|_| no_memory())?;
            let mut sink = self.play(stream, params).await?;
            for number in 0..count + at_a_time as u64 {
                if number >= at_a_time as u64 {
                    sink.take_back().await?;
                    kept.extend(given.pop_front().flatten().map(Instant::elapsed));
                    done(period_bytes.into());
                }
                let copied = copy(source, &mut sink, period_bytes.into()).await;
                copied.map_err(|error| match error {
                    CopyError::Source(error) => Failed::Other(error),
                    CopyError::Sink(error) => Failed::Device(error),
                })?;
                given.push_back((number >= at_a_time as u64).then(time::now));
            }
            while let Some(at) = given.pop_front() {
                sink.take_back().await?;
                kept.extend(at.map(Instant::elapsed));
            }
            sink.close().await?;
            Ok(kept)
        };
        let kept = self.in_time(&[stream], measuring).await?;
        let bytes = u64::from(period_bytes) * (count + at_a_time as u64);
        let played = self.played(params.layout(), bytes, before, stream);
        Ok(Measured {
            params,
            kept,
            played,
        })
    }

    fn params(&self, layout: Layout, periods: Periods) -> Result<Params, Error> {
        let frames = u128::from(layout.rate.hz()) * periods.length.as_micros();
        let frames = u32::try_from(frames.div_ceil(1_000_000)).ok();
        // A frame of less than a byte makes whole bytes in eights.
        let frames = frames.and_then(|frames| frames.checked_next_multiple_of(8));
        let params = Params::new(layout, frames.unwrap_or(u32::MAX), periods.count);
        params.map_err(|cause| self.with(|sound| sound.error(cause)))
    }

    /// Waits for work that ends with its last frame, as long as the streams that it is done with go on. A machine that emulates
    /// another one beside much else may take its time for that, but gives something back now and then.
    async fn in_time<T, E>(
        &self,
        streams: &[u32],
        work: impl Future<Output = Result<T, Failed<E>>>,
    ) -> Result<T, Failed<E>> {
        // Not periods: they may come back empty.
        let bytes = || -> u64 {
            let streams = streams.iter();
            streams.map(|stream| self.stats(*stream).bytes).sum()
        };
        let mut work = pin!(work);
        let mut before = bytes();
        loop {
            if let Ok(done) = time::timeout(owner::timeout(), work.as_mut()).await {
                return done;
            }
            let now = bytes();
            if now == before {
                let device = self.control().name();
                return Err(Failed::Device(Error::new(device, owner::unanswered())));
            }
            before = now;
        }
    }

    fn stats(&self, stream: u32) -> StreamStats {
        let stats = self.with(|sound| sound.stats(stream));
        stats.unwrap_or_default()
    }

    fn played(&self, layout: Layout, bytes: u64, before: StreamStats, stream: u32) -> Played {
        let after = self.stats(stream);
        let frames = bytes * 8 / u64::from(layout.frame_bits().max(1));
        Played {
            frames,
            bytes,
            periods: after.periods.saturating_sub(before.periods),
            xruns: after.xruns.saturating_sub(before.xruns)
                + after.xrun_events.saturating_sub(before.xrun_events),
            errors: after.errors.saturating_sub(before.errors),
            latency_bytes: after.latency_bytes,
        }
    }
}

/// Bytes of so many frames.
fn byte_count(layout: Layout, frames: u64) -> u64 {
    frames.saturating_mul(layout.frame_bits().into()) / 8
}

/// What became of frames that were played or recorded.
#[derive(Clone, Copy, Debug)]
pub struct Played {
    /// Frames that went from source to sink.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Periods that came back from the device.
    pub periods: u64,
    /// Times that the device ran dry or over.
    pub xruns: u64,
    /// Periods that failed.
    pub errors: u64,
    /// The latency that the device reported last.
    pub latency_bytes: u32,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frames,
            bytes,
            periods,
            xruns,
            errors,
            latency_bytes,
        } = self;
        write!(
            f,
            "frames={frames} bytes={bytes} periods={periods} xruns={xruns} errors={errors} \
             latency_bytes={latency_bytes}"
        )
    }
}

/// How long a device kept each of the periods that it was given.
pub struct Measured {
    /// What the stream was opened with.
    pub params: Params,
    /// The times, from the oldest period to the youngest.
    pub kept: Vec<Duration>,
    /// What became of the frames.
    pub played: Played,
}

/// Why frames did not get where they should.
#[derive(Clone, Copy, Debug)]
pub enum Failed<E> {
    /// The card.
    Device(Error),
    /// The other side.
    Other(E),
}

impl<E> From<Error> for Failed<E> {
    fn from(error: Error) -> Self {
        Self::Device(error)
    }
}

impl<E: fmt::Display> fmt::Display for Failed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(error) => error.fmt(f),
            Self::Other(error) => error.fmt(f),
        }
    }
}

impl Driven for &'static Card {
    fn report(&self) -> Report {
        self.shared.report()
    }

    fn summary(&self) -> String {
        let (config, items) = self.with(|sound| (sound.config(), sound.items().clone()));
        let streams = items.streams.items();
        let of = |direction| {
            let streams = streams.iter().filter(|info| info.direction == direction);
            streams.count() as u32
        };
        let counts = [
            (of(Direction::Output), "output"),
            (of(Direction::Input), "input"),
            (config.jacks, "jack"),
            (config.chmaps, "channel map"),
            (config.controls, "control"),
        ];
        let mut summary = String::new();
        for (count, name) in counts.into_iter().filter(|(count, _)| *count > 0) {
            let comma = if summary.is_empty() { "" } else { ", " };
            let plural = if count == 1 { "" } else { "s" };
            summary += &format!("{comma}{count} {name}{plural}");
        }
        match summary.as_str() {
            "" => "nothing to play or record with".into(),
            _ => summary,
        }
    }
}
