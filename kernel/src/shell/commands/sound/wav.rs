//! Sound in files: RIFF WAVE, as source and as sink of frames.
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

/// A file on its way to a card.
pub(super) struct WavSource {
    reader: Reader,
    layout: Layout,
    /// 24 bits are made 32.
    widened: bool,
    /// Bytes of frames that were not read yet; as many as there are, if the file does not say.
    left: u64,
    /// Frames as the card wants them, and how much of them is used up.
    frames: Vec<u8>,
    used: usize,
}

impl WavSource {
    /// Reads the header of a file whose frames are for this stream. Errors don't say which file it is.
    ///
    /// # Errors
    ///
    /// The file can't be read, is no such file, or the stream can't play what is in it.
    pub(super) async fn open(file: File, stream: &StreamInfo) -> Result<Self, String> {
        let mut reader = Reader {
            file,
            bytes: Vec::new(),
            used: 0,
        };
        let riff = reader.take(12).await?;
        if !(riff.starts_with(b"RIFF") && riff.ends_with(b"WAVE")) {
            return Err("is no wav file".into());
        }
        let mut layout = None;
        let mut chunks = 0;
        let left = loop {
            chunks += 1;
            if chunks > MAX_CHUNKS {
                return Err("is broken: many chunks, and no frames".into());
            }
            let chunk = reader.take(8).await?;
            let (name, len) = chunk.split_first_chunk::<4>().ok_or(TOO_SHORT)?;
            let len = len.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
            // A byte that does not count follows a chunk of odd length.
            let padded = u64::from(len) + u64::from(len % 2);
            match name {
                b"fmt " if len <= MAX_FORMAT_BYTES => {
                    layout = Some(parse(&reader.take(padded as usize).await?)?);
                }
                // What is written as it comes to be says nothing of its length.
                b"data" if len == u32::MAX => break u64::MAX,
                b"data" => break len.into(),
                _ => reader.skip(padded).await?,
            }
        };
        let layout = layout.ok_or("does not say what its frames are")?;
        let (layout, widened) = fit(layout, stream)?;
        Ok(Self {
            reader,
            layout,
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

    /// Bytes of a frame in the file: one at least.
    fn frame_len(&self) -> usize {
        let bits = match self.widened {
            true => Format::S24In3.bits(),
            false => self.layout.format.bits(),
        };
        (bits as usize / 8 * usize::from(self.layout.channels)).max(1)
    }
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
fn parse(chunk: &[u8]) -> Result<Layout, String> {
    let number = |at: usize| {
        let bytes = chunk.get(at..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    };
    let wide = |at: usize| {
        let bytes = chunk.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
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

impl FrameSource for WavSource {
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

/// A file, some bytes ahead.
struct Reader {
    file: File,
    bytes: Vec<u8>,
    used: usize,
}

impl Reader {
    /// The next bytes: `len`, or fewer where the file ends.
    async fn take_some(&mut self, len: usize) -> Result<Vec<u8>, String> {
        while self.bytes.len() - self.used < len {
            let more = self.file.read(PIECE).await;
            let more = more.map_err(|error| format!("{error}"))?;
            if more.is_empty() {
                break;
            }
            self.bytes.drain(..self.used);
            self.used = 0;
            self.bytes.extend_from_slice(&more);
        }
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
                assert_eq!(parse(&header[20..36]), Ok(layout));
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
            parse(&chunk).unwrap_err()
        };
        assert!(with(0, 2).contains("format 0x2"));
        assert!(with(2, 0).contains("broken"));
        assert!(with(2, 3).contains("broken"));
        assert!(with(4, 0).contains("frames a second"));
        assert!(with(14, 17).contains("broken"));
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
}
