//! Sound in files: RIFF WAVE, as source and as sink of frames.
//!
//! Read are RIFF, RIFX (numbers and samples with the upper byte first), and RF64 and BW64 (more than 4 GiB). A file that was
//! written as it came to be, and does not say how many frames it has, is played to its end.
//!
//! Read are numbers of 8, 16, 24 and 32 bits, floating ones of 32 and 64, A-law and mu-law. What a card has no format for
//! is not played, but for 24 bits, which lose nothing as the upper ones of 32.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;

use sha2::{Digest, Sha256};
use vringlet::sound::{Format, FrameSink, FrameSource, Layout, Rate, StreamInfo};

use crate::apps::files::{Error, File, NewFile, PIECE};

/// Format tags of the `fmt ` chunk.
const PCM: u16 = 1;
const FLOAT: u16 = 3;
const A_LAW: u16 = 6;
const MU_LAW: u16 = 7;
/// The tag is at the start of a GUID further on.
const EXTENSIBLE: u16 = 0xfffe;
/// Where, in bytes from the start of the chunk.
const SUBFORMAT: usize = 24;
/// The longest `fmt ` chunk that makes sense.
const MAX_FORMAT_BYTES: u32 = 1024;
/// Bytes of the header that is written: everything before the frames.
const HEADER_LEN: u32 = 44;
/// Chunks that are looked at for the one with the frames.
const MAX_CHUNKS: usize = 100;
const TOO_SHORT: &str = "is broken: it ends too early";
/// Instead of a length: it is in the chunk `ds64`, or nobody knew it.
const NO_LENGTH: u32 = u32::MAX;
/// The longest `ds64` chunk that is believed.
const MAX_LENGTHS_BYTES: u32 = 4096;
/// Where that chunk has lengths of chunks other than `data`, and how long such an entry is.
const LENGTHS_TABLE: usize = 28;
const LENGTHS_ENTRY: usize = 12;
/// Names of chunks that files have in front of their frames.
const NAMES: [&[u8; 4]; 14] = [
    b"data", b"fmt ", b"fact", b"LIST", b"JUNK", b"junk", b"PAD ", b"bext", b"iXML", b"PEAK",
    b"cue ", b"smpl", b"inst", b"id3 ",
];

/// Which byte of a number comes first in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// RIFF: the lowest.
    Little,
    /// RIFX: the uppermost.
    Big,
}

impl Order {
    /// The number at this place, of two bytes.
    fn short(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        })
    }

    /// The number at this place, of four bytes.
    fn long(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        })
    }
}

/// A file on its way to a card.
pub(super) struct WavSource<P = File> {
    reader: Reader<P>,
    layout: Layout,
    order: Order,
    /// 24 bits are made 32.
    widened: bool,
    /// Bytes of frames that were not read yet; more than there are, if the file does not say.
    left: u64,
    /// Frames as the card wants them, and how much of them is used up.
    frames: Vec<u8>,
    used: usize,
}

impl<P: Pieces> WavSource<P> {
    /// Reads the header of a file whose frames are for this stream. Errors don't say which file it is.
    ///
    /// # Errors
    ///
    /// The file can't be read, is no such file, or the stream can't play what is in it.
    pub(super) async fn open(file: P, stream: &StreamInfo) -> Result<Self, String> {
        let mut reader = Reader {
            file,
            bytes: Vec::new(),
            used: 0,
        };
        let riff = reader.take(12).await?;
        let order = match riff.first_chunk() {
            Some(b"RIFF" | b"RF64" | b"BW64") => Order::Little,
            Some(b"RIFX") => Order::Big,
            _ => return Err("is no wav file".into()),
        };
        if !riff.ends_with(b"WAVE") {
            return Err("is no wav file".into());
        }
        let whole = order.long(&riff, 4).unwrap_or(0);
        let mut layout = None;
        let mut lengths = Vec::new();
        let mut chunks = 0;
        let left = loop {
            chunks += 1;
            if chunks > MAX_CHUNKS {
                return Err("is broken: many chunks, and no frames".into());
            }
            let chunk = reader.take(8).await?;
            let name = chunk.first_chunk::<4>().ok_or(TOO_SHORT)?;
            let len = order.long(&chunk, 4).ok_or(TOO_SHORT)?;
            match name {
                b"data" => break data_len(len, whole, &lengths),
                b"fmt " if len <= MAX_FORMAT_BYTES => {
                    layout = Some(parse(&reader.take(len as usize).await?, order)?);
                }
                b"ds64" if len <= MAX_LENGTHS_BYTES => {
                    lengths = reader.take(len as usize).await?;
                }
                _ => reader.skip(chunk_len(name, len, &lengths)).await?,
            }
            if len % 2 == 1 {
                reader.skip_padding().await?;
            }
        };
        let layout = layout.ok_or("does not say what its frames are")?;
        let (layout, widened) = fit(layout, stream)?;
        Ok(Self {
            reader,
            layout,
            order,
            widened,
            left,
            frames: Vec::new(),
            used: 0,
        })
    }

    /// Frames in the file, if it says how many; at most as many as it has room for.
    pub(super) fn frame_count(&self) -> u64 {
        let bytes = self.left.min(self.reader.file.size());
        bytes / self.frame_len() as u64
    }

    /// Bytes of a sample in the file.
    fn sample_len(&self) -> usize {
        let bits = match self.widened {
            true => Format::S24In3.bits(),
            false => self.layout.format.bits(),
        };
        bits as usize / 8
    }

    /// Bytes of a frame in the file: one at least.
    fn frame_len(&self) -> usize {
        (self.sample_len() * usize::from(self.layout.channels)).max(1)
    }
}

/// How many bytes of frames there are, by what a `data` chunk, the file as a whole and a `ds64` chunk say.
fn data_len(len: u32, whole: u32, lengths: &[u8]) -> u64 {
    match len {
        NO_LENGTH => match quad(lengths, 8) {
            // Who writes to a pipe can't come back and say it.
            None | Some(0) => u64::MAX,
            Some(len) => len,
        },
        // Likewise, unless the file has a length of its own: then it has no frames.
        0 if whole == 0 || whole == NO_LENGTH => u64::MAX,
        len => len.into(),
    }
}

/// How long a chunk is that has no frames.
fn chunk_len(name: &[u8; 4], len: u32, lengths: &[u8]) -> u64 {
    let entries = lengths.get(LENGTHS_TABLE..).unwrap_or_default();
    let mut entries = entries.chunks_exact(LENGTHS_ENTRY);
    let known = entries.find(|entry| len == NO_LENGTH && entry.starts_with(name));
    known.and_then(|entry| quad(entry, 4)).unwrap_or(len.into())
}

fn quad(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What the card is given: frames as they are in the file, or, if it has no 24 bits, with 32 bits.
fn fit(layout: Layout, stream: &StreamInfo) -> Result<(Layout, bool), String> {
    let Layout { format, rate, .. } = layout;
    let offers = |wanted| stream.formats().any(|offered| offered == wanted);
    if !stream.rates().any(|offered| offered == rate) {
        return Err(format!(
            "has {rate} frames a second; the card can't play that"
        ));
    }
    if offers(format) {
        return Ok((layout, false));
    }
    let wide = Format::S32;
    if format == Format::S24In3 && offers(wide) {
        let layout = Layout {
            format: wide,
            ..layout
        };
        return Ok((layout, true));
    }
    Err(format!(
        "has samples of {format}; the card can't play those"
    ))
}

/// What a `fmt ` chunk says.
fn parse(chunk: &[u8], order: Order) -> Result<Layout, String> {
    let number = |at| order.short(chunk, at);
    let wide = |at| order.long(chunk, at);
    let fields = || Some((number(0)?, number(2)?, wide(4)?, number(12)?, number(14)?));
    let (tag, channels, hz, frame_len, bits) = fields().ok_or(TOO_SHORT)?;
    let tag = match tag {
        EXTENSIBLE => number(SUBFORMAT).ok_or(TOO_SHORT)?,
        tag => tag,
    };
    // Fewer bits than whole bytes are the upper ones of the whole bytes.
    let format = match (tag, bits.checked_next_multiple_of(8).unwrap_or(0)) {
        (PCM, 8) => Format::U8,
        (PCM, 16) => Format::S16,
        (PCM, 24) => Format::S24In3,
        (PCM, 32) => Format::S32,
        (FLOAT, 32) => Format::Float,
        (FLOAT, 64) => Format::Float64,
        (A_LAW, 8) => Format::ALaw,
        (MU_LAW, 8) => Format::MuLaw,
        _ => {
            return Err(format!(
                "has samples of {bits} bits in format {tag:#x}, which is not known"
            ));
        }
    };
    let mut rates = Rate::ALL.iter();
    let rate = rates.find(|rate| rate.hz() == hz);
    let rate = rate.ok_or_else(|| format!("has {hz} frames a second, which no card can play"))?;
    let channels = u8::try_from(channels).unwrap_or(0);
    let layout = Layout {
        format,
        rate: *rate,
        channels,
    };
    match channels > 0 && layout.frame_bits() == 8 * u32::from(frame_len) {
        true => Ok(layout),
        false => Err("is broken: frames are not of the length that their samples have".into()),
    }
}

/// Samples of 24 bits as the upper ones of 32.
fn widen(samples: &[u8]) -> Vec<u8> {
    let samples = samples.as_chunks::<3>().0.iter();
    samples.flat_map(|[a, b, c]| [0, *a, *b, *c]).collect()
}

/// Samples of so many bytes, each the other way round.
fn turn(samples: &mut [u8], sample_len: usize) {
    for sample in samples.chunks_exact_mut(sample_len.max(1)) {
        sample.reverse();
    }
}

impl<P: Pieces> FrameSource for WavSource<P> {
    type Error = String;

    fn layout(&self) -> Layout {
        self.layout
    }

    // A future that is dropped loses nothing: bytes are used up when all that are wanted are there.
    async fn frames(&mut self) -> Result<&[u8], String> {
        if self.used >= self.frames.len() {
            let frame = self.frame_len();
            let most = usize::try_from(self.left).unwrap_or(usize::MAX);
            let wanted = (PIECE / frame * frame).max(frame).min(most);
            let mut bytes = self.reader.take_some(wanted).await?;
            bytes.truncate(bytes.len() / frame * frame);
            self.left = self.left.saturating_sub(bytes.len() as u64);
            if self.order == Order::Big {
                turn(&mut bytes, self.sample_len());
            }
            self.frames = match self.widened {
                true => widen(&bytes),
                false => bytes,
            };
            self.used = 0;
        }
        Ok(self.frames.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, len: usize) {
        self.used = self.used.saturating_add(len).min(self.frames.len());
    }
}

/// Where the bytes of a file come from, one piece after the other.
pub(super) trait Pieces {
    /// The next piece; nothing at the end.
    async fn next(&mut self) -> Result<Vec<u8>, String>;

    /// Bytes of the whole file.
    fn size(&self) -> u64;
}

impl Pieces for File {
    async fn next(&mut self) -> Result<Vec<u8>, String> {
        let piece = self.read(PIECE).await;
        piece.map_err(|error| format!("{error}"))
    }

    fn size(&self) -> u64 {
        File::size(self)
    }
}

/// A file, some bytes ahead.
struct Reader<P> {
    file: P,
    bytes: Vec<u8>,
    used: usize,
}

impl<P: Pieces> Reader<P> {
    /// Reads ahead until there are `len` bytes, or the file ends, and shows them.
    async fn peek(&mut self, len: usize) -> Result<&[u8], String> {
        while self.bytes.len() - self.used < len {
            let more = self.file.next().await?;
            if more.is_empty() {
                break;
            }
            self.bytes.drain(..self.used);
            self.used = 0;
            self.bytes.extend_from_slice(&more);
        }
        Ok(self.bytes.get(self.used..).unwrap_or_default())
    }

    /// The next bytes: `len`, or fewer where the file ends.
    async fn take_some(&mut self, len: usize) -> Result<Vec<u8>, String> {
        self.peek(len).await?;
        let end = self.bytes.len().min(self.used.saturating_add(len));
        let taken = self.bytes.get(self.used..end).unwrap_or_default().to_vec();
        self.used = end;
        Ok(taken)
    }

    /// The next `len` bytes.
    async fn take(&mut self, len: usize) -> Result<Vec<u8>, String> {
        let taken = self.take_some(len).await?;
        match taken.len() == len {
            true => Ok(taken),
            false => Err(TOO_SHORT.into()),
        }
    }

    /// Skips the byte that does not count behind a chunk of odd length. Not all who write files know of it.
    async fn skip_padding(&mut self) -> Result<(), String> {
        let next = self.peek(5).await?;
        let is_known = |at: usize| {
            let name = next.get(at..).and_then(<[u8]>::first_chunk);
            name.is_some_and(|name| NAMES.contains(&name))
        };
        // It is 0 as a rule, and no name begins with that.
        let is_missing = next.first() != Some(&0) && is_known(0) && !is_known(1);
        if !is_missing {
            self.used += next.len().min(1);
        }
        Ok(())
    }

    async fn skip(&mut self, mut len: u64) -> Result<(), String> {
        while len > 0 {
            let piece = len.min(PIECE as u64);
            self.take(piece as usize).await?;
            len -= piece;
        }
        Ok(())
    }
}

/// A file that is recorded. When it is dropped before its end, it has all the same what was recorded.
pub(super) struct WavSink {
    /// Not there after it was ended.
    file: Option<NewFile>,
    layout: Layout,
    space: Vec<u8>,
    used: usize,
    hash: Sha256,
}

impl WavSink {
    /// Begins a file with a header.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub(super) async fn new(file: NewFile, layout: Layout, header: Vec<u8>) -> Result<Self, Error> {
        let mut sink = Self {
            file: Some(file),
            layout,
            space: alloc::vec![0; PIECE],
            used: 0,
            hash: Sha256::new(),
        };
        sink.write(header).await?;
        Ok(sink)
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        match &mut self.file {
            Some(file) => file.write(bytes).await,
            None => Ok(()),
        }
    }

    /// The frames that are not in the file yet.
    fn take_frames(&mut self) -> Vec<u8> {
        let frames = self.space.get(..self.used).unwrap_or_default().to_vec();
        self.used = 0;
        self.hash.update(&frames);
        frames
    }

    /// Ends the file with what it has, and a header that says how much that is.
    fn finish(&mut self) -> Option<impl Future<Output = Result<(), Error>> + use<>> {
        let file = self.file.take()?;
        let (frames, layout) = (self.take_frames(), self.layout);
        Some(file.finish(frames, move |len| header_for(layout, len)))
    }

    /// Ends the file with what it has. Gives the hash of the frames.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub(super) async fn close(mut self) -> Result<[u8; 32], Error> {
        if let Some(finishing) = self.finish() {
            finishing.await?;
        }
        Ok(self.hash.clone().finalize().into())
    }
}

impl Drop for WavSink {
    fn drop(&mut self) {
        drop(self.finish());
    }
}

/// The header of a file of so many bytes altogether. A frame that is not whole does not count.
fn header_for(layout: Layout, len: u64) -> Option<Vec<u8>> {
    let frame = u64::from(layout.frame_bits() / 8).max(1);
    let frames = len.saturating_sub(HEADER_LEN.into()) / frame;
    header(layout, frames * frame).ok()
}

/// The header of a file with so many bytes of frames.
///
/// # Errors
///
/// No such file has these frames, or so many of them.
pub(super) fn header(layout: Layout, bytes: u64) -> Result<Vec<u8>, String> {
    let tag = match layout.format {
        Format::U8 | Format::S16 | Format::S24In3 | Format::S32 => PCM,
        Format::Float | Format::Float64 => FLOAT,
        Format::ALaw => A_LAW,
        Format::MuLaw => MU_LAW,
        other => return Err(format!("no wav file has samples of {other}")),
    };
    let len = u32::try_from(bytes)
        .ok()
        .filter(|len| *len < u32::MAX - HEADER_LEN);
    let len = len.ok_or("no wav file is longer than 4 GiB")?;
    let bits = layout.format.bits();
    let frame = layout.frame_bits() / 8;
    let mut header = Vec::from(*b"RIFF");
    header.extend((HEADER_LEN - 8 + len).to_le_bytes());
    header.extend(b"WAVEfmt ");
    header.extend(16u32.to_le_bytes());
    header.extend(tag.to_le_bytes());
    header.extend(u16::from(layout.channels).to_le_bytes());
    header.extend(layout.rate.hz().to_le_bytes());
    header.extend((layout.rate.hz() * frame).to_le_bytes());
    header.extend((frame as u16).to_le_bytes());
    header.extend((bits as u16).to_le_bytes());
    header.extend(b"data");
    header.extend(len.to_le_bytes());
    Ok(header)
}

impl FrameSink for WavSink {
    type Error = Error;

    fn layout(&self) -> Layout {
        self.layout
    }

    async fn space(&mut self) -> Result<&mut [u8], Error> {
        if self.used >= self.space.len() {
            self.flush().await?;
        }
        Ok(self.space.get_mut(self.used..).unwrap_or_default())
    }

    fn commit(&mut self, len: usize) {
        self.used = self.used.saturating_add(len).min(self.space.len());
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let frames = self.take_frames();
        self.write(frames).await
    }
}

#[cfg(test)]
mod tests {
    use embassy_futures::block_on;
    use vringlet::sound::Direction;

    use super::*;

    fn layout(format: Format, channels: u8) -> Layout {
        Layout {
            format,
            rate: Rate::Hz44100,
            channels,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for format in [
            Format::U8,
            Format::S16,
            Format::S24In3,
            Format::S32,
            Format::Float,
            Format::Float64,
            Format::ALaw,
            Format::MuLaw,
        ] {
            for channels in [1, 2, 6] {
                let layout = layout(format, channels);
                let header = header(layout, 480).unwrap();
                assert_eq!(header.len(), HEADER_LEN as usize);
                assert_eq!(header[4..8], (36 + 480u32).to_le_bytes());
                assert_eq!(parse(&header[20..36], Order::Little), Ok(layout));
            }
        }
        assert!(header(layout(Format::U16, 1), 2).is_err());
        assert!(header(layout(Format::U8, 1), u64::from(u32::MAX)).is_err());
    }

    #[test]
    fn a_header_says_how_many_whole_frames_follow_it() {
        let stereo = layout(Format::S16, 2);
        for (len, bytes) in [(0, 0), (44, 0), (47, 0), (48, 4), (51, 4), (1044, 1000)] {
            assert_eq!(header_for(stereo, len), header(stereo, bytes).ok());
        }
        // More than a header can say: the one that is there stays.
        assert_eq!(header_for(stereo, u64::from(u32::MAX) + 1), None);
    }

    #[test]
    fn a_format_that_is_broken_or_unknown_is_named() {
        let good = header(layout(Format::S16, 2), 0).unwrap()[20..36].to_vec();
        let with = |at: usize, value: u8| {
            let mut chunk = good.clone();
            chunk[at] = value;
            parse(&chunk, Order::Little).unwrap_err()
        };
        assert!(with(0, 2).contains("format 0x2"));
        assert!(with(2, 0).contains("broken"));
        assert!(with(2, 3).contains("broken"));
        assert!(with(4, 0).contains("frames a second"));
        assert!(with(14, 17).contains("broken"));
        let parse = |chunk: &[u8]| parse(chunk, Order::Little);
        assert!(parse(&good[..15]).unwrap_err().contains("early"));
        // The tag of an extensible one is further on.
        assert!(with(0, 0xfe).contains("0xfe"));
        let mut extensible = good.clone();
        extensible[..2].copy_from_slice(&EXTENSIBLE.to_le_bytes());
        assert!(parse(&extensible).unwrap_err().contains("early"));
        extensible.extend([22, 0, 16, 0, 3, 0, 0, 0]);
        extensible.extend(PCM.to_le_bytes());
        assert_eq!(parse(&extensible), Ok(layout(Format::S16, 2)));
    }

    #[test]
    fn samples_of_24_bits_are_the_upper_ones_of_32() {
        assert_eq!(
            widen(&[1, 2, 3, 0xff, 0xfe, 0xfd]),
            [0, 1, 2, 3, 0, 0xff, 0xfe, 0xfd]
        );
    }

    /// A file in pieces so small that everything is torn somewhere.
    struct Bytes {
        bytes: Vec<u8>,
        at: usize,
    }

    impl Pieces for Bytes {
        async fn next(&mut self) -> Result<Vec<u8>, String> {
            let rest = &self.bytes[self.at..];
            let piece = rest[..rest.len().min(5)].to_vec();
            self.at += piece.len();
            Ok(piece)
        }

        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }
    }

    fn stream() -> StreamInfo {
        StreamInfo {
            group: 0,
            direction: Direction::Output,
            features: 0,
            formats: u64::MAX,
            rates: u64::MAX,
            channels_min: 1,
            channels_max: 2,
        }
    }

    /// All frames that a file has.
    fn played(file: &[u8]) -> Result<Vec<u8>, String> {
        played_on(file, &stream())
    }

    fn played_on(file: &[u8], stream: &StreamInfo) -> Result<Vec<u8>, String> {
        let bytes = file.to_vec();
        block_on(async {
            let mut source = WavSource::open(Bytes { bytes, at: 0 }, stream).await?;
            let mut all = Vec::new();
            loop {
                let frames = source.frames().await?;
                let len = frames.len();
                if len == 0 {
                    return Ok(all);
                }
                all.extend_from_slice(frames);
                source.consume(len);
            }
        })
    }

    /// A chunk, which says of itself that it is this long.
    fn chunk(order: Order, name: &[u8; 4], len: u32, bytes: &[u8]) -> Vec<u8> {
        let len = match order {
            Order::Little => len.to_le_bytes(),
            Order::Big => len.to_be_bytes(),
        };
        [name, &len, bytes].concat()
    }

    /// A file of stereo frames of 16 bits, which says that it is this long.
    fn file(name: &[u8; 4], whole: u32, chunks: &[&[u8]]) -> Vec<u8> {
        let format = header(layout(Format::S16, 2), 0).unwrap()[12..36].to_vec();
        let start = [name, &whole.to_le_bytes(), &b"WAVE"[..], &format].concat();
        [start, chunks.concat()].concat()
    }

    const FRAMES: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn little(name: &[u8; 4], len: u32, bytes: &[u8]) -> Vec<u8> {
        chunk(Order::Little, name, len, bytes)
    }

    #[test]
    fn a_stream_that_does_not_say_how_long_it_is_is_played_to_its_end() {
        for (whole, len) in [
            (0, 0),
            (u32::MAX, 0),
            (u32::MAX, u32::MAX),
            (0, u32::MAX),
            (36, u32::MAX),
            // As `sox` and `arecord` write to a pipe: more than there is.
            (0x7fff_ffff, 0x7fff_f000),
            (48, 12),
        ] {
            let file = file(b"RIFF", whole, &[&little(b"data", len, &FRAMES)]);
            assert_eq!(played(&file), Ok(FRAMES.to_vec()), "{whole:#x} {len:#x}");
        }
        // A file that knows its length, and has no frames.
        let list = little(b"LIST", 4, b"abcd");
        let file = file(b"RIFF", 48, &[&little(b"data", 0, &[]), &list]);
        assert_eq!(played(&file), Ok(Vec::new()));
    }

    #[test]
    fn what_follows_the_frames_is_not_played() {
        let list = little(b"LIST", 4, b"abcd");
        let file = file(b"RIFF", 60, &[&little(b"data", 12, &FRAMES), &list]);
        assert_eq!(played(&file), Ok(FRAMES.to_vec()));
    }

    #[test]
    fn a_chunk_of_odd_length_may_lack_its_padding() {
        let data = little(b"data", 12, &FRAMES);
        for bytes in [b"abc", b"ab\0", b"\0\0\0"] {
            let list = little(b"LIST", 3, bytes);
            for padding in [&b""[..], b"\0", b"x", b"\xff"] {
                let file = file(b"RIFF", 60, &[&list, padding, &data]);
                assert_eq!(played(&file), Ok(FRAMES.to_vec()), "{padding:?}");
                let unknown = little(b"what", 3, bytes);
                let chunks = [&unknown, padding, &list[..], padding, &data];
                let file = super::tests::file(b"RIFF", 80, &chunks);
                assert_eq!(played(&file), Ok(FRAMES.to_vec()), "{padding:?}");
            }
        }
        // A length of which a byte looks like part of a name.
        let long = [FRAMES; 9].concat();
        let data = little(b"data", u32::from(b'l'), &long);
        let file = file(b"RIFF", 60, &[&little(b"junk", 1, b"a"), &data]);
        assert_eq!(played(&file), Ok(long));
    }

    #[test]
    fn in_rifx_the_upper_byte_comes_first() {
        for format in [
            Format::U8,
            Format::S16,
            Format::S24In3,
            Format::S32,
            Format::Float64,
        ] {
            let layout = layout(format, 2);
            let fields = header(layout, 0).unwrap()[20..36].to_vec();
            let mut turned = Vec::new();
            for (at, len) in [(0, 2), (2, 2), (4, 4), (8, 4), (12, 2), (14, 2)] {
                turned.extend(fields[at..at + len].iter().rev());
            }
            let sample = layout.format.bits() as usize / 8;
            let frames: Vec<u8> = (0..4 * sample as u8).collect();
            let samples = frames.chunks(sample);
            let stored: Vec<u8> = samples.flat_map(|it| it.iter().rev().copied()).collect();
            let list = chunk(Order::Big, b"LIST", 4, b"abcd");
            let format = chunk(Order::Big, b"fmt ", 16, &turned);
            let data = chunk(Order::Big, b"data", stored.len() as u32, &stored);
            let file = [&b"RIFX\0\0\0\0WAVE"[..], &list, &format, &data, &list].concat();
            assert_eq!(played(&file), Ok(frames), "{layout}");
        }
        // The card has no 24 bits: they are turned, and then widened.
        let mut stream = stream();
        stream.formats = Format::S32.bit();
        let mut file = Vec::from(*b"RIFX\0\0\0\0WAVEfmt \0\0\0\x10\0\x01\0\x01");
        file.extend([44100u32, 132_300].map(u32::to_be_bytes).as_flattened());
        file.extend(b"\0\x03\0\x18data\0\0\0\x03\x01\x02\x03");
        assert_eq!(played_on(&file, &stream), Ok([0, 3, 2, 1].to_vec()));
    }

    #[test]
    fn in_rf64_the_lengths_are_elsewhere() {
        let lengths = |data: u64, table: &[u8]| {
            let mut bytes = Vec::from([0; 28]);
            bytes[8..16].copy_from_slice(&data.to_le_bytes());
            bytes[24] = table.len() as u8 / 12;
            bytes.extend(table);
            little(b"ds64", bytes.len() as u32, &bytes)
        };
        let build = |name: &[u8; 4], chunks: &[&[u8]]| {
            let file = file(name, u32::MAX, chunks);
            // The lengths come first.
            let (start, rest) = file.split_at(12);
            let (format, rest) = rest.split_at(24);
            let (lengths, rest) = rest.split_at(chunks[0].len());
            [start, lengths, format, rest].concat()
        };
        let list = little(b"LIST", 4, b"abcd");
        let data = little(b"data", u32::MAX, &FRAMES);
        for name in [b"RF64", b"BW64"] {
            let file = build(name, &[&lengths(12, &[]), &data, &list]);
            assert_eq!(played(&file), Ok(FRAMES.to_vec()));
        }
        // Another chunk of more than 4 GiB, as it says.
        let table = [&b"what"[..], &3u64.to_le_bytes()].concat();
        let what = little(b"what", u32::MAX, b"abc\0");
        let file = build(b"RF64", &[&lengths(12, &table), &what, &data, &list]);
        assert_eq!(played(&file), Ok(FRAMES.to_vec()));
        // Not even there does a stream have a length.
        for len in [0, u64::MAX] {
            let file = build(b"RF64", &[&lengths(len, &[]), &data]);
            assert_eq!(played(&file), Ok(FRAMES.to_vec()));
        }
        // Room that was kept for lengths that turned out not to be needed.
        let junk = little(b"JUNK", 28, &[0; 28]);
        let data = little(b"data", 12, &FRAMES);
        let file = build(b"RIFF", &[&junk, &data, &list]);
        assert_eq!(played(&file), Ok(FRAMES.to_vec()));
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [
            &b"RIFF\0\0\0\0AVI LIST"[..],
            b"riff\0\0\0\0WAVE",
            b"FORM\0\0\0\0AIFF",
        ] {
            assert!(played(bytes).unwrap_err().contains("no wav file"));
        }
        let whole = file(b"RIFF", 48, &[&little(b"data", 12, &FRAMES)]);
        for len in 12..44 {
            assert!(
                played(&whole[..len]).unwrap_err().contains("early"),
                "{len}"
            );
        }
    }
}
