//! Sound from and to files on a disk: played and recorded sample for sample.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Cell, MEMORY};
use vringlet_tests::disk::sha256;
use vringlet_tests::guest::End;
use vringlet_tests::images::{FileSystem, Files};
use vringlet_tests::qemu::{Image, Qemu, escape, utf8};
use vringlet_tests::sound::{Files as Sound, compare, no_alsa, play_to_wav, read_wav};
use vringlet_tests::wav::Frames;

use crate::Spec;

const RATE: u32 = 48000;

/// Files to be played: what is in them, and as which of the card's formats it arrives.
const PLAYED: [(Frames, &str); 5] = [
    (frames(1, 8), "u8"),
    (frames(1, 16), "s16"),
    (frames(1, 24), "s32"),
    (frames(1, 32), "s32"),
    (frames(3, 32), "float"),
];
/// Files to be recorded.
const RECORDED: [(Frames, &str); 4] = [
    (frames(1, 8), "u8"),
    (frames(1, 16), "s16"),
    (frames(1, 32), "s32"),
    (frames(3, 32), "float"),
];

const fn frames(tag: u16, bits: u16) -> Frames {
    Frames {
        tag,
        bits,
        channels: 2,
        rate: RATE,
    }
}

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for (frames, format) in PLAYED {
        let name = format!("q35/sound/file/play-{}-{}", frames.tag, frames.bits);
        let spec = Spec::new(name, move |cell| play(cell, frames, format));
        cells.push(spec.unless(no_alsa));
    }
    for (frames, format) in RECORDED {
        let name = format!("q35/sound/file/record-{}-{}", frames.tag, frames.bits);
        let spec = Spec::new(name, move |cell| record(cell, frames, format));
        cells.push(spec.unless(no_alsa));
    }
    cells.push(Spec::new("q35/sound/file/stream", stream).unless(no_alsa));
    cells.push(Spec::new("q35/sound/file/mono-44100", mono));
    cells.push(Spec::new("microvm/sound/file/play", wav));
    for how in [Break::CtrlC, Break::PowerOff] {
        let name = format!("q35/sound/file/record-broken-off-{how:?}").to_lowercase();
        let spec = Spec::new(name, move |cell| broken_off(cell, how));
        cells.push(spec.unless(no_alsa));
    }
    cells.push(Spec::new(
        "q35/sound/file/record-broken-off-early",
        broken_off_early,
    ));
    cells.push(Spec::new("q35/sound/file/broken", broken));
    cells
}

/// Samples that look like nothing but themselves; floating ones are in range.
fn noise(frames: Frames, count: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(count as u64);
    let samples = count * usize::from(frames.channels);
    match frames.tag {
        3 => {
            let samples = (0..samples).map(|_| random.f32() - 0.5);
            samples.flat_map(f32::to_le_bytes).collect()
        }
        _ => {
            let len = samples * usize::from(frames.bits) / 8;
            (0..len).map(|_| random.u8(..)).collect()
        }
    }
}

/// An image with these files, as blk0.
fn disk(cell: &Cell, qemu: &mut Qemu, kind: FileSystem, files: &Files) -> Result<()> {
    let path = cell.file("disk.img");
    kind.make(&path, 64, "SOUNDS", files)?;
    qemu.drive("d0", &path, Image::RAW)?;
    qemu.virtio("blk", "disk0", "drive=d0");
    Ok(())
}

fn play(cell: &Cell, frames: Frames, format: &str) -> Result<()> {
    let samples = noise(frames, 60_001);
    let files = Files::from([("a.wav".to_string(), frames.file(&samples))]);
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    disk(cell, &mut qemu, FileSystem::Fat(32), &files)?;
    let sound = Sound::attach(&mut qemu, cell.directory(), RATE, format)?;
    qemu.script("strict; sound play a.wav; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let said = guest.console().output_of("sound play a.wav")?.concat();
    let expected = " frames=60001 ";
    ensure!(
        said.contains(expected) && said.contains(" errors=0 "),
        "{said:?}"
    );
    let expected = match frames.bits {
        // The card has no 24 bits: they are the upper ones of 32.
        24 => samples
            .chunks(3)
            .flat_map(|it| [0, it[0], it[1], it[2]])
            .collect(),
        _ => samples,
    };
    compare(&std::fs::read(&sound.played)?, &expected)
}

/// A file that was written to a pipe, so that its header says nothing of its length.
fn stream(cell: &Cell) -> Result<()> {
    let frames = frames(1, 16);
    let samples = noise(frames, 60_001);
    let mut file = frames.plain_file(&samples);
    for length in [4, 40] {
        file[length..length + 4].fill(0);
    }
    let files = Files::from([("a.wav".to_string(), file)]);
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    disk(cell, &mut qemu, FileSystem::Fat(32), &files)?;
    let sound = Sound::attach(&mut qemu, cell.directory(), RATE, "s16")?;
    qemu.script("strict; sound play a.wav; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let said = guest.console().output_of("sound play a.wav")?.concat();
    ensure!(said.contains(" frames=60001 "), "{said:?}");
    compare(&std::fs::read(&sound.played)?, &samples)
}

fn record(cell: &Cell, frames: Frames, format: &str) -> Result<()> {
    let kind = FileSystem::Fat(16);
    let recorded = noise(frames, 3 * RATE as usize);
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    disk(cell, &mut qemu, kind, &Files::new())?;
    let sound = Sound::attach(&mut qemu, cell.directory(), RATE, format)?;
    std::fs::write(&sound.recorded, &recorded)?;
    let command = format!("sound record 1 new.wav format={format}");
    qemu.script(&format!("strict; {command}; sound play new.wav; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let len = RATE as usize * usize::from(frames.channels * frames.bits / 8);
    let expected = &recorded[..len];
    let said = guest.console().output_of(&command)?.concat();
    ensure!(said.ends_with(&sha256(expected)), "{said:?}");
    let image = cell.file("disk.img");
    kind.check(&image)?;
    let file = kind.read(&image, "new.wav")?;
    compare(&frames.read(&file)?, expected).context("what is in the file")?;
    compare(&std::fs::read(&sound.played)?, expected).context("what is played of it")
}

/// Another rate and one channel, which QEMU plays on both sides.
fn mono(cell: &Cell) -> Result<()> {
    let frames = Frames {
        channels: 1,
        rate: 44100,
        ..frames(1, 16)
    };
    let samples = noise(frames, 44100);
    let files = Files::from([("a.wav".to_string(), frames.file(&samples))]);
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    disk(cell, &mut qemu, FileSystem::Ext(4), &files)?;
    play_to_wav(&mut qemu, &path, 44100, "s16")?;
    qemu.script("strict; sound play a.wav; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let both = samples
        .chunks(2)
        .flat_map(|it| [it[0], it[1], it[0], it[1]]);
    compare(&read_wav(&path)?, &both.collect::<Vec<_>>())
}

/// Ten seconds from a disk that gives little more than they need, without a gap.
fn wav(cell: &Cell) -> Result<()> {
    let frames = frames(1, 16);
    let samples = noise(frames, 10 * RATE as usize);
    let image = cell.file("disk.img");
    let files = Files::from([("a.wav".to_string(), frames.file(&samples))]);
    FileSystem::Fat(32).make(&image, 64, "SOUNDS", &files)?;
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&"microvm".parse()?, MEMORY)?;
    let file = escape(utf8(&image)?);
    qemu.arg(
        "-drive",
        &format!("if=none,id=d0,format=raw,file={file},throttling.bps-total=400000"),
    );
    qemu.virtio("blk", "disk0", "drive=d0");
    play_to_wav(&mut qemu, &path, RATE, "s16")?;
    qemu.script("strict; sound play a.wav; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let said = guest.console().output_of("sound play a.wav")?.concat();
    ensure!(said.contains(" xruns=0 errors=0 "), "{said:?}");
    compare(&read_wav(&path)?, &samples)
}

/// How a recording is broken off.
#[derive(Clone, Copy, Debug)]
enum Break {
    CtrlC,
    PowerOff,
}

/// A recording that is broken off is a file with what was recorded, on a file system without fault. Its disk stands still
/// then, with a write on its way, and goes on later.
fn broken_off(cell: &Cell, how: Break) -> Result<()> {
    let kind = FileSystem::Fat(16);
    let frames = frames(1, 16);
    let recorded = noise(frames, 60 * RATE as usize);
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    disk(cell, &mut qemu, kind, &Files::new())?;
    let sound = Sound::attach(&mut qemu, cell.directory(), RATE, "s16")?;
    std::fs::write(&sound.recorded, &recorded)?;
    let mut guest = cell.boot(qemu)?;
    let pause = |millis| std::thread::sleep(Duration::from_millis(millis));
    let record = match how {
        Break::CtrlC => "sound record 3000 new.wav",
        Break::PowerOff => "bg sound record 3000 new.wav",
    };
    guest.type_and_expect_writes(record, "d0", 256 << 10)?;
    guest.process().limit_writes("d0", 1)?;
    // A write is due every third of a second.
    pause(700);
    if let Break::CtrlC = how {
        guest.interrupt()?;
        // The prompt does not wait for the disk.
        guest.command("uptime", "up ")?;
    }
    guest.type_line("poweroff")?;
    // The guest can't end before its disk goes on.
    pause(500);
    guest.process().limit_writes("d0", 0)?;
    guest.ends_with(&End::PowerOff)?;
    let image = cell.file("disk.img");
    kind.check(&image)?;
    let file = kind.read(&image, "new.wav")?;
    // Its header says how much there is, not how much there was to be.
    let samples = frames.read(&file)?;
    ensure!(samples.len() > 100_000, "{} bytes", samples.len());
    let len = samples.len().min(recorded.len());
    compare(&samples[..len], &recorded[..len])?;
    let lost = guest
        .console()
        .find("WARN")
        .or(guest.console().find("ERROR"));
    ensure!(lost.is_none(), "the log says {lost:?}");
    Ok(())
}

/// A recording that is broken off at its beginning, before its header is written, in the middle of it or after it, is no file,
/// an empty one, or one whose header says how much there is.
fn broken_off_early(cell: &Cell) -> Result<()> {
    let kind = FileSystem::Fat(16);
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    disk(cell, &mut qemu, kind, &Files::new())?;
    qemu.arg("-audiodev", "none,id=audio");
    qemu.virtio("sound", "sound0", "audiodev=audio");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    // The file is made in some sectors, one after the other, and its header is one of them.
    guest.process().limit_writes("d0", 8 << 10)?;
    const FILES: u64 = 8;
    for number in 0..FILES {
        guest.type_line(&format!("sound record 3000 {number}.wav"))?;
        std::thread::sleep(Duration::from_millis(100 + 100 * number));
        guest.interrupt()?;
    }
    guest.type_line("poweroff")?;
    guest.process().limit_writes("d0", 0)?;
    guest.ends_with(&End::PowerOff)?;
    let image = cell.file("disk.img");
    kind.check(&image)?;
    let listed = kind.names(&image)?;
    ensure!(!listed.is_empty(), "no file was begun");
    for name in listed {
        let file = kind.read(&image, &name)?;
        if !file.is_empty() {
            frames(1, 16).read(&file).with_context(|| name.clone())?;
        }
    }
    Ok(())
}

/// What is no sound, or none for this card, is refused with a reason.
fn broken(cell: &Cell) -> Result<()> {
    let good = frames(1, 16);
    let file = good.file(&[0; 400]);
    let with = |frames: Frames| frames.file(&[0; 400]);
    let files = Files::from([
        ("text.wav".to_string(), b"no sound at all".to_vec()),
        ("empty.wav".into(), Vec::new()),
        ("cut.wav".into(), file[..30].to_vec()),
        ("adpcm.wav".into(), with(Frames { tag: 2, ..good })),
        (
            "rate.wav".into(),
            with(Frames {
                rate: 12345,
                ..good
            }),
        ),
        (
            "slow.wav".into(),
            with(Frames {
                rate: 12000,
                ..good
            }),
        ),
        ("law.wav".into(), with(frames(6, 8))),
        (
            "many.wav".into(),
            with(Frames {
                channels: 7,
                ..good
            }),
        ),
        ("no.wav".into(), good.file(&[])),
        (
            "chunks.wav".into(),
            [b"RIFF\0\0\0\0WAVE", &[0; 4000][..]].concat(),
        ),
    ]);
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    disk(cell, &mut qemu, FileSystem::Fat(16), &files)?;
    qemu.arg("-audiodev", "none,id=audio");
    qemu.virtio("sound", "sound0", "audiodev=audio");
    let refused = [
        ("sound play text.wav", "text.wav: is no wav file"),
        (
            "sound play empty.wav",
            "empty.wav: is broken: it ends too early",
        ),
        (
            "sound play cut.wav",
            "cut.wav: is broken: it ends too early",
        ),
        ("sound play adpcm.wav", "in format 0x2, which is not known"),
        ("sound play rate.wav", "has 12345 frames a second"),
        (
            "sound play slow.wav",
            "has 12000 frames a second; the card can't",
        ),
        ("sound play law.wav", "has samples of a_law; the card can't"),
        ("sound play many.wav", "snd0"),
        ("sound play none.wav", "no such file"),
        ("sound play chunks.wav", "many chunks, and no frames"),
        (
            "sound record 1 text.wav channels=7",
            "the card can't record",
        ),
        ("sound play a.wav b.wav", "one word too many"),
        (
            "sound record 1 x.wav format=u16",
            "no wav file has samples of u16",
        ),
        ("sound record 1 /blk7/x.wav", "no such device"),
        (
            "sound record 80000 x.wav rate=384000",
            "no wav file is longer",
        ),
    ];
    let commands: Vec<_> = refused.iter().map(|(command, _)| *command).collect();
    qemu.script(&format!(
        "{}; sound play no.wav; ls; poweroff",
        commands.join("; ")
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for (command, reason) in refused {
        let output = guest.console().output_of(command)?.concat();
        let error = output.starts_with("error: ") && output.contains(reason);
        ensure!(error, "{command} said {output:?} without {reason:?}");
    }
    let none = guest.console().output_of("sound play no.wav")?.concat();
    ensure!(none.contains(" frames=0 "), "{none:?}");
    let listed = guest.console().output_of("ls")?.concat();
    ensure!(!listed.contains("x.wav"), "{listed:?}");
    // What can't be recorded has not cost the file that was there.
    let text = FileSystem::Fat(16).read(&cell.file("disk.img"), "text.wav")?;
    ensure!(text == b"no sound at all");
    Ok(())
}
