//! [`Request`]: what a block device can be asked.

use alloc::vec::Vec;
use core::ops::Range;

use super::config::Config;
use super::wire::{self, Operation, RANGE_LEN, SECTOR_LEN};
use crate::buffer::Buffer;
use crate::error::Cause;
use crate::queue::{Chain, Payload};

/// A request with its buffers, which come back when it is done.
///
/// Positions and lengths are in sectors of 512 bytes, whatever the block size; buffers are of any number of bytes that
/// make whole blocks together. Behind some devices is a file that was opened with O_DIRECT and takes only memory that is
/// aligned to its blocks, and whole blocks of it: [`Buffer::aligned`] makes such buffers.
#[derive(Debug)]
pub struct Request {
    operation: Operation,
    sector: u64,
    data: Data,
    /// The most bytes that a segment may have; the driver knows.
    segment_max: u32,
}

/// How much data a request may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most segments, at least one: what the device allows and the queue can take.
    pub(super) segments_max: usize,
    /// The most bytes of each.
    segment_max: u32,
}

impl Limits {
    /// For a queue with `room` for so many segments, header and status included.
    pub(super) fn new(config: &Config, room: usize) -> Self {
        let room = room.saturating_sub(2);
        let segment_max = config.size_max.unwrap_or(u32::MAX);
        Self {
            segments_max: config.seg_max.map_or(room, |max| room.min(max as usize)),
            // Whole blocks, where one fits: else what follows the first piece of a buffer would not be aligned as that is.
            segment_max: match segment_max & !(config.block_size - 1) {
                0 => segment_max,
                blocks => blocks,
            },
        }
    }
}

/// The buffers of a request.
#[derive(Debug, Default)]
pub enum Data {
    /// None: a flush.
    #[default]
    None,
    /// One.
    One(Buffer),
    /// Several, used one after the other as if they were one.
    Several(Vec<Buffer>),
}

impl Data {
    /// The buffers, in order.
    pub fn buffers(&self) -> &[Buffer] {
        match self {
            Self::None => &[],
            Self::One(buffer) => core::slice::from_ref(buffer),
            Self::Several(buffers) => buffers,
        }
    }

    /// Bytes of all buffers.
    #[inline(always)]
    fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            // What most requests have.
            Self::One(buffer) => buffer.len() as u64,
            Self::Several(buffers) => sum(buffers),
        }
    }
}

#[cold]
fn sum(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

impl From<Buffer> for Data {
    fn from(buffer: Buffer) -> Self {
        Self::One(buffer)
    }
}

impl From<Vec<Buffer>> for Data {
    fn from(buffers: Vec<Buffer>) -> Self {
        Self::Several(buffers)
    }
}

impl Request {
    #[inline]
    fn new(operation: Operation, sector: u64, data: Data) -> Self {
        Self {
            operation,
            sector,
            data,
            segment_max: u32::MAX,
        }
    }

    /// Fills the buffers with what is on the disk from `sector` on.
    #[inline]
    pub fn read(sector: u64, data: impl Into<Data>) -> Self {
        Self::new(Operation::Read, sector, data.into())
    }

    /// Writes the buffers to the disk from `sector` on. Stable once done only if the cache mode says so, else after the
    /// next flush.
    pub fn write(sector: u64, data: impl Into<Data>) -> Self {
        Self::new(Operation::Write, sector, data.into())
    }

    /// Makes stable all writes that were done before it was submitted.
    pub fn flush() -> Self {
        Self::new(Operation::Flush, 0, Data::None)
    }

    /// Says that the contents of ranges of sectors no longer matter. What is read there afterwards is anything.
    ///
    /// # Errors
    ///
    /// A range ends before it begins or has 2^32 sectors, or memory is short.
    pub fn discard(ranges: &[Range<u64>]) -> Result<Self, Cause> {
        let data = encode_ranges(ranges, false)?;
        Ok(Self::new(Operation::Discard, 0, data.into()))
    }

    /// Makes ranges of sectors zero. With `unmap` the device may give the space back to its storage.
    ///
    /// # Errors
    ///
    /// As for [`Self::discard`].
    pub fn write_zeroes(ranges: &[Range<u64>], unmap: bool) -> Result<Self, Cause> {
        let data = encode_ranges(ranges, unmap)?;
        Ok(Self::new(Operation::WriteZeroes, 0, data.into()))
    }

    /// Asks for the device's name; [`Self::id`] has it when done.
    ///
    /// # Errors
    ///
    /// Memory is short.
    pub fn get_id() -> Result<Self, Cause> {
        let buffer = Buffer::zeroed(wire::ID_LEN).ok_or(Cause::NoMemory)?;
        Ok(Self::new(Operation::GetId, 0, buffer.into()))
    }

    /// What is asked.
    #[inline]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The first sector of a read or write.
    pub fn sector(&self) -> u64 {
        self.sector
    }

    /// The buffers.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The buffers, without the request.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// The buffer of a request that was made with one.
    #[inline]
    pub fn into_buffer(self) -> Option<Buffer> {
        match self.data {
            Data::One(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// What a [`Self::get_id`] that is done brought: at most 20 bytes, ASCII by the specification and anything by the
    /// device.
    pub fn id(&self) -> &[u8] {
        let bytes: &[u8] = match (self.operation, &self.data) {
            (Operation::GetId, Data::One(buffer)) => buffer,
            _ => &[],
        };
        bytes.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    /// Bytes of all buffers.
    #[inline(always)]
    pub(super) fn bytes(&self) -> u64 {
        self.data.len()
    }

    /// Finds out whether the device can do the request before it is asked: most mistakes get a better answer this way than
    /// "I/O error". Some devices don't check, and the specification forbids to ask for what is past the end (spec 5.2.6.1).
    #[inline(always)]
    pub(super) fn check(&mut self, config: &Config, limits: Limits) -> Result<(), Cause> {
        self.segment_max = limits.segment_max;
        if config.read_only && self.operation.writes_disk() {
            return Err(Cause::ReadOnly);
        }
        match self.operation {
            Operation::Read | Operation::Write => {
                let bytes = self.check_segments(limits.segments_max)?;
                // The two at once. Which of them is wrong matters only if one is.
                let start = self.sector.wrapping_mul(SECTOR_LEN as u64);
                if (start | bytes) & (u64::from(config.block_size) - 1) != 0 {
                    check_unit(bytes, config.block_size.into())?;
                    check_start(config, self.sector)?;
                }
                check_place(config, self.sector, bytes / SECTOR_LEN as u64)
            }
            _ => self.check_other(config, limits.segments_max),
        }
    }

    /// [`Self::check`] for what neither reads nor writes.
    #[cold]
    fn check_other(&self, config: &Config, segments_max: usize) -> Result<(), Cause> {
        match self.operation {
            Operation::Discard => {
                let limits = config.discard.ok_or(Cause::Unsupported)?;
                self.check_ranges(config, limits.max_ranges, limits.max_sectors)?;
                self.check_segments(segments_max).map(drop)
            }
            Operation::WriteZeroes => {
                let limits = config.write_zeroes.ok_or(Cause::Unsupported)?;
                self.check_ranges(config, limits.max_ranges, limits.max_sectors)?;
                self.check_segments(segments_max).map(drop)
            }
            Operation::GetId => self.check_segments(segments_max).map(drop),
            Operation::Flush if !config.flush => Err(Cause::Unsupported),
            Operation::Flush | Operation::Read | Operation::Write => Ok(()),
        }
    }

    /// Gives the bytes of all of them.
    #[inline(always)]
    fn check_segments(&self, max: usize) -> Result<u64, Cause> {
        // What most requests are. The queue has room for at least one.
        if let Data::One(buffer) = &self.data
            && (1..=self.segment_max as usize).contains(&buffer.len())
        {
            return Ok(buffer.len() as u64);
        }
        self.check_pieces(max)
    }

    #[cold]
    fn check_pieces(&self, max: usize) -> Result<u64, Cause> {
        let buffers = self.data.buffers();
        if buffers.is_empty() || buffers.iter().any(|buffer| buffer.is_empty()) {
            return Err(Cause::EmptyRequest);
        }
        let pieces = |buffer: &Buffer| buffer.len().div_ceil(self.segment_max as usize);
        let segments = buffers.iter().map(pieces).sum();
        if segments > max {
            return Err(Cause::TooManySegments { segments, max });
        }
        Ok(self.bytes())
    }

    fn check_ranges(&self, config: &Config, max: u32, max_sectors: u32) -> Result<(), Cause> {
        let bytes = self.data.buffers().first().map_or(&[][..], |bytes| bytes);
        let (ranges, _) = bytes.as_chunks::<RANGE_LEN>();
        if ranges.is_empty() {
            return Err(Cause::EmptyRequest);
        }
        if ranges.len() > max as usize {
            return Err(Cause::TooManyRanges {
                ranges: ranges.len(),
                max,
            });
        }
        for range in ranges {
            let (sector, count) = wire::decode_range(range);
            if count == 0 {
                return Err(Cause::EmptyRequest);
            }
            if count > max_sectors {
                return Err(Cause::RangeTooLong {
                    sectors: count,
                    max: max_sectors,
                });
            }
            check_unit(
                u64::from(count) * SECTOR_LEN as u64,
                config.block_size.into(),
            )?;
            check_start(config, sector)?;
            check_place(config, sector, count.into())?;
        }
        Ok(())
    }
}

impl Payload for Request {
    #[inline(always)]
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        let (to_memory, max) = (self.operation.writes_memory(), self.segment_max as usize);
        match &mut self.data {
            Data::None => {}
            // What most requests are.
            Data::One(buffer) => name(buffer, to_memory, max, chain),
            Data::Several(buffers) => {
                for buffer in buffers {
                    name(buffer, to_memory, max, chain);
                }
            }
        }
    }
}

#[inline(always)]
fn name<'a>(buffer: &'a mut Buffer, to_memory: bool, max: usize, chain: &mut Chain<'a>) {
    match to_memory {
        true => chain.writable_pieces(buffer, max),
        false => chain.readable_pieces(buffer, max),
    }
}

fn encode_ranges(ranges: &[Range<u64>], unmap: bool) -> Result<Buffer, Cause> {
    let mut bytes = Vec::new();
    let len = ranges.len().saturating_mul(RANGE_LEN);
    bytes.try_reserve_exact(len).map_err(|_| Cause::NoMemory)?;
    for range in ranges {
        let encoded =
            wire::encode_range(range, unmap).ok_or(Cause::InvalidParameter("range of sectors"))?;
        bytes.extend_from_slice(&encoded);
    }
    Ok(Buffer::from(bytes))
}

/// `value` is a multiple of `unit`, a power of two.
#[cold]
fn check_unit(value: u64, unit: u64) -> Result<(), Cause> {
    match value & (unit - 1) {
        0 => Ok(()),
        _ => Err(Cause::Misaligned { value, unit }),
    }
}

/// A block begins with sector `start`.
#[cold]
fn check_start(config: &Config, start: u64) -> Result<(), Cause> {
    check_unit(start, u64::from(config.block_size) / SECTOR_LEN as u64)
}

/// `count` sectors from `start` lie on the disk.
#[inline(always)]
fn check_place(config: &Config, start: u64, count: u64) -> Result<(), Cause> {
    let capacity = config.capacity;
    match capacity.checked_sub(count) {
        Some(last) if start <= last => Ok(()),
        _ => Err(Cause::OutOfRange {
            start,
            count,
            capacity,
        }),
    }
}
