//! The commands of the sound cards: sound, with an operation as its first word.

mod bench;
mod hash;
mod tone;
mod wav;

use alloc::boxed::Box;
use core::fmt;
use core::ops::RangeInclusive;
use core::time::Duration;

use vringlet::sound::{
    Direction, Format, FrameSource as _, Inventory, Layout, Rate, StreamInfo, wire,
};

use self::hash::Hash;
use self::tone::Tone;
use self::wav::{WavSink, WavSource};
use super::files::path;
use crate::apps::files;
use crate::devices::sound::{self, Card, Periods, Played};
use crate::platform::number;
use crate::shell::{Args, Command, Error, Output, dump};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "sound",
    usage: &[
        "sound info",
        "sound tone HZ SECONDS [rate=R] [format=F] [channels=C] [period=MS] [periods=N] [card=NAME]",
        "sound play FILE.wav [period=MS] [periods=N] [card=NAME]",
        "sound record SECONDS [FILE.wav] [rate=R] [format=F] [channels=C] [period=MS] [periods=N] [card=NAME]",
        "sound loop SECONDS [rate=R] [format=F] [channels=C] [period=MS] [periods=N] [card=NAME]",
        "sound bench [seconds=S] [rate=R] [format=F] [channels=C] [period=MS] [periods=N] [card=NAME]",
    ],
    help: "plays a tone or a file, records into a file, plays what is recorded; `sound info` says what there is; frames go \
           in periods of MS milliseconds (2.5, or 20 if nothing is said), of which the device has N at a time (24); bench \
           plays a tone and says how long the device keeps a period",
    run: |args, out| Box::pin(run(args, out)),
}];

/// The longest that anything is played or recorded, in seconds.
const MAX_SECONDS: u64 = 24 * 3600;
/// The tone of the tour.
const TOUR_HZ: u32 = 440;
/// Periods that anybody may ask for.
const PERIOD: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);
/// The highest tone.
const MAX_HZ: u64 = 192_000;

async fn run(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    match args.word("operation")? {
        "info" => info(args, out),
        "tone" => tone(args, out).await,
        "play" => play(args, out).await,
        "record" => record(args, out).await,
        "loop" => loop_back(args, out).await,
        "bench" => bench::run(args, out).await,
        other => Err(Error::usage(format_args!("no operation {other}"))),
    }
}

/// The card that the option `card` names, or the first that has a stream of this direction; and that stream.
fn stream(
    args: &mut Args<'_>,
    direction: Direction,
) -> Result<(&'static Card, u32, StreamInfo), Error> {
    let cards = sound::all();
    let Some(wanted) = args.option("card") else {
        let mut found = cards.iter().filter_map(|card| {
            let (stream, info) = card.stream(direction)?;
            Some((*card, stream, info))
        });
        return found.next().ok_or_else(|| match cards.is_empty() {
            true => Error::failed("there is no sound card"),
            false => Error::failed(format_args!("no sound card has an {direction}")),
        });
    };
    let card = cards.into_iter().find(|card| card.name == wanted);
    let card = card.ok_or_else(|| Error::failed(format_args!("no sound card {wanted}")))?;
    let found = card.stream(direction);
    let (stream, info) = found.ok_or_else(|| failed(card, format_args!("has no {direction}")))?;
    Ok((card, stream, info))
}

/// What is most common among what the stream offers.
fn common_layout(info: &StreamInfo) -> Result<Layout, Error> {
    Ok(Layout {
        format: preferred(Format::S16, info.formats())?,
        rate: preferred(Rate::Hz48000, info.rates())?,
        channels: 2.clamp(info.channels_min, info.channels_max),
    })
}

/// What the options say of the frames; the rest is what is most common among what the stream offers.
fn layout(args: &mut Args<'_>, info: &StreamInfo) -> Result<Layout, Error> {
    let named = |name: &str, value: &str| Error::usage(format_args!("no {name} {value}"));
    let mut layout = common_layout(info)?;
    if let Some(name) = args.option("format") {
        layout.format = name.parse().map_err(|_| named("format", name))?;
    }
    if let Some(name) = args.option("rate") {
        layout.rate = name.parse().map_err(|_| named("rate", name))?;
    }
    if let Some(count) = args.number_option("channels")? {
        layout.channels = u8::try_from(count).map_err(|_| Error::usage("too many channels"))?;
    }
    Ok(layout)
}

/// What the options say of the periods.
fn periods(args: &mut Args<'_>) -> Result<Periods, Error> {
    let mut periods = Periods::default();
    if let Some(word) = args.option("period") {
        let length = number::milliseconds(word).filter(|length| PERIOD.contains(length));
        periods.length = length.ok_or_else(|| {
            let (min, max) = (PERIOD.start().as_millis(), PERIOD.end().as_millis());
            Error::usage(format_args!("period is {min} to {max} milliseconds"))
        })?;
    }
    if let Some(count) = args.number_option("periods")? {
        periods.count = u32::try_from(count).map_err(|_| Error::usage("too many periods"))?;
    }
    Ok(periods)
}

/// One of those offered: this one if it is among them.
fn preferred<T: PartialEq>(wanted: T, mut offered: impl Iterator<Item = T>) -> Result<T, Error> {
    let first = offered.next();
    let first = first.ok_or_else(|| Error::failed("the stream offers nothing that is known"))?;
    match first == wanted || offered.any(|it| it == wanted) {
        true => Ok(wanted),
        false => Ok(first),
    }
}

/// The next word as seconds.
fn seconds(args: &mut Args<'_>) -> Result<u64, Error> {
    match args.number("SECONDS")? {
        seconds if seconds <= MAX_SECONDS => Ok(seconds),
        _ => Err(Error::usage(format_args!("at most {MAX_SECONDS} seconds"))),
    }
}

fn failed(card: &Card, error: impl fmt::Display) -> Error {
    Error::failed(format_args!("{}: {error}", card.name))
}

async fn tone(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (card, stream, info) = stream(&mut args, Direction::Output)?;
    let layout = layout(&mut args, &info)?;
    let periods = periods(&mut args)?;
    let hz = args.number("HZ")?;
    let seconds = seconds(&mut args)?;
    args.end()?;
    let hz = u32::try_from(hz).ok().filter(|hz| u64::from(*hz) <= MAX_HZ);
    let hz = hz.ok_or_else(|| Error::usage(format_args!("at most {MAX_HZ} Hz")))?;
    let no_tone = || Error::failed(format_args!("no tones in the format {}", layout.format));
    let mut tone = Tone::new(hz, layout).ok_or_else(no_tone)?;
    let frames = seconds * u64::from(layout.rate.hz());
    let played = card.play_from(stream, &mut tone, frames, periods).await;
    let played = played.map_err(|error| failed(card, error))?;
    writeln!(out, "played {layout}: {played}")?;
    Ok(())
}

/// Part of the tour: a card that has an output stream plays a short tone.
pub(super) async fn check(card: &Card, out: Output<'_>) -> Result<(), Error> {
    let Some((stream, info)) = card.stream(Direction::Output) else {
        return Ok(());
    };
    let layout = common_layout(&info)?;
    let Some(mut tone) = Tone::new(TOUR_HZ, layout) else {
        return Ok(());
    };
    let (frames, periods) = (u64::from(layout.rate.hz() / 4), Periods::default());
    let played = card.play_from(stream, &mut tone, frames, periods).await;
    let played = played.map_err(|error| failed(card, error))?;
    writeln!(out, "{}: played {layout}: {played}", card.name)?;
    match played.errors {
        0 => Ok(()),
        errors => Err(failed(card, format_args!("{errors} periods failed"))),
    }
}

async fn play(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (card, stream, info) = stream(&mut args, Direction::Output)?;
    let periods = periods(&mut args)?;
    let path = path(&mut args, "FILE.wav").await?;
    args.end()?;
    let unfit = |reason| Error::failed(format_args!("{path}: {reason}"));
    let source = WavSource::open(files::open(&path).await?, &info).await;
    let mut source = source.map_err(unfit)?;
    let (layout, frames) = (source.layout(), source.frame_count());
    let played = card.play_from(stream, &mut source, frames, periods).await;
    let played = played.map_err(|error| failed(card, error))?;
    writeln!(out, "played {layout}: {played}")?;
    Ok(())
}

async fn record(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (card, stream, info) = stream(&mut args, Direction::Input)?;
    let layout = layout(&mut args, &info)?;
    let periods = periods(&mut args)?;
    let seconds = seconds(&mut args)?;
    let word = args.next_word();
    args.end()?;
    let frames = seconds * u64::from(layout.rate.hz());
    let (recorded, hash) = match word {
        // A file that is there is not given up for a recording that can't be.
        Some(_) if !info.takes(layout) => {
            let text = format_args!("the card can't record {layout}");
            return Err(failed(card, text));
        }
        Some(word) => record_file((card, stream, periods), layout, frames, word).await?,
        None => {
            let mut hash = Hash::new(layout);
            let recorded = card.record_to(stream, &mut hash, frames, periods).await;
            (
                recorded.map_err(|error| failed(card, error))?,
                hash.finish(),
            )
        }
    };
    write!(out, "recorded {layout}: {recorded} sha256=")?;
    dump::hexadecimal(out, &hash)?;
    writeln!(out)?;
    Ok(())
}

/// Records into a file. Gives the hash of the frames, too.
async fn record_file(
    (card, stream, periods): (&Card, u32, Periods),
    layout: Layout,
    frames: u64,
    word: &str,
) -> Result<(Played, [u8; 32]), Error> {
    let path = files::locate(word).await;
    let bytes = frames * u64::from(layout.frame_bits()) / 8;
    let header = wav::header(layout, bytes);
    let header = header.map_err(|reason| Error::failed(format_args!("{path}: {reason}")))?;
    let file = files::create(&path, None).await?;
    let mut sink = WavSink::new(file, layout, header).await?;
    let recorded = card.record_to(stream, &mut sink, frames, periods).await;
    // What there is of it is kept, whatever ended it.
    let hash = sink.close().await?;
    Ok((recorded.map_err(|error| failed(card, error))?, hash))
}

async fn loop_back(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (card, input, info) = stream(&mut args, Direction::Input)?;
    let output = card.stream(Direction::Output);
    let (output, _) = output.ok_or_else(|| failed(card, "has no output"))?;
    let layout = layout(&mut args, &info)?;
    let periods = periods(&mut args)?;
    let seconds = seconds(&mut args)?;
    args.end()?;
    let frames = seconds * u64::from(layout.rate.hz());
    let looped = card.loop_back((input, output), layout, frames, periods);
    let looped = looped.await;
    let looped = looped.map_err(|error| failed(card, error))?;
    writeln!(out, "looped {layout}: {looped}")?;
    Ok(())
}

fn info(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    for card in sound::all() {
        show(card, out)?;
    }
    Ok(())
}

fn show(card: &Card, out: Output<'_>) -> Result<(), Error> {
    let name = &card.name;
    let (config, items) = card.with(|sound| (sound.config(), sound.items().clone()));
    writeln!(
        out,
        "{name}: streams={} jacks={} chmaps={} controls={}",
        config.streams, config.jacks, config.chmaps, config.controls
    )?;
    for (id, info) in (0..).zip(items.streams.items()) {
        let (state, stats) = card.with(|sound| (sound.state(id), sound.stats(id)));
        let (state, stats) = (state.unwrap_or_default(), stats.unwrap_or_default());
        write!(out, "{name}: stream {id}: {} formats=", info.direction)?;
        list(out, info.formats())?;
        write!(out, " rates=")?;
        list(out, info.rates())?;
        write!(
            out,
            " channels={}..{} features=",
            info.channels_min, info.channels_max
        )?;
        let features = wire::stream_feature::NAMES.iter();
        let features = features.filter(|(bit, _)| info.features & bit != 0);
        list(out, features.map(|(_, name)| name))?;
        writeln!(
            out,
            " state={state} periods={} bytes={} xruns={} xrun_events={} errors={} latency_bytes={} latency_bytes_max={}",
            stats.periods,
            stats.bytes,
            stats.xruns,
            stats.xrun_events,
            stats.errors,
            stats.latency_bytes,
            stats.latency_bytes_max
        )?;
    }
    for (id, jack) in items.jacks.items().iter().enumerate() {
        let plug = if jack.connected {
            "connected"
        } else {
            "disconnected"
        };
        writeln!(
            out,
            "{name}: jack {id}: {plug} defconf={:#010x} caps={:#010x}",
            jack.default_config, jack.capabilities
        )?;
    }
    for (id, map) in items.chmaps.items().iter().enumerate() {
        write!(out, "{name}: chmap {id}: {} ", map.direction)?;
        list(out, map.names())?;
        writeln!(out)?;
    }
    for (id, control) in items.controls.items().iter().enumerate() {
        let (role, values) = (control.role, control.value_type);
        writeln!(
            out,
            "{name}: control {id}: {} {role:?} {values:?}",
            control.name
        )?;
    }
    refusal(out, name, &items.jacks)?;
    refusal(out, name, &items.chmaps)?;
    refusal(out, name, &items.controls)
}

/// Words with commas between them.
fn list<T: fmt::Display>(out: Output<'_>, items: impl Iterator<Item = T>) -> Result<(), Error> {
    for (index, item) in items.enumerate() {
        let comma = if index > 0 { "," } else { "" };
        write!(out, "{comma}{item}")?;
    }
    Ok(())
}

/// What the device would not say.
fn refusal<T>(out: Output<'_>, name: &str, inventory: &Inventory<T>) -> Result<(), Error> {
    if let Inventory::Refused(cause) = inventory {
        writeln!(out, "{name}: {cause}")?;
    }
    Ok(())
}
