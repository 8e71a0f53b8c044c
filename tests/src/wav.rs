//! Sound as files: RIFF WAVE, written as other programs write it, and read.

use anyhow::{Context, Result, ensure};

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// How a sample is written: 1 for numbers, 3 for floating ones.
    pub tag: u16,
    /// Bits of a sample.
    pub bits: u16,
    /// Samples of a frame.
    pub channels: u16,
    /// Frames per second.
    pub rate: u32,
}

impl Frames {
    /// The body of a `fmt ` chunk.
    fn format(&self) -> Vec<u8> {
        let frame = self.channels * self.bits / 8;
        let mut chunk = Vec::new();
        chunk.extend(self.tag.to_le_bytes());
        chunk.extend(self.channels.to_le_bytes());
        chunk.extend(self.rate.to_le_bytes());
        chunk.extend((self.rate * u32::from(frame)).to_le_bytes());
        chunk.extend(frame.to_le_bytes());
        chunk.extend(self.bits.to_le_bytes());
        chunk
    }

    /// A file with nothing but these frames.
    pub fn plain_file(&self, frames: &[u8]) -> Vec<u8> {
        let mut file = self.header(frames.len() as u32);
        file.extend(frames);
        file
    }

    fn header(&self, len: u32) -> Vec<u8> {
        let mut header = Vec::from(*b"RIFF");
        header.extend((36 + len).to_le_bytes());
        header.extend(b"WAVEfmt \x10\0\0\0");
        header.extend(self.format());
        header.extend(b"data");
        header.extend(len.to_le_bytes());
        header
    }

    /// A file with these frames. Around them is what programs like to add: a comment before, of odd length, and one behind.
    pub fn file(&self, frames: &[u8]) -> Vec<u8> {
        let mut body = Vec::from(*b"WAVE");
        for (name, bytes) in [
            (b"LIST", &b"INFOISFT\x03\0\0\0abc"[..]),
            (b"fmt ", &self.format()),
            (b"data", frames),
            (b"id3 ", b"this is not sound"),
        ] {
            body.extend(name);
            body.extend((bytes.len() as u32).to_le_bytes());
            body.extend(bytes);
            if !bytes.len().is_multiple_of(2) {
                body.push(0);
            }
        }
        let mut file = Vec::from(*b"RIFF");
        file.extend((body.len() as u32).to_le_bytes());
        file.extend(body);
        file
    }

    /// The frames of a file that has nothing but them, and a header that says what they are and how many.
    pub fn read(&self, file: &[u8]) -> Result<Vec<u8>> {
        let (header, frames) = file.split_at_checked(44).context("no header")?;
        let expected = self.header(frames.len() as u32);
        ensure!(header == expected, "{header:02x?} and not {expected:02x?}");
        Ok(frames.to_vec())
    }
}
