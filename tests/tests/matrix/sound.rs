//! Sound: what QEMU wrote is what the guest played, sample for sample, and what the guest recorded is what QEMU read.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::disk::{Disk, MIB, sha256};
use vringlet_tests::guest::End;
use vringlet_tests::net::clients::tcp_echo;
use vringlet_tests::qemu::{Forward, Image, Qemu};
use vringlet_tests::sound::{
    DAEMON_FORMATS, DAEMON_RATES, DaemonFiles, FORMATS, Files, RATES, compare, encode, no_alsa,
    play_to_wav, played_by_daemon, read_wav, silence, tone,
};
use vringlet_tests::vhost_user::no_sound;

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for (machine, properties) in [
        ("q35", ""),
        ("pc", ""),
        ("microvm", ""),
        ("q35", "vectors=0"),
    ] {
        let name = match properties {
            "" => format!("{machine}/sound/wav"),
            properties => format!("{machine}/sound/wav-{properties}"),
        };
        cells.push(Spec::new(name, move |cell| wav(cell, machine, properties)));
    }
    for rate in RATES {
        let name = format!("q35/sound/play/rate={rate}");
        cells.push(Spec::new(name, move |cell| play_rate(cell, rate)));
    }
    for format in FORMATS {
        let name = format!("q35/sound/play/format={format}");
        let spec = Spec::new(name, move |cell| play_format(cell, format));
        cells.push(spec.unless(no_alsa));
        let name = format!("q35/sound/record/format={format}");
        let spec = Spec::new(name, move |cell| record_format(cell, format));
        cells.push(spec.unless(no_alsa));
    }
    for rate in RATES {
        let name = format!("q35/sound/record/rate={rate}");
        let spec = Spec::new(name, move |cell| record_rate(cell, rate));
        cells.push(spec.unless(no_alsa));
    }
    cells.push(Spec::new("q35/sound/loop", loop_back).unless(no_alsa));
    cells.push(Spec::new("q35/sound/interrupted", interrupted));
    for how in [Restart::Reboot, Restart::Reset] {
        let name = format!("q35/sound/restart={how:?}").to_lowercase();
        cells.push(Spec::new(name, move |cell| restart(cell, how)));
    }
    cells.push(Spec::new("q35/sound/refusals", refusals));
    cells.push(Spec::new("q35/sound/busy-60s", |cell| busy(cell, "")));
    let short = |cell: &Cell| busy(cell, "period=2.5");
    cells.push(Spec::new("q35/sound/busy-60s-period=2.5", short));
    cells.push(Spec::new("q35/sound/period=2.5", short_periods));
    cells.push(Spec::new("q35/sound/bench", bench));
    for (name, body) in [
        ("play", daemon_plays as fn(&Cell) -> Result<()>),
        ("record", daemon_records),
        ("loop", daemon_loops),
        ("periods", daemon_gets_periods),
        ("restart", daemon_is_restarted),
        ("paused", daemon_pauses),
    ] {
        let spec = Spec::new(format!("q35/sound/vhost-user/{name}"), body);
        cells.push(spec.unless(no_sound));
    }
    cells
}

const SECONDS: u32 = 1;

/// The tone as a file of 16 bits and two channels has it.
fn tone_s16(hz: u32, rate: u32, seconds: u32) -> Vec<u8> {
    let samples = tone(hz, rate, 2, rate * seconds);
    samples.flat_map(|sample| encode("s16", sample)).collect()
}

/// What a command printed must be a success without a gap.
fn check_said(guest: &Booted, command: &str, word: &str) -> Result<()> {
    let line = said(guest, command, word)?;
    ensure!(line.contains(" xruns=0 "), "{command} said {line:?}");
    Ok(())
}

/// What a command printed must be a success. A file that is recorded comes faster than any sound, so it may well have to
/// wait for the guest.
fn said(guest: &Booted, command: &str, word: &str) -> Result<String> {
    said_with(guest, command, word, " errors=0 ")
}

fn said_with(guest: &Booted, command: &str, word: &str, text: &str) -> Result<String> {
    let output = guest.console().output_of(command)?;
    let line = output.iter().find(|line| line.starts_with(word));
    let line = line.with_context(|| format!("{command} said {output:?}"))?;
    ensure!(line.contains(text), "{command} said {line:?}");
    Ok(line.clone())
}

/// Plays two tones, one after the other, and the tour's, on any machine and with any kind of interrupt.
fn wav(cell: &Cell, machine: &str, properties: &str) -> Result<()> {
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    play_to_wav(&mut qemu, &path, 48000, "s16")?;
    if !properties.is_empty() {
        qemu.arg("-global", &format!("virtio-sound-pci.{properties}"));
    }
    qemu.script("strict; sound tone 440 2; sound tone 1000 1; selftest; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    check_said(&guest, "sound tone 440 2", "played")?;
    let mut expected = [tone_s16(440, 48000, 2), tone_s16(1000, 48000, 1)].concat();
    expected.extend(tone(440, 48000, 2, 12000).flat_map(|it| encode("s16", it)));
    compare(&read_wav(&path)?, &expected)
}

fn play_rate(cell: &Cell, rate: u32) -> Result<()> {
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    play_to_wav(&mut qemu, &path, rate, "s16")?;
    let command = format!("sound tone 440 {SECONDS} rate={rate}");
    qemu.script(&format!("strict; {command}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    check_said(&guest, &command, "played")?;
    compare(&read_wav(&path)?, &tone_s16(440, rate, SECONDS))
}

/// All bits of every format, in stereo and in mono, which QEMU plays on both sides.
fn play_format(cell: &Cell, format: &str) -> Result<()> {
    const RATE: u32 = 48000;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    let files = Files::attach(&mut qemu, cell.directory(), RATE, format)?;
    let command =
        |channels| format!("sound tone 440 {SECONDS} format={format} channels={channels}");
    let (mono, stereo) = (command(1), command(2));
    qemu.script(&format!("strict; {stereo}; {mono}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    check_said(&guest, &stereo, "played")?;
    check_said(&guest, &mono, "played")?;
    let stereo = tone(440, RATE, 2, RATE * SECONDS);
    let mono = tone(440, RATE, 1, RATE * SECONDS).flat_map(|sample| [sample, sample]);
    let samples = stereo.chain(mono);
    let expected: Vec<_> = samples.flat_map(|it| encode(format, it)).collect();
    compare(&std::fs::read(&files.played)?, &expected)
}

/// A file of samples that look like nothing but themselves: all bits of the format are used.
fn noise(format: &str, frames: u32, right: bool) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(u64::from(frames));
    let mut bytes = Vec::new();
    for _ in 0..frames {
        bytes.extend(encode(format, random.i32(..)));
        bytes.extend(match right {
            true => encode(format, random.i32(..)),
            false => silence(format),
        });
    }
    bytes
}

fn record(cell: &Cell, format: &str, rate: u32, channels: usize, recorded: &[u8]) -> Result<()> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    let files = Files::attach(&mut qemu, cell.directory(), rate, format)?;
    std::fs::write(&files.recorded, recorded)?;
    let command = format!("sound record {SECONDS} format={format} rate={rate} channels={channels}");
    qemu.script(&format!("strict; {command}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let line = said(&guest, &command, "recorded")?;
    let frame = 2 * encode(format, 0).len();
    let frames = recorded.chunks(frame).take((rate * SECONDS) as usize);
    // QEMU adds both sides for one channel; the right one is silent then.
    let samples = frames.flat_map(|frame| &frame[..frame.len() / 2 * channels]);
    let expected: Vec<u8> = samples.copied().collect();
    let hash = sha256(&expected);
    ensure!(line.ends_with(&hash), "{line:?} and not {hash}");
    Ok(())
}

fn record_format(cell: &Cell, format: &str) -> Result<()> {
    const RATE: u32 = 48000;
    let stereo = noise(format, RATE * (SECONDS + 2), true);
    record(cell, format, RATE, 2, &stereo)?;
    let mono = noise(format, RATE * (SECONDS + 2), false);
    record(cell, format, RATE, 1, &mono)
}

fn record_rate(cell: &Cell, rate: u32) -> Result<()> {
    record(
        cell,
        "s16",
        rate,
        2,
        &noise("s16", rate * (SECONDS + 2), true),
    )
}

/// What is recorded is played, and arrives as it was.
fn loop_back(cell: &Cell) -> Result<()> {
    const RATE: u32 = 48000;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    let files = Files::attach(&mut qemu, cell.directory(), RATE, "s32")?;
    let recorded = noise("s32", RATE * (SECONDS + 2), true);
    std::fs::write(&files.recorded, &recorded)?;
    let command = format!("sound loop {SECONDS} format=s32");
    qemu.script(&format!("strict; {command}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    said(&guest, &command, "looped")?;
    let len = (RATE * SECONDS * 8) as usize;
    compare(&std::fs::read(&files.played)?, &recorded[..len])
}

/// A tone that is broken off leaves nothing for the next: QEMU would play what it still has if it were not released.
fn interrupted(cell: &Cell) -> Result<()> {
    const RATE: u32 = 48000;
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    play_to_wav(&mut qemu, &path, RATE, "s16")?;
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    guest.type_line("sound tone 440 60")?;
    std::thread::sleep(Duration::from_millis(1500));
    guest.interrupt()?;
    // The card takes its time to be released, and is busy meanwhile.
    std::thread::sleep(Duration::from_millis(500));
    guest.command("sound tone 1000 1", "frames=48000")?;
    guest.power_off()?;
    let heard = read_wav(&path)?;
    let next = tone_s16(1000, RATE, 1);
    ensure!(heard.len() > next.len(), "{} bytes heard", heard.len());
    let (broken, whole) = heard.split_at(heard.len() - next.len());
    // Not a minute of it.
    ensure!(
        broken.len() < 4 * 10 * RATE as usize,
        "{} bytes of the first",
        broken.len()
    );
    compare(whole, &next).context("the tone after the break")?;
    let seconds = (broken.len() as u32).div_ceil(4 * RATE);
    let first = tone_s16(440, RATE, seconds);
    compare(broken, &first[..broken.len()]).context("the tone before the break")
}

/// How a machine starts anew while it plays.
#[derive(Clone, Copy, Debug)]
enum Restart {
    /// By the guest's own command.
    Reboot,
    /// Without a warning. QEMU's card then has periods that the next kernel's driver never gave it.
    Reset,
}

/// Whatever was played before, the next kernel plays its own.
fn restart(cell: &Cell, how: Restart) -> Result<()> {
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    play_to_wav(&mut qemu, &path, 48000, "s16")?;
    let mut guest = cell.boot(qemu)?;
    guest.expect("ready")?;
    let qmp = &mut guest.process().qmp;
    qmp.execute("set-action", json!({ "reboot": "reset" }))?;
    guest.type_line("bg sound tone 440 60")?;
    std::thread::sleep(Duration::from_secs(1));
    match how {
        Restart::Reboot => guest.type_line("reboot")?,
        Restart::Reset => drop(guest.process().qmp.execute("system_reset", json!({}))?),
    }
    // This kernel's prompt, and not what the one before left.
    guest.expect("ready")?;
    std::thread::sleep(Duration::from_secs(1));
    let line = guest.command("sound tone 1000 1", "frames=48000")?.text;
    ensure!(line.contains(" errors=0 "), "{line:?}");
    let lines = guest.console().lines();
    let healed = lines
        .iter()
        .any(|it| it.text.contains("snd0: started again"));
    ensure!(
        healed == matches!(how, Restart::Reset),
        "{how:?}, healed: {healed}"
    );
    guest.power_off()?;
    let heard = read_wav(&path)?;
    let next = tone_s16(1000, 48000, 1);
    ensure!(heard.len() > next.len(), "{} bytes heard", heard.len());
    compare(&heard[heard.len() - next.len()..], &next)
}

/// A minute without a gap, while the disk is read and the network echoes as fast as they can.
fn busy(cell: &Cell, period: &str) -> Result<()> {
    const SECONDS: u32 = 60;
    const ECHO: u16 = 7;
    let path = cell.file("out.wav");
    let disk = Disk::create(cell.file("disk.img"), 16 * MIB, 1)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    play_to_wav(&mut qemu, &path, 48000, "s16")?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "disk0", "drive=d0");
    let echo = Forward {
        protocol: "tcp",
        host: 0,
        guest: ECHO,
    };
    qemu.user_net("n0", &[echo]);
    qemu.virtio("net", "net0", "netdev=n0");
    qemu.cmdline("ip=10.0.2.15/24,10.0.2.2");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let port = guest.process().qmp.forwarded_port("tcp", ECHO)?;
    guest.type_line("bg blk bench blk0 read depth=4 size=64k count=100M")?;
    guest.type_line(format!("sound tone 440 {SECONDS} {period}").trim_end())?;
    let start = Instant::now();
    let bytes = vec![0x5a; 64 << 10];
    let mut echoes = 0;
    while start.elapsed() < Duration::from_secs(SECONDS.into()) {
        tcp_echo(port, &bytes)?;
        echoes += 1;
    }
    let line = guest.expect("played")?.text;
    let said = match period {
        "" => " xruns=0 errors=0 ",
        // The device has 60 ms of sound. A busy host may well let the guest come later than that.
        _ => " errors=0 ",
    };
    ensure!(line.contains(said), "{line:?}");
    guest.type_line("virtio blk0")?;
    let read = guest.expect("bytes_read=")?.text;
    let read = read.split("bytes_read=").nth(1).unwrap_or_default();
    let read: u64 = read.split(' ').next().unwrap_or_default().parse()?;
    // Much less than either does on the slowest machine, and much more than nothing.
    ensure!(read > 64 << 20, "{read} bytes of the disk read");
    ensure!(echoes > 10, "{echoes} echoes of 64 KiB");
    guest.power_off()?;
    compare(&read_wav(&path)?, &tone_s16(440, 48000, SECONDS))
}

/// Short periods, few and many of them: what is heard is the same, and no less of it.
fn short_periods(cell: &Cell) -> Result<()> {
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    play_to_wav(&mut qemu, &path, 48000, "s16")?;
    let command = |options| format!("sound tone 440 {SECONDS} {options}");
    let plays = ["period=2.5", "period=2.5 periods=64", "period=10 periods=4"].map(command);
    // Longer and shorter than is sound, more than the queue takes, and no number.
    let refused = [
        "period=0.5",
        "period=2000",
        "periods=65",
        "periods=0",
        "period=x",
    ]
    .map(command);
    let [plays_script, refused_script] = [&plays[..], &refused].map(|it| it.join("; "));
    qemu.script(&format!("{plays_script}; {refused_script}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for (command, periods) in plays.iter().zip([400, 400, 100]) {
        let line = said(&guest, command, "played")?;
        ensure!(line.contains(&format!(" periods={periods} ")), "{line}");
    }
    for command in &refused {
        let output = guest.console().output_of(command)?;
        let error = output.iter().any(|line| line.starts_with("error: "));
        ensure!(error, "{command} said {output:?}");
    }
    compare(&read_wav(&path)?, &tone_s16(440, 48000, SECONDS).repeat(3))
}

/// The benchmark plays as long as it says and then what the device has at a time, and measures periods that are kept about as
/// long as it takes to play them all.
fn bench(cell: &Cell) -> Result<()> {
    const PERIOD_US: u32 = 5000;
    const PERIODS: u32 = 16;
    let path = cell.file("out.wav");
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    play_to_wav(&mut qemu, &path, 48000, "s16")?;
    let command = format!("sound bench seconds=2 period=5 periods={PERIODS}");
    qemu.script(&format!("strict; {command}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let line = said_with(&guest, &command, "bench", " errors=0")?;
    for text in [
        "s16 48000 Hz 2 channels: period_us=5000",
        " period_bytes=960 ",
        " periods=16 ",
        " measured=400 ",
    ] {
        ensure!(line.contains(text), "no {text:?} in {line:?}");
    }
    let number = |name: &str| -> Result<u32> {
        let text = line.split_once(&format!(" {name}="));
        let text = text.with_context(|| format!("no {name} in {line:?}"))?.1;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    };
    let [min, median, max] = [
        number("kept_us_min")?,
        number("kept_us_median")?,
        number("kept_us_max")?,
    ];
    ensure!(min <= median && median <= max, "{line:?}");
    // However busy the machine is: most of them wait for those before them to be played.
    ensure!(median > PERIODS * PERIOD_US / 4, "{line:?}");
    let seconds = tone_s16(440, 48000, 3);
    let len = (400 + PERIODS as usize) * 960;
    // What QEMU has when the stream ends at once may be lost.
    let heard = read_wav(&path)?;
    ensure!(heard.len() <= len, "{} bytes of {len}", heard.len());
    ensure!(heard.len() > len / 2, "{} bytes of {len}", heard.len());
    compare(&heard, &seconds[..heard.len()])
}

/// A card says what it has; QEMU's has jacks and channel maps of which it will not tell.
fn refusals(cell: &Cell) -> Result<()> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.arg("-audiodev", "none,id=audio");
    qemu.virtio(
        "sound",
        "sound0",
        "audiodev=audio,streams=5,jacks=2,chmaps=3",
    );
    qemu.script(
        "sound info; sound tone 440 1 format=s24; sound tone 440 1 format=no; sound tone 440 1 rate=12000; \
         sound tone 440 1 channels=3; sound tone 440 1 format=a_law; sound tone; sound tone 440 x; \
         sound record 1 card=snd7; sound hum; sound tone 440 1 format=u8; poweroff",
    );
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let output = guest.console().output_of("sound info")?.join("\n");
    for text in [
        "snd0: streams=5 jacks=2 chmaps=3 controls=0",
        "snd0: stream 2: output formats=s8,u8,s16,u16,s32,u32,float rates=5512,",
        "snd0: stream 4: input",
        "snd0: device answered JACK_INFO with NOT_SUPP (0x8002)",
        "snd0: device answered CHMAP_INFO with NOT_SUPP (0x8002)",
    ] {
        ensure!(output.contains(text), "no {text:?} in {output:?}");
    }
    for command in [
        "sound tone 440 1 format=s24",
        "sound tone 440 1 format=no",
        "sound tone 440 1 rate=12000",
        "sound tone 440 1 channels=3",
        "sound tone 440 1 format=a_law",
        "sound tone",
        "sound tone 440 x",
        "sound record 1 card=snd7",
        "sound hum",
    ] {
        let output = guest.console().output_of(command)?;
        let error = output.iter().any(|line| line.starts_with("error: "));
        ensure!(error, "{command} said {output:?}");
    }
    check_said(&guest, "sound tone 440 1 format=u8", "played")
}

/// A guest with the daemon's card, which records `recorded`.
fn with_daemon(cell: &Cell, recorded: &[u8]) -> Result<(Qemu, DaemonFiles)> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.share_memory(MEMORY);
    let files = DaemonFiles::attach(&mut qemu, cell.directory(), recorded)?;
    Ok((qemu, files))
}

/// Bytes of the periods that the guest makes: a fiftieth of a second, in multiples of eight frames.
fn period(rate: u32, frame: usize) -> usize {
    rate.div_ceil(50).next_multiple_of(8) as usize * frame
}

/// The guest's tone as the daemon plays it, in mono.
fn daemon_tone(hz: u32, rate: u32, format: &str, seconds: u32) -> Vec<u8> {
    let samples = tone(hz, rate, 1, rate * seconds);
    let frames: Vec<u8> = samples.flat_map(|it| encode(format, it)).collect();
    played_by_daemon(&frames, period(rate, encode(format, 0).len()))
}

/// All formats and rates, but for what the daemon cuts off: [`played_by_daemon`].
fn daemon_plays(cell: &Cell) -> Result<()> {
    let (mut qemu, files) = with_daemon(cell, &[])?;
    let formats = DAEMON_FORMATS.map(|format| (format, 48000));
    let rates = DAEMON_RATES.map(|rate| ("s16", rate));
    let plays = [&formats[..], &rates].concat();
    let command = |(format, rate): &(&str, u32)| {
        format!("sound tone 440 {SECONDS} channels=1 format={format} rate={rate}")
    };
    let commands: Vec<_> = plays.iter().map(command).collect();
    qemu.script(&format!(
        "strict; {}; virtio snd0; poweroff",
        commands.join("; ")
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for command in &commands {
        said(&guest, command, "played")?;
    }
    let report = guest.console().output_of("virtio snd0")?.join("\n");
    ensure!(!report.contains("RING_RESET"), "{report}");
    ensure!(report.matches(" violations=0").count() == 4, "{report}");
    let expected = plays
        .iter()
        .map(|(format, rate)| daemon_tone(440, *rate, format, SECONDS));
    files.expect_played(&expected.collect::<Vec<_>>())?;
    files.daemon.complains_only_of(&[])
}

/// All formats, rates and channels that a frame may have.
///
/// Whether periods fail is not looked at: those that the guest has queued and wants back at the end have no frames, and the
/// daemon puts their status behind what it says that it wrote, where the driver must not believe it (spec 2.7.8.2).
fn daemon_records(cell: &Cell) -> Result<()> {
    let recorded = noise("s32", 48000 * (SECONDS + 2), true);
    let (mut qemu, files) = with_daemon(cell, &recorded)?;
    let formats = DAEMON_FORMATS.map(|format| (format, 48000, 2));
    let rates = DAEMON_RATES.map(|rate| ("s16", rate, 2));
    let channels = [1, 3, 6].map(|channels| ("u8", 48000, channels));
    let records = [&formats[..], &rates, &channels].concat();
    let command = |(format, rate, channels): &(&str, u32, usize)| {
        format!("sound record {SECONDS} format={format} rate={rate} channels={channels}")
    };
    let commands: Vec<_> = records.iter().map(command).collect();
    qemu.script(&format!("strict; {}; poweroff", commands.join("; ")));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for (command, (format, rate, channels)) in commands.iter().zip(records) {
        let len = encode(format, 0).len() * channels * (rate * SECONDS) as usize;
        let hash = sha256(&recorded[..len]);
        let output = guest.console().output_of(command)?;
        let found = output
            .iter()
            .any(|line| line.starts_with("recorded") && line.ends_with(&format!(" sha256={hash}")));
        ensure!(found, "{command} said {output:?} and not {hash}");
    }
    files.daemon.complains_only_of(&[])
}

/// What is recorded is played, but for what the daemon cuts off.
fn daemon_loops(cell: &Cell) -> Result<()> {
    const RATE: u32 = 48000;
    let recorded = noise("s32", RATE * (SECONDS + 2), true);
    let (mut qemu, files) = with_daemon(cell, &recorded)?;
    let command = format!("sound loop {SECONDS} format=s32 channels=1");
    qemu.script(&format!("strict; {command}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    said(&guest, &command, "looped")?;
    let looped = &recorded[..4 * (RATE * SECONDS) as usize];
    files.expect_played(&[played_by_daemon(looped, period(RATE, 4))])?;
    files.daemon.complains_only_of(&[])
}

/// Periods of other lengths: the daemon cuts each, so that what it plays tells of how many bytes they were.
fn daemon_gets_periods(cell: &Cell) -> Result<()> {
    const RATE: u32 = 48000;
    // In milliseconds, and in frames.
    const PERIODS: [(&str, usize); 3] = [("2.5", 120), ("7", 336), ("50", 2400)];
    let (mut qemu, files) = with_daemon(cell, &[])?;
    let command = |ms| format!("sound tone 440 {SECONDS} channels=1 period={ms}");
    let commands = PERIODS.map(|(ms, _)| command(ms));
    qemu.script(&format!("strict; {}; poweroff", commands.join("; ")));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let samples = tone(440, RATE, 1, RATE * SECONDS);
    let frames: Vec<u8> = samples.flat_map(|it| encode("s16", it)).collect();
    files.expect_played(&PERIODS.map(|(_, period)| played_by_daemon(&frames, 2 * period)))?;
    files.daemon.complains_only_of(&[])
}

/// A daemon that does nothing for a while, as on a busy machine: it is late, and plays all the same.
fn daemon_pauses(cell: &Cell) -> Result<()> {
    let (qemu, files) = with_daemon(cell, &[])?;
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    files.daemon.pause()?;
    guest.type_line("sound tone 440 1 channels=1")?;
    std::thread::sleep(Duration::from_secs(10));
    files.daemon.resume()?;
    let line = guest.expect("frames=48000")?.text;
    ensure!(line.contains(" errors=0 "), "{line:?}");
    guest.power_off()?;
    files.expect_played(&[daemon_tone(440, 48000, "s16", 1)])?;
    files.daemon.complains_only_of(&[])
}

/// A tone, and another one for the next kernel: after the guest's own reboot, and after a reset from outside.
///
/// No tone is broken off. The daemon is not told that the machine was reset, and refuses all that the next driver asks of a
/// stream that was running; and its thread for queues ends in a panic if it finds a period after it was told to stop, as it
/// may when the guest has sent the one before the other.
fn daemon_is_restarted(cell: &Cell) -> Result<()> {
    const TONE: &str = "sound tone 1000 1 channels=1";
    let (qemu, files) = with_daemon(cell, &[])?;
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let qmp = &mut guest.process().qmp;
    qmp.execute("set-action", json!({ "reboot": "reset" }))?;
    for restart in [Some(Restart::Reboot), Some(Restart::Reset), None] {
        let line = guest.command(TONE, "frames=48000")?.text;
        ensure!(line.contains(" errors=0 "), "{line:?}");
        match restart {
            Some(Restart::Reboot) => guest.type_line("reboot")?,
            Some(Restart::Reset) => {
                drop(guest.process().qmp.execute("system_reset", json!({}))?);
            }
            None => break,
        }
        guest.expect("ready")?;
        std::thread::sleep(Duration::from_secs(1));
    }
    guest.power_off()?;
    files.expect_played(&vec![daemon_tone(1000, 48000, "s16", 1); 3])?;
    files.daemon.complains_only_of(&[])
}
