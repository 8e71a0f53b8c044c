//! JPEG files: which of their bytes are the picture, how much memory it takes to decode them, and what the samples mean.
//!
//! The decoder (`zune-jpeg`) gets a file that was checked segment by segment, without all that is no picture, and ends where the
//! picture ends. It takes memory in no way that could be refused, so it runs on a fiber, with a limit that follows from the
//! frame header. What it gives are samples as they were coded: it takes colors that Adobe's programs call RGB for CMYK.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use embassy_futures::yield_now;
use zune_core::bytestream::{ZByteIoError, ZByteReaderTrait, ZCursor, ZSeekFrom};
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{broken, room};
use crate::platform::time::{self, Instant};
use crate::runtime::fiber;

/// More pixels in a row or a column than this are refused: the decoder keeps rows in several forms.
const MAX_SIDE: u32 = 16384;
/// Scans of one picture: what programs write has twelve at most, and each costs as much as the picture is large.
const MAX_SCANS: usize = 64;
/// What the decoder takes whatever the picture is, and for each pixel of a row: measured, and rounded up.
const DECODER_BYTES: usize = 64 << 10;
const ROW_BYTES: usize = 256;
/// How long the decoder may take in all, and until others have their turn.
const MAX_TIME: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(10);
/// Reads between two looks at the clock.
const READS: u32 = 1024;

/// How the samples of a pixel become its color.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colors {
    /// There is one, how bright it is.
    Luma,
    /// Brightness and two differences, as JFIF has them.
    YCbCr,
    Rgb,
}

/// A JPEG file that was looked through.
pub(super) struct Jpeg {
    /// Its picture and no more.
    essential: Vec<u8>,
    frame: Frame,
    colors: Colors,
    /// How it is to be turned, as EXIF numbers it.
    orientation: u8,
}

/// What a frame header (SOF0 to SOF2) says.
struct Frame {
    width: u32,
    height: u32,
    components: Vec<Component>,
    progressive: bool,
}

/// One sample of each pixel, or of several pixels: the factors say in what proportion to the other components.
#[derive(Clone, Copy, Debug)]
struct Component {
    id: u8,
    across: usize,
    down: usize,
}

/// What stands behind 0xff and says what follows (ITU-T T.81, table B.1).
mod marker {
    pub(super) const SOF_BASELINE: u8 = 0xc0;
    pub(super) const SOF_PROGRESSIVE: u8 = 0xc2;
    pub(super) const SOF_LOSSLESS: u8 = 0xc3;
    pub(super) const DHT: u8 = 0xc4;
    pub(super) const SOF_LAST: u8 = 0xcf;
    pub(super) const RST_FIRST: u8 = 0xd0;
    pub(super) const RST_LAST: u8 = 0xd7;
    pub(super) const EOI: u8 = 0xd9;
    pub(super) const SOS: u8 = 0xda;
    pub(super) const DQT: u8 = 0xdb;
    pub(super) const DNL: u8 = 0xdc;
    pub(super) const DRI: u8 = 0xdd;
    pub(super) const APP0: u8 = 0xe0;
    pub(super) const APP1: u8 = 0xe1;
    pub(super) const APP14: u8 = 0xee;
    pub(super) const APP_LAST: u8 = 0xef;
    pub(super) const COM: u8 = 0xfe;
}

/// Bytes of a marker.
const MARKER_LEN: usize = 2;
/// What is read by name, and not shown.
const OTHER_CODING: &str =
    "is a JPEG file that is lossless, hierarchical or in arithmetic coding, which is not shown";
const APART: &str = "is a JPEG file that has its colors one after the other, which is not shown";
const NO_HEIGHT: &str =
    "is a JPEG file that tells its height behind the picture, which is not shown";

/// What a file begins with (SOI), and the first byte of the next marker.
pub(super) const START: [u8; 3] = [0xff, 0xd8, 0xff];

impl Jpeg {
    /// Looks through a file.
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        // And four bytes behind the end, since the decoder takes a file that ends at once for one that is cut off.
        let mut essential = room(file.len() + 4)?;
        essential.extend_from_slice(&START[..2]);
        let mut rest = file.get(2..).unwrap_or_default();
        let (mut jfif, mut adobe, mut orientation) = (false, None, 1);
        let (mut frame, mut scans, mut whole_scans) = (None, 0, 0);
        loop {
            let (code, after) = next_marker(rest).ok_or_else(|| broken("cut off"))?;
            if code == marker::EOI {
                break;
            }
            let (segment, next) = segment(after).ok_or_else(|| broken("cut off"))?;
            let content = segment.get(2..).unwrap_or_default();
            rest = next;
            let mut keep = false;
            match code {
                marker::DHT | marker::DQT | marker::DRI => keep = true,
                marker::SOF_BASELINE..=marker::SOF_PROGRESSIVE => {
                    if frame.is_some() {
                        return Err(broken("two frame headers"));
                    }
                    frame = Some(Frame::read(code, content)?);
                    keep = true;
                }
                marker::SOF_LOSSLESS..=marker::SOF_LAST => return Err(OTHER_CODING.into()),
                marker::DNL => return Err(NO_HEIGHT.into()),
                marker::SOS => {
                    let frame: &Frame = frame.as_ref().ok_or_else(|| broken("no frame header"))?;
                    scans += 1;
                    if scans > MAX_SCANS {
                        return Err(broken("too many scans"));
                    }
                    let count = content.first().copied().map_or(0, usize::from);
                    whole_scans += usize::from(count == frame.components.len());
                    keep = true;
                }
                marker::APP0 => jfif |= content.starts_with(b"JFIF\0"),
                marker::APP1 => {
                    let exif = content.strip_prefix(b"Exif\0\0");
                    orientation = exif.and_then(exif_orientation).unwrap_or(orientation);
                }
                marker::APP14 => {
                    let fields = content.strip_prefix(b"Adobe");
                    adobe = fields.and_then(|fields| fields.get(6).copied()).or(adobe);
                }
                marker::APP0..=marker::APP_LAST | marker::COM => {}
                code => return Err(broken(format_args!("marker {code:#04x}"))),
            }
            if keep {
                essential.extend_from_slice(&[0xff, code]);
                essential.extend_from_slice(segment);
            }
            if code == marker::SOS {
                // The coded samples go on to the next marker that is none of theirs.
                let (_, after) = next_marker(rest).ok_or_else(|| broken("cut off"))?;
                let len = rest.len() - after.len() - MARKER_LEN;
                let (samples, next) = rest.split_at_checked(len).unwrap_or_default();
                essential.extend_from_slice(samples);
                rest = next;
            }
        }
        essential.extend_from_slice(&[0xff, marker::EOI, 0, 0]);
        let frame = frame.filter(|_| scans > 0);
        let frame = frame.ok_or_else(|| broken("no picture in it"))?;
        let colors = frame.colors(jfif, adobe)?;
        if !frame.progressive && (scans, whole_scans) != (1, 1) {
            return Err(APART.into());
        }
        Ok(Self {
            essential,
            frame,
            colors,
            orientation,
        })
    }

    /// Width and height as it is shown.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        let Frame { width, height, .. } = self.frame;
        match self.orientation {
            // On its side.
            5..=8 => (height, width),
            _ => (width, height),
        }
    }

    /// Decodes it. Gives the samples of each pixel, row by row.
    pub(super) async fn decode(&mut self) -> Result<Vec<u8>, String> {
        let count = self.frame.width as usize * self.frame.height as usize;
        let mut samples = room(count * self.frame.components.len())?;
        samples.resize(count * self.frame.components.len(), 0);
        let taken = self.decoder_bytes();
        drop(room::<u8>(taken)?);
        let essential = core::mem::take(&mut self.essential);
        let fiber = fiber::run(taken, move || {
            let mut turns = Turns::new();
            decode(essential, &mut samples, || turns.goes_on()).map(|()| samples)
        });
        let fiber = fiber.map_err(|fiber::NoStack| "can't be decoded: no memory for a stack")?;
        match fiber.await {
            Ok(decoded) => decoded,
            Err(fiber::Failed) => Err(broken("the decoder failed")),
        }
    }

    /// The most bytes that the decoder takes, beside the file and the samples that it gives.
    fn decoder_bytes(&self) -> usize {
        let Frame {
            width,
            height,
            components,
            progressive,
        } = &self.frame;
        let largest = |of: fn(&Component) -> usize| components.iter().map(of).max().unwrap_or(1);
        let (across, down) = (largest(|it| it.across), largest(|it| it.down));
        let units_across = (*width as usize).div_ceil(8 * across);
        let units_down = (*height as usize).div_ceil(8 * down);
        let blocks: usize = components.iter().map(|it| it.across * it.down).sum();
        // What comes in several scans is kept in whole, each sample as two bytes.
        let kept = match progressive {
            false => 0,
            true => units_across * units_down * blocks * 64 * 2,
        };
        DECODER_BYTES + kept + units_across * 8 * across * ROW_BYTES
    }

    /// The pixels that decoded samples mean, row by row as they are shown.
    pub(super) fn pixels(&self, samples: &[u8]) -> impl Iterator<Item = u32> {
        let (width, height) = self.dimensions();
        let (columns, rows) = (self.frame.width as usize, self.frame.height as usize);
        let (last_column, last_row) = (columns.saturating_sub(1), rows.saturating_sub(1));
        let places =
            (0..height as usize).flat_map(move |y| (0..width as usize).map(move |x| (x, y)));
        let orientation = self.orientation;
        let colors = self.colors;
        places.map(move |(x, y)| {
            // Where in the file the pixel is that is shown here (EXIF 2.32, table 6 "Orientation").
            let (column, row) = match orientation {
                2 => (last_column - x, y),
                3 => (last_column - x, last_row - y),
                4 => (x, last_row - y),
                5 => (y, x),
                6 => (y, last_row - x),
                7 => (last_column - y, last_row - x),
                8 => (last_column - y, x),
                _ => (x, y),
            };
            colors.pixel(samples, row * columns + column)
        })
    }
}

impl Frame {
    fn read(code: u8, content: &[u8]) -> Result<Self, String> {
        let header = content.split_first_chunk::<6>();
        let (header, rest) = header.ok_or_else(|| broken("frame header"))?;
        let [depth, high, low, left, right, count] = header.map(u32::from);
        let (width, height) = (left << 8 | right, high << 8 | low);
        if depth != 8 {
            return Err(alloc::format!(
                "is a JPEG file with {depth} bits a sample; 8 are shown"
            ));
        }
        if height == 0 {
            return Err(NO_HEIGHT.into());
        }
        if width > MAX_SIDE || height > MAX_SIDE {
            return Err(alloc::format!(
                "has {width} x {height} pixels; no more than {MAX_SIDE} in a row or column are shown"
            ));
        }
        let (components, rest) = rest.as_chunks::<3>();
        if components.len() != count as usize || !rest.is_empty() {
            return Err(broken("frame header"));
        }
        let components = components.iter().map(|[id, sampling, _]| Component {
            id: *id,
            across: usize::from(sampling >> 4),
            down: usize::from(sampling & 15),
        });
        let frame = Self {
            width,
            height,
            components: components.collect(),
            progressive: code == marker::SOF_PROGRESSIVE,
        };
        match &*frame.components {
            // The only one is whole, whatever its factors.
            [_] => Ok(frame),
            [first, others @ ..] if others.len() == 2 => {
                let whole = |it: &Component| it.across == 1 && it.down == 1;
                let known = [(1, 1), (2, 1), (1, 2), (2, 2)];
                match known.contains(&(first.across, first.down)) && others.iter().all(whole) {
                    true => Ok(frame),
                    false => Err(
                        "is a JPEG file with colors in a rare resolution, which is not shown"
                            .into(),
                    ),
                }
            }
            [_, _, _, _] => {
                Err("is a JPEG file in the colors of a printer (CMYK), which is not shown".into())
            }
            others => Err(alloc::format!(
                "is a JPEG file of {} components; 1 and 3 are shown",
                others.len()
            )),
        }
    }

    /// What three components are, by JFIF's header and Adobe's, or by what they are called, as libjpeg does it.
    fn colors(&self, jfif: bool, adobe: Option<u8>) -> Result<Colors, String> {
        if self.components.len() == 1 {
            return Ok(Colors::Luma);
        }
        let names = self.components.iter().map(|it| it.id);
        match adobe.filter(|_| !jfif) {
            Some(0) => Ok(Colors::Rgb),
            // libjpeg takes it for that, too.
            Some(_) => Ok(Colors::YCbCr),
            None if !jfif && names.eq(*b"RGB") => Ok(Colors::Rgb),
            None => Ok(Colors::YCbCr),
        }
    }
}

impl Colors {
    /// The color of a pixel, of which these are the samples of all.
    fn pixel(self, samples: &[u8], index: usize) -> u32 {
        let sample = |at| i32::from(samples.get(at).copied().unwrap_or_default());
        let [red, green, blue] = match self {
            Self::Luma => [sample(index); 3],
            Self::Rgb => [0, 1, 2].map(|number| sample(3 * index + number)),
            Self::YCbCr => {
                let [y, cb, cr] = [0, 1, 2].map(|number| sample(3 * index + number));
                rgb(y, cb - 128, cr - 128)
            }
        };
        let [red, green, blue] = [red, green, blue].map(|it| it.clamp(0, 255) as u32);
        red << 16 | green << 8 | blue
    }
}

/// Red, green and blue of brightness and differences (ITU-T T.871, 7), which may lie outside of what can be shown. The factors
/// are in 65536ths.
fn rgb(y: i32, cb: i32, cr: i32) -> [i32; 3] {
    let rounded = |difference: i32| y + ((difference + 32768) >> 16);
    [
        rounded(91881 * cr),
        rounded(-22554 * cb - 46802 * cr),
        rounded(116130 * cb),
    ]
}

/// Has the decoder decode a file that was looked through into room for its samples. It asks now and then whether it shall go on.
fn decode(
    essential: Vec<u8>,
    samples: &mut [u8],
    goes_on: impl FnMut() -> bool,
) -> Result<(), String> {
    let input = Input {
        cursor: ZCursor::new(essential),
        reads: 0,
        goes_on,
        ended: false,
    };
    // What is missing or wrong is an error, and not gray.
    let options = DecoderOptions::default().set_strict_mode(true);
    let options = options.jpeg_set_max_scans(MAX_SCANS);
    let mut decoder = JpegDecoder::new_with_options(input, options);
    decoder.decode_headers().map_err(broken)?;
    // As they were coded.
    let colors = decoder.input_colorspace();
    let colors = colors.ok_or_else(|| broken("no header"))?;
    decoder.set_options(options.jpeg_set_out_colorspace(colors));
    if decoder.output_buffer_size() != Some(samples.len()) {
        return Err(broken("other components than its header has"));
    }
    decoder.decode_into(samples).map_err(broken)
}

/// Who decodes lets others have their turn, and does not take for ever.
struct Turns {
    start: Instant,
    turn: Instant,
}

impl Turns {
    fn new() -> Self {
        let start = time::now();
        Self { start, turn: start }
    }

    fn goes_on(&mut self) -> bool {
        if self.turn.elapsed() < TURN {
            return true;
        }
        // Whoever wanted the picture may be gone.
        let waited = fiber::wait(yield_now());
        self.turn = time::now();
        waited.is_ok() && self.start.elapsed() < MAX_TIME
    }
}

/// The bytes of a file as the decoder takes them, until it shall not go on: from then on there are none.
struct Input<G> {
    cursor: ZCursor<Vec<u8>>,
    reads: u32,
    goes_on: G,
    ended: bool,
}

impl<G: FnMut() -> bool> Input<G> {
    fn is_over(&mut self) -> bool {
        self.reads = self.reads.wrapping_add(1);
        if self.reads.is_multiple_of(READS) && !self.ended {
            self.ended = !(self.goes_on)();
        }
        self.ended
    }

    fn check(&mut self) -> Result<(), ZByteIoError> {
        match self.is_over() {
            false => Ok(()),
            true => Err(ZByteIoError::Generic("broken off, or takes too long")),
        }
    }
}

impl<G: FnMut() -> bool> ZByteReaderTrait for Input<G> {
    fn read_byte_no_error(&mut self) -> u8 {
        match self.is_over() {
            false => self.cursor.read_byte_no_error(),
            true => 0,
        }
    }

    fn read_exact_bytes(&mut self, buf: &mut [u8]) -> Result<(), ZByteIoError> {
        self.check()?;
        self.cursor.read_exact_bytes(buf)
    }

    fn read_bytes(&mut self, buf: &mut [u8]) -> Result<usize, ZByteIoError> {
        self.check()?;
        self.cursor.read_bytes(buf)
    }

    fn peek_bytes(&mut self, buf: &mut [u8]) -> Result<usize, ZByteIoError> {
        self.check()?;
        self.cursor.peek_bytes(buf)
    }

    fn peek_exact_bytes(&mut self, buf: &mut [u8]) -> Result<(), ZByteIoError> {
        self.check()?;
        self.cursor.peek_exact_bytes(buf)
    }

    fn z_seek(&mut self, from: ZSeekFrom) -> Result<u64, ZByteIoError> {
        self.check()?;
        self.cursor.z_seek(from)
    }

    fn is_eof(&mut self) -> Result<bool, ZByteIoError> {
        self.check()?;
        self.cursor.is_eof()
    }

    fn z_position(&mut self) -> Result<u64, ZByteIoError> {
        self.check()?;
        self.cursor.z_position()
    }

    fn read_remaining(&mut self, sink: &mut Vec<u8>) -> Result<usize, ZByteIoError> {
        self.check()?;
        self.cursor.read_remaining(sink)
    }
}

/// The next marker that belongs to no scan, and what is behind it. Whatever stands before it is passed over.
fn next_marker(mut bytes: &[u8]) -> Option<(u8, &[u8])> {
    loop {
        let at = bytes.iter().position(|byte| *byte == 0xff)?;
        bytes = bytes.get(at + 1..)?;
        match bytes.split_first()? {
            // A coded 0xff, where a scan restarts, and one of several before a marker.
            (0 | marker::RST_FIRST..=marker::RST_LAST | 0xff, _) => {}
            (code, after) => return Some((*code, after)),
        }
    }
}

/// A segment with its length in front, and what is behind it.
fn segment(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u16::from_be_bytes(*bytes.first_chunk()?);
    bytes.split_at_checked(len.into()).filter(|_| len >= 2)
}

/// How a picture is to be turned, in the first directory of what EXIF says.
fn exif_orientation(exif: &[u8]) -> Option<u8> {
    const TAG: u16 = 0x112;
    const SHORT: u16 = 3;
    let little = match exif.first_chunk()? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes = *exif.get(at..)?.first_chunk()?;
        Some(if little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    };
    let long = |at: usize| {
        let bytes = *exif.get(at..)?.first_chunk()?;
        Some(if little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
    };
    let directory = long(4)? as usize;
    let count = usize::from(short(directory)?);
    let mut entries = (0..count).map(|number| directory + 2 + 12 * number);
    let entry = entries.find(|at| short(*at) == Some(TAG))?;
    let value = short(entry + 8).filter(|_| short(entry + 2) == Some(SHORT))?;
    u8::try_from(value)
        .ok()
        .filter(|value| (1..=8).contains(value))
}

#[cfg(test)]
mod tests;
