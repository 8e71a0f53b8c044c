//! The log: records appended to persistent memory, each of which survives whatever happens once it was acknowledged.
//!
//! (`sequential-storage` and its like were looked at: they are made for flash that is erased before it is written and
//! where a write is done when it returns. Here writing is free and it is the flush that counts; a flush per word of
//! theirs would be one too many.)
//!
//! # What may happen
//!
//! At any moment everything stops. Of what was written since the last flush that succeeded, any aligned eight bytes may
//! be there and any others not, in any combination ([`vringlet::region`]). What was flushed is there.
//!
//! # What is where
//!
//! | offset | |
//! |---|---|
//! | 0 | [`LABEL`]: this memory holds a log |
//! | 64 | the header of area 0: le64 generation, le64 length of an area, le32 CRC of the two, le32 zero |
//! | 128 | the header of area 1, the same |
//! | 4096 | area 0, then area 1 |
//!
//! The area with the higher generation is the one in use. An area is a row of records, each padded with zeros to whole
//! words: le32 CRC, le16 length, le16 kind (not 0), then the payload. The CRC is over the area's generation, the record's
//! offset, its length, kind and payload, so that nothing written for another place or an earlier time passes for it.
//! Behind the last record all is zero.
//!
//! # Why that is safe
//!
//! - *Append* writes behind the last record and flushes. Without the flush the record is there or its CRC is wrong, and
//!   no more bytes behind the end than a record has at most may be other than zero: opening the log makes them zero
//!   again before anything is appended, so that no remains of a record that never was come after one that is.
//! - *Rewrite* (when an area is full) writes the records worth keeping to the other area, flushes, and only then gives
//!   that area a header with a higher generation. A header of which a part is missing has a wrong CRC, and the old area
//!   stays in use.
//! - *Format* first writes one word that says so, and the label over it when all else is done. What was interrupted in
//!   between is formatted again when it is opened.
//! - What is other than zero further behind the end than a record is long was not left by a crash: somebody else wrote
//!   there, or the memory is bad. Then the log does not open and nothing is changed.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU16;

use crc::{CRC_32_ISO_HDLC, Crc};

/// Persistent memory.
#[expect(
    async_fn_in_trait,
    reason = "used with known types, all of them on one processor"
)]
pub trait Medium {
    /// Why it can't do what it is asked.
    type Error: fmt::Display;

    /// Its length in bytes.
    fn size(&self) -> u64;

    /// Copies bytes out.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// Copies bytes in. Aligned words are written whole.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Makes persistent what was written.
    async fn flush(&mut self) -> Result<(), Self::Error>;
}

/// The first word of memory that holds a log of this layout.
pub const LABEL: [u8; WORD] = *b"VrLog\0\0\x01";
/// The most bytes that a record may have.
pub const MAX_PAYLOAD: usize = 4096;
/// The shortest area.
pub const MIN_AREA: u64 = 16 << 10;
/// The least memory for a log.
pub const MIN_BYTES: u64 = AREAS + 2 * MIN_AREA;

/// The first word while the log is being made.
const UNFINISHED: [u8; WORD] = *b"VrLog\0\0\0";
/// The length of a log whose making was interrupted.
pub const USUAL_BYTES: u64 = 1 << 20;

const WORD: usize = 8;
const HEADERS: u64 = 64;
const HEADER_STRIDE: u64 = 64;
const HEADER_LEN: usize = 24;
const AREAS: u64 = 4096;
const RECORD_HEADER: usize = 8;
/// The most bytes that a record takes in its area.
const MAX_BYTES: usize = RECORD_HEADER + MAX_PAYLOAD;
/// Bytes that are looked at or written at a time.
const CHUNK: usize = 4096;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Why the log can't be used, or does not take a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The memory failed.
    Medium(E),
    /// There is something else in the memory.
    NotALog,
    /// The memory is shorter than a log, or than this one says it is.
    TooSmall,
    /// Neither area has a header that can be true.
    NoHeader,
    /// There is something behind the last record of the area, at this offset in it.
    Damaged(u64),
    /// A record of more than [`MAX_PAYLOAD`] bytes.
    TooLong,
    /// The area is full: [`Log::rewrite`] it.
    Full,
    /// An earlier write or flush failed, so that nobody knows what is in the memory: open it again.
    Broken,
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Medium(error) => error.fmt(f),
            Self::NotALog => f.write_str("holds something else than a log"),
            Self::TooSmall => f.write_str("is too small for the log"),
            Self::NoHeader => f.write_str("the log's headers are damaged"),
            Self::Damaged(at) => write!(f, "the log is damaged at byte {at} of its area"),
            Self::TooLong => write!(f, "a record has at most {MAX_PAYLOAD} bytes"),
            Self::Full => f.write_str("the log is full"),
            Self::Broken => f.write_str("the log broke down when it was last written"),
        }
    }
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Self {
        Self::Medium(error)
    }
}

/// What an unknown memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A log, or what became of one that was being formatted.
    Log,
    /// Nothing but zeros.
    Zeros,
    /// Something else.
    Other,
}

/// One thing to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is, for whoever wrote it.
    pub kind: NonZeroU16,
    /// The bytes.
    pub payload: Vec<u8>,
}

impl Record {
    /// Bytes that it takes in its area.
    pub fn bytes(&self) -> u64 {
        (RECORD_HEADER + self.payload.len().next_multiple_of(WORD)) as u64
    }

    /// As it is in the area of this generation at this offset.
    fn encode(&self, generation: u64, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend((self.payload.len() as u16).to_le_bytes());
        bytes.extend(self.kind.get().to_le_bytes());
        bytes.extend(&self.payload);
        let crc = record_crc(generation, offset, bytes.get(4..).unwrap_or_default());
        if let Some(place) = bytes.first_chunk_mut() {
            *place = crc.to_le_bytes();
        }
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    /// What [`Self::encode`] made, if `bytes`, which may be longer, begin with it.
    fn decode(generation: u64, offset: u64, bytes: &[u8]) -> Option<Self> {
        let (&crc, rest) = bytes.split_first_chunk::<4>()?;
        let (&len, after) = rest.split_first_chunk()?;
        let (&kind, payload) = after.split_first_chunk()?;
        let kind = NonZeroU16::new(u16::from_le_bytes(kind))?;
        let len = usize::from(u16::from_le_bytes(len));
        let payload = payload.get(..len).filter(|_| len <= MAX_PAYLOAD)?.to_vec();
        let summed = rest.get(..len + 4)?;
        let right = record_crc(generation, offset, summed) == u32::from_le_bytes(crc);
        right.then_some(Self { kind, payload })
    }
}

fn record_crc(generation: u64, offset: u64, bytes: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&generation.to_le_bytes());
    digest.update(&offset.to_le_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// The header of an area that can be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    generation: u64,
    area_len: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let words = [self.generation.to_le_bytes(), self.area_len.to_le_bytes()];
        let crc = CRC.checksum(words.as_flattened()).to_le_bytes();
        let content = words.into_iter().flatten().chain(crc);
        bytes
            .iter_mut()
            .zip(content)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    fn decode(bytes: [u8; HEADER_LEN]) -> Option<Self> {
        let (&generation, rest) = bytes.split_first_chunk()?;
        let header = Self {
            generation: u64::from_le_bytes(generation),
            area_len: u64::from_le_bytes(*rest.first_chunk()?),
        };
        (header.encode() == bytes && header.generation != 0).then_some(header)
    }
}

/// A log that was opened.
#[derive(Debug)]
pub struct Log<M> {
    medium: M,
    header: Header,
    /// Which of the two areas is in use: 0 or 1.
    area: u64,
    /// Where the next record goes, from the start of the area.
    end: u64,
    records: u64,
    broken: bool,
}

/// Whether there is, or was to be, a log.
pub fn is_labelled<M: Medium>(medium: &M) -> bool {
    let mut label = [0; WORD];
    let read = medium.size() >= WORD as u64 && medium.read(0, &mut label).is_ok();
    read && matches!(label, LABEL | UNFINISHED)
}

/// What is in the memory. Only memory without a label is read whole, as far as it is zero.
pub fn contents<M: Medium>(medium: &M) -> Result<Contents, M::Error> {
    if is_labelled(medium) {
        return Ok(Contents::Log);
    }
    Ok(match first_nonzero(medium, 0, medium.size())? {
        // Memory too short for a label is no place for a log, zero or not.
        None if medium.size() >= WORD as u64 => Contents::Zeros,
        _ => Contents::Other,
    })
}

/// Where in `start..end` the first byte other than zero is.
fn first_nonzero<M: Medium>(medium: &M, start: u64, end: u64) -> Result<Option<u64>, M::Error> {
    let mut chunk = [0; CHUNK];
    let mut at = start;
    while at < end {
        let len = (end - at).min(CHUNK as u64);
        let bytes = chunk.get_mut(..len as usize).unwrap_or_default();
        medium.read(at, bytes)?;
        if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + place as u64));
        }
        at += len;
    }
    Ok(None)
}

/// Makes `start..end` zero where it is not.
fn clear<M: Medium>(medium: &mut M, start: u64, end: u64) -> Result<(), M::Error> {
    let mut at = start;
    while let Some(dirty) = first_nonzero(medium, at, end)? {
        let dirty = (dirty / WORD as u64 * WORD as u64).max(start);
        at = end.min(dirty + CHUNK as u64);
        let zeros = [0; CHUNK];
        medium.write(
            dirty,
            zeros.get(..(at - dirty) as usize).unwrap_or_default(),
        )?;
    }
    Ok(())
}

impl<M: Medium> Log<M> {
    /// Makes an empty log of `bytes` bytes, or as many as there are. What was in the memory is lost, except what lies
    /// behind the log.
    ///
    /// # Errors
    ///
    /// The memory is too small, or fails.
    pub async fn format(mut medium: M, bytes: u64) -> Result<Self, Error<M::Error>> {
        let area_len = bytes.min(medium.size()).saturating_sub(AREAS) / 2;
        let area_len = area_len / WORD as u64 * WORD as u64;
        if area_len < MIN_AREA {
            return Err(Error::TooSmall);
        }
        medium.write(0, &UNFINISHED)?;
        medium.flush().await?;
        clear(&mut medium, WORD as u64, AREAS + 2 * area_len)?;
        let header = Header {
            generation: 1,
            area_len,
        };
        medium.write(header_at(0), &header.encode())?;
        medium.flush().await?;
        medium.write(0, &LABEL)?;
        medium.flush().await?;
        Ok(Self {
            medium,
            header,
            area: 0,
            end: 0,
            records: 0,
            broken: false,
        })
    }

    /// Opens a log; gives every record, oldest first, to `replay`. All that it gives is persistent.
    ///
    /// # Errors
    ///
    /// There is no log, it is damaged, or the memory fails.
    pub async fn open(medium: M, mut replay: impl FnMut(Record)) -> Result<Self, Error<M::Error>> {
        if medium.size() < MIN_BYTES {
            return Err(Error::TooSmall);
        }
        let mut label = [0; WORD];
        medium.read(0, &mut label)?;
        match label {
            LABEL => {}
            UNFINISHED => return Self::format(medium, USUAL_BYTES).await,
            _ => return Err(Error::NotALog),
        }
        let mut found: Option<(u64, Header)> = None;
        for area in [0, 1] {
            let mut bytes = [0; HEADER_LEN];
            medium.read(header_at(area), &mut bytes)?;
            let newer = |header: &Header| {
                found.is_none_or(|(_, other)| other.generation < header.generation)
            };
            if let Some(header) = Header::decode(bytes).filter(newer) {
                found = Some((area, header));
            }
        }
        let (area, header) = found.ok_or(Error::NoHeader)?;
        let needed = header.area_len.checked_mul(2);
        let needed = needed.and_then(|areas| areas.checked_add(AREAS));
        if header.area_len < MIN_AREA || needed.is_none_or(|needed| needed > medium.size()) {
            return Err(Error::TooSmall);
        }
        let mut log = Self {
            medium,
            header,
            area,
            end: 0,
            records: 0,
            broken: false,
        };
        while let Some(record) = log.record_at_end()? {
            log.end += record.bytes();
            log.records += 1;
            replay(record);
        }
        // What a record left that was being written when everything stopped.
        let (start, end) = (log.place(log.end), log.place(header.area_len));
        let torn = end.min(start + MAX_BYTES as u64);
        if let Some(at) = first_nonzero(&log.medium, torn, end)? {
            return Err(Error::Damaged(at - log.place(0)));
        }
        clear(&mut log.medium, start, torn)?;
        // The last record may be one that nobody flushed, and now somebody knows of it.
        log.medium.flush().await?;
        Ok(log)
    }

    fn record_at_end(&self) -> Result<Option<Record>, M::Error> {
        let mut bytes = [0; MAX_BYTES];
        let room = self.header.area_len.saturating_sub(self.end);
        let len = room.min(MAX_BYTES as u64) as usize;
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        self.medium.read(self.place(self.end), bytes)?;
        Ok(Record::decode(self.header.generation, self.end, bytes))
    }

    /// Where the area's byte `offset` is in the memory.
    fn place(&self, offset: u64) -> u64 {
        AREAS + self.area * self.header.area_len + offset
    }

    /// Adds a record. It is persistent when this returns.
    ///
    /// # Errors
    ///
    /// Too long, no room ([`Error::Full`]), or the memory failed: then whether the record is there will be known when the
    /// log is opened again, and nothing can be done with it before.
    pub async fn append(&mut self, record: &Record) -> Result<(), Error<M::Error>> {
        if self.broken {
            return Err(Error::Broken);
        }
        if record.payload.len() > MAX_PAYLOAD {
            return Err(Error::TooLong);
        }
        if record.bytes() > self.room() {
            return Err(Error::Full);
        }
        self.broken = true;
        let bytes = record.encode(self.header.generation, self.end);
        self.medium.write(self.place(self.end), &bytes)?;
        self.medium.flush().await?;
        self.broken = false;
        self.end += record.bytes();
        self.records += 1;
        Ok(())
    }

    /// Replaces all records by these, or leaves all as it is.
    ///
    /// # Errors
    ///
    /// They don't fit, or the memory failed; see [`Self::append`].
    pub async fn rewrite(&mut self, records: &[Record]) -> Result<(), Error<M::Error>> {
        if self.broken {
            return Err(Error::Broken);
        }
        if records
            .iter()
            .any(|record| record.payload.len() > MAX_PAYLOAD)
        {
            return Err(Error::TooLong);
        }
        let bytes: u64 = records.iter().map(Record::bytes).sum();
        if bytes > self.header.area_len {
            return Err(Error::Full);
        }
        let generation = self.header.generation.checked_add(1).ok_or(Error::Full)?;
        self.broken = true;
        let header = Header {
            generation,
            ..self.header
        };
        let area = 1 - self.area;
        let start = AREAS + area * header.area_len;
        let mut end = 0;
        for record in records {
            let bytes = record.encode(generation, end);
            self.medium.write(start + end, &bytes)?;
            end += record.bytes();
        }
        clear(&mut self.medium, start + end, start + header.area_len)?;
        self.medium.flush().await?;
        self.medium.write(header_at(area), &header.encode())?;
        self.medium.flush().await?;
        self.broken = false;
        (self.header, self.area, self.end) = (header, area, end);
        self.records = records.len() as u64;
        Ok(())
    }

    /// Bytes left for records.
    pub fn room(&self) -> u64 {
        self.header.area_len.saturating_sub(self.end)
    }

    /// Bytes that an area has for records.
    pub fn area_len(&self) -> u64 {
        self.header.area_len
    }

    /// How many records there are.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// How often the log was rewritten, and 1.
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// Gives the memory back.
    pub fn into_medium(self) -> M {
        self.medium
    }
}

/// Where the header of area 0 or 1 is.
fn header_at(area: u64) -> u64 {
    HEADERS + area * HEADER_STRIDE
}

#[cfg(test)]
mod tests;
