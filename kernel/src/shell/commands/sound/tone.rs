//! A tone that is a rule: anybody can compute its samples, to the last bit.
//!
//! Frame `n` of channel `c` has the phase `n * (c + 1) * step` modulo 2^32, with `step = (hz * 2^32 + rate / 2) / rate`. The
//! phase as a signed number `p` gives the sample `(p * (2^31 - |p|)) >> 30`: two parabolas that look much like a sine, at
//! half of full scale, in 32 bits. A shorter format has the upper bits of it, an unsigned one the upmost bit turned, and a
//! floating one the upper 24 bits divided by 2^23.

use core::convert::Infallible;

use vringlet::sound::{Format, FrameSource, Layout};

/// Bytes made at a time, a whole number of samples of any length.
const CHUNK: usize = 3840;

/// The source of a tone without end.
pub(super) struct Tone {
    layout: Layout,
    step: u32,
    frame: u32,
    channel: u8,
    samples: [u8; CHUNK],
    done: usize,
    encode: fn(i32) -> Sample,
}

/// A sample as it is written, and how many bytes of it count.
type Sample = ([u8; 8], usize);

impl Tone {
    /// A tone of so many periods per second; `None` if the format is none for tones.
    pub(super) fn new(hz: u32, layout: Layout) -> Option<Self> {
        let rate = u64::from(layout.rate.hz());
        let step = ((u64::from(hz) << 32) + rate / 2) / rate;
        Some(Self {
            layout,
            // What is left out are whole turns.
            step: step as u32,
            frame: 0,
            channel: 0,
            samples: [0; CHUNK],
            done: CHUNK,
            encode: encoder(layout.format)?,
        })
    }

    fn next(&mut self) -> Sample {
        let factor = u32::from(self.channel) + 1;
        let phase = self.frame.wrapping_mul(factor).wrapping_mul(self.step);
        self.channel += 1;
        if self.channel >= self.layout.channels {
            self.channel = 0;
            self.frame = self.frame.wrapping_add(1);
        }
        (self.encode)(sample(phase))
    }

    fn fill(&mut self) {
        let mut at = 0;
        while at < CHUNK {
            let (bytes, len) = self.next();
            for (to, from) in self.samples.iter_mut().skip(at).take(len).zip(bytes) {
                *to = from;
            }
            at += len;
        }
        self.done = 0;
    }
}

impl FrameSource for Tone {
    type Error = Infallible;

    fn layout(&self) -> Layout {
        self.layout
    }

    async fn frames(&mut self) -> Result<&[u8], Infallible> {
        if self.done >= CHUNK {
            self.fill();
        }
        Ok(self.samples.get(self.done..).unwrap_or_default())
    }

    fn consume(&mut self, len: usize) {
        self.done = self.done.saturating_add(len).min(CHUNK);
    }
}

/// The sample of a phase.
fn sample(phase: u32) -> i32 {
    let p = i64::from(phase as i32);
    ((p * ((1 << 31) - p.abs())) >> 30) as i32
}

fn short(value: i32, bits: u32) -> i32 {
    value >> (32 - bits)
}

fn unsigned(value: i32, bits: u32) -> i32 {
    short(value, bits) + (1 << (bits - 1))
}

fn bytes<const N: usize>(value: i32) -> Sample {
    let [a, b, c, d] = value.to_le_bytes();
    ([a, b, c, d, 0, 0, 0, 0], N)
}

/// How a sample is written in a format, if that is a format for tones.
fn encoder(format: Format) -> Option<fn(i32) -> Sample> {
    Some(match format {
        Format::S8 => |it| bytes::<1>(short(it, 8)),
        Format::U8 => |it| bytes::<1>(unsigned(it, 8)),
        Format::S16 => |it| bytes::<2>(short(it, 16)),
        Format::U16 => |it| bytes::<2>(unsigned(it, 16)),
        Format::S18In3 => |it| bytes::<3>(short(it, 18)),
        Format::U18In3 => |it| bytes::<3>(unsigned(it, 18)),
        Format::S20In3 => |it| bytes::<3>(short(it, 20)),
        Format::U20In3 => |it| bytes::<3>(unsigned(it, 20)),
        Format::S24In3 => |it| bytes::<3>(short(it, 24)),
        Format::U24In3 => |it| bytes::<3>(unsigned(it, 24)),
        Format::S20 => |it| bytes::<4>(short(it, 20)),
        Format::U20 => |it| bytes::<4>(unsigned(it, 20)),
        Format::S24 => |it| bytes::<4>(short(it, 24)),
        Format::U24 => |it| bytes::<4>(unsigned(it, 24)),
        Format::S32 => |it| bytes::<4>(it),
        Format::U32 => |it| bytes::<4>(it ^ i32::MIN),
        // 24 bits are what a single holds exactly.
        Format::Float => |it| {
            let value = short(it, 24) as f32 / 8_388_608.0;
            bytes::<4>(value.to_bits() as i32)
        },
        Format::Float64 => |it| {
            let value = f64::from(short(it, 24)) / 8_388_608.0;
            (value.to_bits().to_le_bytes(), 8)
        },
        Format::ImaAdpcm
        | Format::MuLaw
        | Format::ALaw
        | Format::DsdU8
        | Format::DsdU16
        | Format::DsdU32
        | Format::Iec958Subframe => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use vringlet::sound::Rate;

    use super::*;

    fn tone(hz: u32, format: Format, channels: u8, len: usize) -> Vec<u8> {
        let layout = Layout {
            format,
            rate: Rate::Hz8000,
            channels,
        };
        let mut tone = Tone::new(hz, layout).expect("a format for tones");
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let frames = embassy_futures::block_on(tone.frames()).expect("a tone");
            // Not in the portions in which they are made.
            let count = frames.len().min(len - bytes.len()).min(1001);
            bytes.extend_from_slice(&frames[..count]);
            tone.consume(count);
        }
        bytes
    }

    #[test]
    fn a_turn_of_eight_frames_is_two_parabolas() {
        let words = |bytes: Vec<u8>| {
            let words = bytes
                .chunks(4)
                .map(|it| i32::from_le_bytes(it.try_into().unwrap()));
            words.collect::<Vec<_>>()
        };
        const HALF: i32 = 1 << 30;
        const SLOPE: i32 = HALF / 4 * 3;
        let turn = [0, SLOPE, HALF, SLOPE, 0, -SLOPE, -HALF, -SLOPE];
        assert_eq!(words(tone(1000, Format::S32, 1, 32)), turn);
        // The second channel goes twice as fast.
        let both = words(tone(1000, Format::S32, 2, 64));
        let second: Vec<_> = both.iter().skip(1).step_by(2).copied().collect();
        assert_eq!(second, [0, HALF, 0, -HALF, 0, HALF, 0, -HALF]);
    }

    #[test]
    fn formats_are_the_same_tone() {
        let long: Vec<i32> = tone(440, Format::S32, 1, 8000)
            .chunks(4)
            .map(|it| i32::from_le_bytes(it.try_into().unwrap()))
            .collect();
        let s16 = tone(440, Format::S16, 1, 4000);
        let u8 = tone(440, Format::U8, 1, 2000);
        let s24 = tone(440, Format::S24In3, 1, 6000);
        let float = tone(440, Format::Float, 1, 8000);
        for (index, value) in long.iter().enumerate() {
            let at = |bytes: &[u8], len: usize| bytes[index * len..(index + 1) * len].to_vec();
            assert_eq!(at(&s16, 2), value.to_le_bytes()[2..]);
            assert_eq!(at(&u8, 1), [(value >> 24) as u8 ^ 0x80]);
            assert_eq!(at(&s24, 3), value.to_le_bytes()[1..]);
            let float = f32::from_le_bytes(at(&float, 4).try_into().unwrap());
            assert_eq!((float * 8_388_608.0) as i32, value >> 8);
        }
    }
}
