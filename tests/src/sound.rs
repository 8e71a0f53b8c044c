//! What a sound card must play and record: the guest's tone to the last bit, and files for QEMU to read and write.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::qemu::{Qemu, knows, utf8};
use crate::vhost_user::Daemon;

/// The formats that QEMU's card offers, by the guest's names.
pub const FORMATS: [&str; 7] = ["s8", "u8", "s16", "u16", "s32", "u32", "float"];
/// The rates that it offers.
pub const RATES: [u32; 14] = [
    5512, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 64000, 88200, 96000, 176_400, 192_000,
    384_000,
];

/// The formats that vhost-device-sound offers.
pub const DAEMON_FORMATS: [&str; 4] = ["u8", "s16", "s24", "s32"];
/// The rates that it offers.
pub const DAEMON_RATES: [u32; 7] = [8000, 11025, 16000, 22050, 32000, 44100, 48000];

/// How long the daemon may take to write the last of what it played.
const PATIENCE: Duration = Duration::from_secs(30);

/// Length of the header of a wav file that QEMU writes.
const WAV_HEADER: usize = 44;

/// The samples of the guest's tone in 32 bits, frame by frame: channel `c` has `c + 1` times the frequency.
///
/// The phase is a fraction of a turn in 2^32nds, and two parabolas stand for the sine; every rounding is part of the rule.
pub fn tone(hz: u32, rate: u32, channels: u32, frames: u32) -> impl Iterator<Item = i32> {
    let step = ((u64::from(hz) << 32) + u64::from(rate) / 2) / u64::from(rate);
    (0..frames).flat_map(move |frame| {
        (1..=channels).map(move |factor| {
            let phase = frame.wrapping_mul(factor).wrapping_mul(step as u32);
            let p = i64::from(phase as i32);
            ((p * ((1 << 31) - p.abs())) >> 30) as i32
        })
    })
}

/// A sample of 32 bits as a file in one of the formats has it.
pub fn encode(format: &str, sample: i32) -> Vec<u8> {
    // In two's complement an unsigned format is a signed one with the upmost bit turned.
    let sample = if format.starts_with('u') {
        sample ^ i32::MIN
    } else {
        sample
    };
    match format {
        "s8" | "u8" => vec![(sample >> 24) as u8],
        "s16" | "u16" => ((sample >> 16) as i16).to_le_bytes().to_vec(),
        // In 32 bits, of which the upper eight only repeat the sign.
        "s24" => (sample >> 8).to_le_bytes().to_vec(),
        "float" => {
            let value = (sample >> 8) as f32 / 8_388_608.0;
            value.to_le_bytes().to_vec()
        }
        _ => sample.to_le_bytes().to_vec(),
    }
}

/// Silence in a format, as QEMU has it: the middle of an unsigned format is the lower one of the two in the middle.
pub fn silence(format: &str) -> Vec<u8> {
    let mut bytes = encode(format, 0);
    if format.starts_with('u') {
        bytes.fill(0xff);
        if let Some(last) = bytes.last_mut() {
            *last = 0x7f;
        }
    }
    bytes
}

/// QEMU's name of a format.
pub fn qemu_format(format: &str) -> &str {
    match format {
        "float" => "f32",
        other => other,
    }
}

/// A card that plays into a wav file, which has the samples in `format` (of 16 bits at most) and two channels.
pub fn play_to_wav(qemu: &mut Qemu, path: &Path, rate: u32, format: &str) -> Result<()> {
    let path = crate::qemu::escape(utf8(path)?);
    qemu.arg(
        "-audiodev",
        &format!("wav,id=audio,path={path},out.frequency={rate},out.format={format}"),
    );
    qemu.virtio("sound", "sound0", "audiodev=audio");
    Ok(())
}

/// The samples in a wav file that QEMU closed.
pub fn read_wav(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(bytes.len() >= WAV_HEADER, "no wav file");
    Ok(bytes.split_off(WAV_HEADER))
}

/// A card on ALSA's file plugin, which knows all formats: plays into one raw file, and records another. Both have two
/// channels.
pub struct Files {
    /// What is played.
    pub played: PathBuf,
    /// What is recorded.
    pub recorded: PathBuf,
}

impl Files {
    /// Such a card, with files named after what they are for in `directory`. The file to be recorded is the caller's to
    /// write.
    pub fn attach(qemu: &mut Qemu, directory: &Path, rate: u32, format: &str) -> Result<Self> {
        let files = Self {
            played: directory.join("played.raw"),
            recorded: directory.join("recorded.raw"),
        };
        let config = directory.join("asound.conf");
        let (played, recorded) = (utf8(&files.played)?, utf8(&files.recorded)?);
        let text = format!(
            "pcm.null {{ type null }}\n\
             pcm.out {{ type file slave.pcm null file \"{played}\" format raw }}\n\
             pcm.in {{ type file slave.pcm null file /dev/null infile \"{recorded}\" format raw }}\n"
        );
        std::fs::write(&config, text).context("writing ALSA's configuration")?;
        let variable = format!("ALSA_CONFIG_PATH={}", utf8(&config)?);
        qemu.start_by(&["env", &variable]);
        let format = qemu_format(format);
        qemu.arg(
            "-audiodev",
            &format!(
                "alsa,id=audio,in.dev=in,out.dev=out,in.try-poll=off,out.try-poll=off,\
                 in.frequency={rate},in.format={format},out.frequency={rate},out.format={format}"
            ),
        );
        qemu.virtio("sound", "sound0", "audiodev=audio");
        Ok(files)
    }
}

/// The card of the daemon vhost-device-sound, on ALSA's file plugin: each time that a stream is played goes into a file of
/// its own, and each recording begins at the beginning of the same file.
///
/// It plays in mono only. The daemon opens ALSA's device `default` with one channel when it starts, and writes to the device's
/// memory; without hardware, `multi` is the only plugin of ALSA's own that has some, and its channels are fixed.
pub struct DaemonFiles {
    /// The daemon.
    pub daemon: Daemon,
    directory: PathBuf,
}

impl DaemonFiles {
    /// Starts the daemon with its files in `directory`, and adds its card. `recorded` is what it records.
    pub fn attach(qemu: &mut Qemu, directory: &Path, recorded: &[u8]) -> Result<Self> {
        let file = directory.join("recorded.raw");
        std::fs::write(&file, recorded).context("writing what is recorded")?;
        let played = directory.join(PLAYED);
        let (played, recorded) = (utf8(&played)?, utf8(&file)?);
        let text = format!(
            "pcm.null {{ type null }}\n\
             pcm.!default {{ type asym playback.pcm mapped capture.pcm in }}\n\
             pcm.mapped {{ type multi slaves.a {{ pcm out channels 1 }} bindings [ {{ slave a channel 0 }} ] }}\n\
             pcm.out {{ type file slave.pcm null file \"{played}\" truncate false format raw }}\n\
             pcm.in {{ type file slave.pcm null file /dev/null infile \"{recorded}\" format raw }}\n"
        );
        let config = directory.join("asound.conf");
        std::fs::write(&config, text).context("writing ALSA's configuration")?;
        let daemon = Daemon::sound(directory, &config)?;
        daemon.attach(qemu, "vhost-user-snd-pci", "sound0", "")?;
        Ok(Self {
            daemon,
            directory: directory.into(),
        })
    }

    /// What was played so far, stream after stream, as far as it is written.
    pub fn played(&self) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        for entry in self.directory.read_dir().context("the cell's directory")? {
            let entry = entry?;
            // ALSA appends a number to the name of a file that is there already.
            if entry.file_name().to_string_lossy().starts_with(PLAYED) {
                paths.push(entry.path());
            }
        }
        paths.sort();
        let mut played = Vec::new();
        for path in paths {
            let bytes = std::fs::read(&path)?;
            // The daemon opens the device for nothing, too.
            if !bytes.is_empty() {
                played.push(bytes);
            }
        }
        Ok(played)
    }

    /// What was played must be this. The last of a stream is written when the daemon closes it: for the next stream, or some
    /// time after QEMU has ended.
    pub fn expect_played(&self, expected: &[Vec<u8>]) -> Result<()> {
        let lengths = |streams: &[Vec<u8>]| streams.iter().map(Vec::len).collect::<Vec<_>>();
        let deadline = Instant::now() + PATIENCE;
        let mut played = self.played()?;
        while lengths(&played) != lengths(expected) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            played = self.played()?;
        }
        for (index, (played, expected)) in played.iter().zip(expected).enumerate() {
            compare(played, expected).with_context(|| format!("stream {index}"))?;
        }
        let (count, should) = (played.len(), expected.len());
        ensure!(count == should, "{count} streams played and not {should}");
        Ok(())
    }
}

/// How the names of files begin into which the daemon plays.
const PLAYED: &str = "played.raw";

/// What vhost-device-sound 0.3.0 plays of these frames, which it gets in periods of so many bytes: it takes the four bytes of
/// the header from the end of each period.
pub fn played_by_daemon(frames: &[u8], period: usize) -> Vec<u8> {
    const HEADER: usize = 4;
    let periods = frames.chunks(period);
    let kept = periods.map(|bytes| &bytes[..bytes.len().saturating_sub(HEADER)]);
    kept.collect::<Vec<_>>().concat()
}

/// Why ALSA can't be used, if it can't.
pub fn no_alsa() -> Option<String> {
    match knows("-audiodev", "alsa") {
        Ok(true) => None,
        Ok(false) => Some("this QEMU has no ALSA backend".into()),
        Err(error) => Some(format!("no QEMU: {error}")),
    }
}

/// Frames that were heard must be those that were expected, all of them and no more.
pub fn compare(heard: &[u8], expected: &[u8]) -> Result<()> {
    let differs = heard.iter().zip(expected).position(|(a, b)| a != b);
    if let Some(at) = differs {
        anyhow::bail!(
            "byte {at} of {} is {:#04x} and not {:#04x}",
            expected.len(),
            heard[at],
            expected[at]
        );
    }
    ensure!(
        heard.len() == expected.len(),
        "{} bytes and not {}",
        heard.len(),
        expected.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tone_is_the_guests_rule() {
        // A turn of eight frames: the values follow from the parabola by hand.
        const HALF: i32 = 1 << 30;
        const SLOPE: i32 = HALF / 4 * 3;
        let turn: Vec<_> = tone(1000, 8000, 1, 8).collect();
        assert_eq!(turn, [0, SLOPE, HALF, SLOPE, 0, -SLOPE, -HALF, -SLOPE]);
        let both: Vec<_> = tone(1000, 8000, 2, 3).collect();
        assert_eq!(both, [0, 0, SLOPE, HALF, HALF, 0]);
    }

    #[test]
    fn formats_keep_what_they_can() {
        assert_eq!(encode("u8", 0), [0x80]);
        assert_eq!(encode("s16", -1 << 16), [0xff, 0xff]);
        assert_eq!(encode("u16", i32::MIN), [0, 0]);
        assert_eq!(encode("s24", -1 << 16), [0, 0xff, 0xff, 0xff]);
        assert_eq!(encode("u32", 1), [1, 0, 0, 0x80]);
        assert_eq!(encode("float", 1 << 30), 0.5f32.to_le_bytes());
        assert_eq!(silence("u16"), [0xff, 0x7f]);
        assert_eq!(silence("s16"), [0, 0]);
    }

    #[test]
    fn the_daemon_cuts_every_period() {
        assert_eq!(played_by_daemon(b"abcdefghijklmnop", 6), b"abgh");
        assert_eq!(played_by_daemon(b"abcdefghijklm", 6), b"abgh");
    }

    #[test]
    fn a_difference_is_found() {
        assert!(compare(b"abc", b"abc").is_ok());
        assert!(compare(b"abc", b"abd").is_err());
        assert!(compare(b"abcd", b"abc").is_err());
        assert!(compare(b"ab", b"abc").is_err());
    }
}
