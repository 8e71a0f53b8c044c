//! Work on many sectors, in requests of which several are in flight.

use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use vringlet::blk::SECTOR_LEN;
use vringlet::{Buffer, Error as DeviceError};

use super::pattern;
use crate::devices::blk::Disk;
use crate::shell::Error;
use crate::shell::progress::Progress;

/// Requests in flight where nothing else is said, and the most.
pub(super) const DEPTH: u64 = 16;
const MAX_DEPTH: u64 = 1024;
/// Bytes of a request where nothing else is said, and the most.
pub(super) const REQUEST_BYTES: u64 = 64 << 10;
const MAX_REQUEST_BYTES: u64 = 16 << 20;

/// How much of a disk is worked on, and how.
pub(in crate::shell) struct Work<'a> {
    pub(super) disk: &'a Disk,
    pub(super) sectors: Range<u64>,
    pub(super) depth: usize,
    /// Sectors of the largest request, a whole number of blocks.
    pub(super) max: u64,
    block: u64,
    progress: Progress,
}

impl<'a> Work<'a> {
    /// Work on `count` sectors from `sector` on, `depth` requests of at most `max` bytes at a time. Refuses what can't be
    /// done before any of it is.
    pub(in crate::shell) fn new(
        disk: &'a Disk,
        sector: u64,
        count: u64,
        depth: u64,
        max: u64,
    ) -> Result<Self, Error> {
        let name = &disk.name;
        let config = disk.control().config();
        let block = u64::from(config.block_size) / SECTOR_LEN as u64;
        if !(1..=MAX_DEPTH).contains(&depth) {
            return Err(Error::usage(format!("depth is 1 to {MAX_DEPTH}")));
        }
        if max < config.block_size.into() || max > MAX_REQUEST_BYTES {
            let least = config.block_size;
            return Err(Error::usage(format!(
                "requests of {name} have {least} to {MAX_REQUEST_BYTES} bytes"
            )));
        }
        let end = sector
            .checked_add(count)
            .filter(|end| *end <= config.capacity);
        let Some(end) = end else {
            return Err(Error::failed(format!(
                "{name}: {count} sectors at {sector} are past the end ({} sectors)",
                config.capacity
            )));
        };
        if !sector.is_multiple_of(block) || !count.is_multiple_of(block) {
            return Err(Error::failed(format!(
                "{name}: {count} sectors at {sector} are not whole blocks of {block} sectors"
            )));
        }
        Ok(Self {
            disk,
            sectors: sector..end,
            depth: depth as usize,
            max: max / SECTOR_LEN as u64 / block * block,
            block,
            progress: Progress::hidden(),
        })
    }

    /// The same, for somebody who wants to know how far it is.
    pub(super) fn shown(self, progress: Progress) -> Self {
        let sectors = self.sectors.end - self.sectors.start;
        Self {
            progress: progress.of(sectors.saturating_mul(SECTOR_LEN as u64)),
            ..self
        }
    }

    /// The sectors cut into requests of sizes that look random and are the same for the same seed.
    fn random_pieces(&self, seed: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let (max, block, end) = (self.max, self.block, self.sectors.end);
        let mut next = self.sectors.start;
        let mut state = seed;
        core::iter::from_fn(move || {
            state = pattern::mix(state);
            let blocks = 1 + state % (max / block);
            piece(&mut next, end, blocks * block)
        })
    }

    /// The sectors cut into requests of the largest size.
    fn even_pieces(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (max, end) = (self.max, self.sectors.end);
        let mut next = self.sectors.start;
        core::iter::from_fn(move || piece(&mut next, end, max))
    }

    /// Writes the test pattern of `seed`. Gives the number of requests.
    pub(in crate::shell) async fn fill(&self, seed: u64) -> Result<u64, Error> {
        let writes = self.random_pieces(seed).map(async |sectors: Range<u64>| {
            let mut buffer = self.buffer(&sectors)?;
            pattern::fill(&mut buffer, sectors.start, seed);
            self.write(sectors.start, buffer).await
        });
        let writes = stream::iter(writes).buffer_unordered(self.depth);
        writes.try_fold(0, async |count, _| Ok(count + 1)).await
    }

    /// Compares with the test pattern of `seed`. Gives the number of requests.
    pub(in crate::shell) async fn verify(&self, seed: u64) -> Result<u64, Error> {
        let reads = self.random_pieces(seed).map(async |sectors: Range<u64>| {
            let buffer = self.read(sectors.clone()).await?;
            Ok((sectors.start, buffer))
        });
        // In order, so that the first difference found is the first there is.
        let reads = stream::iter(reads).buffered(self.depth);
        let check =
            async |count: u64, (start, buffer): (u64, Buffer)| match pattern::first_difference(
                &buffer, start, seed,
            ) {
                None => Ok(count + 1),
                Some(sector) => Err(Error::failed(format!(
                    "{}: sector {sector} is not what seed {seed} makes of it",
                    self.disk.name
                ))),
            };
        reads.try_fold(0, check).await
    }

    /// The SHA-256 of the bytes.
    pub(in crate::shell) async fn hash(&self) -> Result<[u8; 32], Error> {
        let reads = self.even_pieces().map(|sectors| self.read(sectors));
        let reads = stream::iter(reads).buffered(self.depth);
        let hash = async |hash: Sha256, buffer: Buffer| Ok(hash.chain_update(&*buffer));
        let hash = reads.try_fold(Sha256::new(), hash).await?;
        Ok(hash.finalize().into())
    }

    /// Discards all of it. Gives the number of requests.
    pub(super) async fn discard(&self) -> Result<u64, Error> {
        let limits = self.disk.control().config().discard;
        let limit = limits.map_or(u32::MAX, |limits| limits.max_sectors);
        let discard = async |sectors| self.disk.discard(&[sectors]).await;
        self.for_each_range("discard", limit, discard).await
    }

    /// Makes all of it zero, without giving the space up. Gives the number of requests.
    pub(super) async fn zero(&self) -> Result<u64, Error> {
        let limits = self.disk.control().config().write_zeroes;
        let limit = limits.map_or(u32::MAX, |limits| limits.max_sectors);
        let zero = async |sectors| self.disk.write_zeroes(&[sectors], false).await;
        self.for_each_range("zero", limit, zero).await
    }

    async fn for_each_range(
        &self,
        what: &str,
        limit: u32,
        run: impl AsyncFn(Range<u64>) -> Result<(), DeviceError>,
    ) -> Result<u64, Error> {
        let most = (u64::from(limit) / self.block * self.block).max(self.block);
        let (mut next, mut requests) = (self.sectors.start, 0);
        while let Some(sectors) = piece(&mut next, self.sectors.end, most) {
            let (sector, count) = (sectors.start, sectors.end - sectors.start);
            run(sectors)
                .await
                .map_err(|error| self.failed(what, sector, error))?;
            self.done(count);
            requests += 1;
        }
        Ok(requests)
    }

    /// Bytes of the largest request.
    pub(super) fn request_bytes(&self) -> u64 {
        self.max * SECTOR_LEN as u64
    }

    /// Reads all of it.
    pub(in crate::shell) async fn read_all(&self) -> Result<Vec<Buffer>, Error> {
        let reads = self.even_pieces().map(|sectors| self.read(sectors));
        stream::iter(reads).buffered(self.depth).try_collect().await
    }

    /// Writes back what [`Self::read_all`] gave.
    pub(in crate::shell) async fn write_all(&self, buffers: Vec<Buffer>) -> Result<(), Error> {
        let pieces = self.even_pieces().zip(buffers);
        let writes = pieces.map(|(sectors, buffer)| self.write(sectors.start, buffer));
        let writes = stream::iter(writes).buffer_unordered(self.depth);
        writes.try_for_each(async |_| Ok(())).await
    }

    /// Has the disk keep for good what was written.
    pub(in crate::shell) async fn flush(&self) -> Result<(), Error> {
        let flushed = self.disk.flush().await;
        flushed.map_err(|error| Error::failed(format!("{}: {error}", self.disk.name)))
    }

    /// A buffer for so many sectors: aligned, for what is behind some disks takes no other.
    pub(super) fn buffer(&self, sectors: &Range<u64>) -> Result<Buffer, Error> {
        let sector_bytes = |sectors: u64| sectors as usize * SECTOR_LEN;
        let len = sector_bytes(sectors.end - sectors.start);
        let buffer = Buffer::aligned(len, sector_bytes(self.block));
        buffer.ok_or_else(|| Error::failed("not enough memory for a request"))
    }

    async fn read(&self, sectors: Range<u64>) -> Result<Buffer, Error> {
        let read = self.disk.read(sectors.start, self.buffer(&sectors)?).await;
        self.done(sectors.end - sectors.start);
        read.map_err(|failed| self.failed("read", sectors.start, failed))
    }

    async fn write(&self, sector: u64, buffer: Buffer) -> Result<Buffer, Error> {
        let sectors = (buffer.len() / SECTOR_LEN) as u64;
        let written = self.disk.write(sector, buffer).await;
        self.done(sectors);
        written.map_err(|failed| self.failed("write", sector, failed))
    }

    fn done(&self, sectors: u64) {
        self.progress.add(sectors * SECTOR_LEN as u64);
    }

    fn failed(&self, what: &str, sector: u64, error: impl Into<DeviceError>) -> Error {
        let error = error.into();
        Error::failed(format!("{}: {what} at {sector}: {error}", self.disk.name))
    }
}

/// Cuts at most `most` sectors off what begins at `next`.
fn piece(next: &mut u64, end: u64, most: u64) -> Option<Range<u64>> {
    let start = *next;
    *next = end.min(start.saturating_add(most));
    (start < *next).then_some(start..*next)
}
