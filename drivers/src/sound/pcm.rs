//! What a stream carries: [`Format`], [`Rate`], [`Direction`], and [`Params`], the choice of a driver.

use core::fmt;
use core::str::FromStr;

use crate::error::Cause;

/// Makes an enum of the specification whose values are bit numbers of a mask: names and a number of each.
macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident: $number:ty, $what:literal;
     $($(#[$variant_meta:meta])* $variant:ident = $value:literal, $text:literal, $of:literal;)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $value,)*
        }

        impl $name {
            /// All that the specification knows, in its order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its bit in a mask of them.
            pub const fn bit(self) -> u64 {
                1 << self as u8
            }

            const fn of(self) -> $number {
                match self {
                    $(Self::$variant => $of,)*
                }
            }

            const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.text())
            }
        }

        impl FromStr for $name {
            type Err = Cause;

            fn from_str(text: &str) -> Result<Self, Cause> {
                let same = |one: &&Self| one.text().eq_ignore_ascii_case(text);
                let found = Self::ALL.iter().find(same).copied();
                found.ok_or(Cause::InvalidParameter($what))
            }
        }
    };
}

numbered! {
    /// How a sample is written (VIRTIO_SND_PCM_FMT_...). Numbers are little-endian.
    Format: u8, "no such sample format";
    /// 4 bits.
    ImaAdpcm = 0, "ima_adpcm", 4;
    /// 8 bits, logarithmic.
    MuLaw = 1, "mu_law", 8;
    /// 8 bits, logarithmic.
    ALaw = 2, "a_law", 8;
    /// 8 bits, signed.
    S8 = 3, "s8", 8;
    /// 8 bits, unsigned.
    U8 = 4, "u8", 8;
    /// 16 bits, signed.
    S16 = 5, "s16", 16;
    /// 16 bits, unsigned.
    U16 = 6, "u16", 16;
    /// 18 bits of 24, signed.
    S18In3 = 7, "s18_3", 24;
    /// 18 bits of 24, unsigned.
    U18In3 = 8, "u18_3", 24;
    /// 20 bits of 24, signed.
    S20In3 = 9, "s20_3", 24;
    /// 20 bits of 24, unsigned.
    U20In3 = 10, "u20_3", 24;
    /// 24 bits, signed.
    S24In3 = 11, "s24_3", 24;
    /// 24 bits, unsigned.
    U24In3 = 12, "u24_3", 24;
    /// 20 bits of 32, signed.
    S20 = 13, "s20", 32;
    /// 20 bits of 32, unsigned.
    U20 = 14, "u20", 32;
    /// 24 bits of 32, signed.
    S24 = 15, "s24", 32;
    /// 24 bits of 32, unsigned.
    U24 = 16, "u24", 32;
    /// 32 bits, signed.
    S32 = 17, "s32", 32;
    /// 32 bits, unsigned.
    U32 = 18, "u32", 32;
    /// IEEE 754, single precision, full scale at 1.0.
    Float = 19, "float", 32;
    /// IEEE 754, double precision, full scale at 1.0.
    Float64 = 20, "float64", 64;
    /// 8 bits of direct stream digital.
    DsdU8 = 21, "dsd_u8", 8;
    /// 16 bits of direct stream digital.
    DsdU16 = 22, "dsd_u16", 16;
    /// 32 bits of direct stream digital.
    DsdU32 = 23, "dsd_u32", 32;
    /// A subframe of the digital audio interface.
    Iec958Subframe = 24, "iec958_subframe", 32;
}

impl Format {
    /// Bits that a sample takes.
    pub const fn bits(self) -> u32 {
        self.of() as u32
    }
}

numbered! {
    /// Frames per second (VIRTIO_SND_PCM_RATE_...).
    Rate: u32, "no such frame rate";
    /// 5512 Hz.
    Hz5512 = 0, "5512", 5512;
    /// 8 kHz.
    Hz8000 = 1, "8000", 8000;
    /// 11.025 kHz.
    Hz11025 = 2, "11025", 11025;
    /// 16 kHz.
    Hz16000 = 3, "16000", 16000;
    /// 22.05 kHz.
    Hz22050 = 4, "22050", 22050;
    /// 32 kHz.
    Hz32000 = 5, "32000", 32000;
    /// 44.1 kHz.
    Hz44100 = 6, "44100", 44100;
    /// 48 kHz.
    Hz48000 = 7, "48000", 48000;
    /// 64 kHz.
    Hz64000 = 8, "64000", 64000;
    /// 88.2 kHz.
    Hz88200 = 9, "88200", 88200;
    /// 96 kHz.
    Hz96000 = 10, "96000", 96000;
    /// 176.4 kHz.
    Hz176400 = 11, "176400", 176400;
    /// 192 kHz.
    Hz192000 = 12, "192000", 192000;
    /// 384 kHz.
    Hz384000 = 13, "384000", 384000;
    /// 12 kHz.
    Hz12000 = 14, "12000", 12000;
    /// 24 kHz.
    Hz24000 = 15, "24000", 24000;
}

impl Rate {
    /// Frames per second.
    pub const fn hz(self) -> u32 {
        self.of()
    }
}

/// Which way a stream flows (VIRTIO_SND_D_...).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the driver to the device: playback.
    Output,
    /// From the device to the driver: capture.
    Input,
}

impl Direction {
    pub(super) fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Output),
            1 => Some(Self::Input),
            _ => None,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Output => "output",
            Self::Input => "input",
        })
    }
}

/// What frames are: one sample per channel, interleaved, so many frames a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How a sample is written.
    pub format: Format,
    /// Frames per second.
    pub rate: Rate,
    /// Samples per frame.
    pub channels: u8,
}

impl Layout {
    /// Bits of a frame: whole bytes for all formats but [`Format::ImaAdpcm`].
    pub const fn frame_bits(&self) -> u32 {
        self.format.bits() * self.channels as u32
    }

    /// The bytes of the whole frames in so many bytes.
    pub(super) const fn whole_frames(&self, bytes: usize) -> usize {
        let bits = self.frame_bits() as usize;
        match bits.is_multiple_of(8) && bits > 0 {
            true => bytes - bytes % (bits / 8),
            false => bytes,
        }
    }

    /// Bytes of so many frames, if they end with a byte and there are not too many.
    pub fn bytes(&self, frames: u32) -> Option<u32> {
        let bits = u64::from(frames) * u64::from(self.frame_bits());
        if !bits.is_multiple_of(8) {
            return None;
        }
        u32::try_from(bits / 8).ok()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            format,
            rate,
            channels,
        } = self;
        write!(f, "{format} {rate} Hz {channels} channels")
    }
}

/// What a stream shall carry, and in which portions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    layout: Layout,
    period_bytes: u32,
    periods: u32,
}

impl Params {
    /// Frames of this layout in portions of `period_frames`, of which `periods` are with the device at a time: the more, the
    /// later the driver may come, and the later its samples are heard.
    ///
    /// # Errors
    ///
    /// [`Cause::InvalidParameter`]: no frames, no periods, no whole bytes, or 2 GiB and more.
    pub fn new(layout: Layout, period_frames: u32, periods: u32) -> Result<Self, Cause> {
        let bytes = layout.bytes(period_frames);
        let period_bytes = bytes.ok_or(Cause::InvalidParameter("period of no whole bytes"))?;
        if period_bytes == 0 || periods == 0 {
            return Err(Cause::InvalidParameter("no frames in a stream"));
        }
        match period_bytes.checked_mul(periods) {
            Some(total) if i32::try_from(total).is_ok() => {}
            _ => return Err(Cause::InvalidParameter("stream buffer of 2 GiB or more")),
        }
        Ok(Self {
            layout,
            period_bytes,
            periods,
        })
    }

    /// What the frames are.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes of a period.
    pub fn period_bytes(&self) -> u32 {
        self.period_bytes
    }

    /// Periods that are with the device at a time, at most.
    pub fn periods(&self) -> u32 {
        self.periods
    }

    /// Bytes of all periods.
    pub fn buffer_bytes(&self) -> u32 {
        // Less than 2 GiB, as `new` saw to.
        self.period_bytes * self.periods
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CD: Layout = Layout {
        format: Format::S16,
        rate: Rate::Hz44100,
        channels: 2,
    };

    #[test]
    fn names_and_numbers_go_both_ways() {
        for format in Format::ALL {
            assert_eq!(format.text().parse(), Ok(*format));
        }
        for (number, rate) in Rate::ALL.iter().enumerate() {
            assert_eq!(rate.text().parse(), Ok(*rate));
            assert_eq!(rate.text().parse(), Ok(rate.hz()));
            assert_eq!(rate.bit(), 1 << number);
        }
        assert_eq!("S24_3".parse(), Ok(Format::S24In3));
        assert!("s25".parse::<Format>().is_err());
        assert_eq!(Format::Iec958Subframe.bit(), 1 << 24);
    }

    #[test]
    fn params_are_whole_bytes_and_no_more_than_fit() {
        let params = Params::new(CD, 441, 4).expect("plain parameters");
        assert_eq!((params.period_bytes(), params.buffer_bytes()), (1764, 7056));
        let odd = Layout {
            format: Format::ImaAdpcm,
            channels: 1,
            ..CD
        };
        assert!(Params::new(odd, 3, 4).is_err());
        assert_eq!(Params::new(odd, 4, 4).map(|it| it.period_bytes()), Ok(2));
        assert!(Params::new(CD, 0, 4).is_err());
        assert!(Params::new(CD, 4, 0).is_err());
        assert!(Params::new(CD, u32::MAX, 1).is_err());
        assert!(Params::new(CD, 1 << 28, 2).is_err());
    }
}
