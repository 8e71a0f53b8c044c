//! What a file system lies on: a disk, persistent memory, or a partition of either.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll};

use hadris_io::ErrorType;
use hadris_storage::async_::BlockDevice;
use hadris_storage::{BlockIndex, BlockSize};
use vringlet::blk::SECTOR_LEN;
use vringlet::{Buffer, Cause, Driver as _, Error};

use crate::devices::blk::{self, Disk};
use crate::devices::pmem::{self, Pmem};

const SECTOR: BlockSize = match BlockSize::new(SECTOR_LEN as u32) {
    Some(size) => size,
    None => unreachable!(),
};
/// Bytes of the largest request to a disk.
const MAX_BYTES: usize = 256 << 10;

/// A run of bytes of a device, in whole blocks.
#[derive(Clone)]
pub(super) struct Medium {
    name: String,
    device: Device,
    bytes: Range<u64>,
    block: BlockSize,
}

#[derive(Clone, Copy)]
enum Device {
    Disk(&'static Disk),
    Pmem(&'static Pmem),
}

/// A read, write or flush on its way. It owns its bytes, so that it may be dropped at any moment.
type Transfer = Pin<Box<dyn Future<Output = Result<Vec<u8>, Error>>>>;

/// An error as the crates of the file systems have it.
pub(super) type DeviceError = hadris_io::Error<Box<Error>>;

impl Medium {
    /// All devices that a file system may lie on, each as a whole.
    pub(super) fn all() -> Vec<Self> {
        let disks = blk::all().into_iter().map(Self::disk);
        disks
            .chain(pmem::all().into_iter().map(Self::pmem))
            .collect()
    }

    fn disk(disk: &'static Disk) -> Self {
        let config = disk.control().config();
        Self::whole(
            disk.name.clone(),
            Device::Disk(disk),
            config.bytes(),
            config.block_size,
        )
    }

    fn pmem(pmem: &'static Pmem) -> Self {
        Self::whole(
            pmem.name.clone(),
            Device::Pmem(pmem),
            pmem.config().size,
            SECTOR_LEN as u32,
        )
    }

    fn whole(name: String, device: Device, size: u64, block: u32) -> Self {
        let block = BlockSize::new(block).unwrap_or(SECTOR);
        let block_bytes = u64::from(block.get());
        Self {
            name,
            device,
            bytes: 0..size / block_bytes * block_bytes,
            block,
        }
    }

    /// A part of it, with a name of its own; `None` if it does not have all of these blocks.
    pub(super) fn part(&self, name: String, blocks: Range<u64>) -> Option<Self> {
        let block = u64::from(self.block_bytes());
        let offset = |block_index: u64| {
            let bytes = block_index.checked_mul(block)?;
            self.bytes.start.checked_add(bytes)
        };
        let bytes = offset(blocks.start)?..offset(blocks.end)?;
        let inside = bytes.start <= bytes.end && bytes.end <= self.bytes.end;
        inside.then_some(Self {
            name,
            device: self.device,
            bytes,
            block: self.block,
        })
    }

    /// Whether it is the same run of bytes as another, by whatever name.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.is_on_same_device(other) && self.bytes == other.bytes
    }

    /// Whether it has bytes that another has, too.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.is_on_same_device(other)
            && self.bytes.start < other.bytes.end
            && other.bytes.start < self.bytes.end
    }

    fn is_on_same_device(&self, other: &Self) -> bool {
        match (self.device, other.device) {
            (Device::Disk(ours), Device::Disk(theirs)) => core::ptr::eq(ours, theirs),
            (Device::Pmem(ours), Device::Pmem(theirs)) => core::ptr::eq(ours, theirs),
            _ => false,
        }
    }

    /// Its name, such as `blk0` or `blk0p1`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Bytes of a block: a power of two, 512 at least.
    fn block_bytes(&self) -> u32 {
        self.block.get()
    }

    /// Whether files may be written: not on a read-only disk, nor where the kernel's own store is.
    fn is_writable(&self) -> bool {
        match self.device {
            Device::Disk(disk) => !disk.control().config().read_only,
            Device::Pmem(pmem) => !pmem.is_in_use(),
        }
    }

    /// Reads `len` bytes from `offset` on, both a multiple of a block.
    ///
    /// # Errors
    ///
    /// The device's, and that the medium ends before.
    pub(super) async fn read(self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let room = bytes.try_reserve_exact(len);
        room.map_err(|_| self.error(Cause::NoMemory))?;
        let start = self.place(offset, len)?;
        match self.device {
            Device::Pmem(pmem) => {
                bytes.resize(len, 0);
                let read = pmem.with_region(|region| region.read(start, &mut bytes));
                read.map_err(|cause| self.error(cause))?;
            }
            Device::Disk(disk) => {
                while bytes.len() < len {
                    let piece = MAX_BYTES.min(len - bytes.len());
                    let buffer = self.buffer(piece)?;
                    let sector = (start + bytes.len() as u64) / SECTOR_LEN as u64;
                    let read = disk.read(sector, buffer).await;
                    bytes.extend_from_slice(&read.map_err(|failed| failed.error)?);
                }
            }
        }
        Ok(bytes)
    }

    /// Writes whole blocks from `offset` on and gives the bytes back.
    ///
    /// # Errors
    ///
    /// The device's, and that the medium ends before.
    async fn write(self, offset: u64, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let start = self.place(offset, bytes.len())?;
        // It may have become the kernel's own store meanwhile.
        if !self.is_writable() {
            return Err(self.error(Cause::Busy));
        }
        match self.device {
            Device::Pmem(pmem) => {
                let written = pmem.with_region(|region| region.write(start, &bytes));
                written.map_err(|cause| self.error(cause))?;
            }
            Device::Disk(disk) => {
                let mut offset = start;
                for piece in bytes.chunks(MAX_BYTES) {
                    let sector = offset / SECTOR_LEN as u64;
                    let mut buffer = self.buffer(piece.len())?;
                    buffer.copy_from_slice(piece);
                    let written = disk.write(sector, buffer).await;
                    written.map_err(|failed| failed.error)?;
                    offset += piece.len() as u64;
                }
            }
        }
        Ok(bytes)
    }

    async fn flush(self) -> Result<Vec<u8>, Error> {
        match self.device {
            Device::Pmem(pmem) => pmem.flush().await?,
            // Without a cache there is nothing to flush.
            Device::Disk(disk) if !disk.control().config().flush => {}
            Device::Disk(disk) => disk.flush().await?,
        }
        Ok(Vec::new())
    }

    /// A buffer for a disk: aligned, for what is behind some of them takes no other.
    fn buffer(&self, len: usize) -> Result<Buffer, Error> {
        let buffer = Buffer::aligned(len, self.block_bytes() as usize);
        buffer.ok_or_else(|| self.error(Cause::NoMemory))
    }

    /// Where on the device a range of the medium begins.
    fn place(&self, offset: u64, len: usize) -> Result<u64, Error> {
        let start = self.bytes.start.checked_add(offset);
        start
            .filter(|start| {
                let end = start.checked_add(len as u64);
                end.is_some_and(|end| end <= self.bytes.end)
            })
            .ok_or_else(|| {
                // In the unit that the device's own errors have.
                let unit = match self.device {
                    Device::Disk(_) => SECTOR_LEN as u64,
                    Device::Pmem(_) => 1,
                };
                self.error(Cause::OutOfRange {
                    start: self.bytes.start.saturating_add(offset) / unit,
                    count: len as u64 / unit,
                    capacity: self.bytes.end / unit,
                })
            })
    }

    fn error(&self, cause: Cause) -> Error {
        match self.device {
            Device::Disk(disk) => disk.with(|blk| blk.error(cause)),
            Device::Pmem(pmem) => pmem.error(cause),
        }
    }

    fn offset(&self, first: BlockIndex) -> u64 {
        first.get().saturating_mul(self.block_bytes().into())
    }
}

impl fmt::Debug for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl ErrorType for Medium {
    type Error = Box<Error>;
}

impl BlockDevice for Medium {
    type State = Option<Transfer>;

    fn block_size(&self) -> BlockSize {
        self.block
    }

    fn block_count(&self) -> u64 {
        self.size() / u64::from(self.block_bytes())
    }

    fn disk_offset(&self) -> u64 {
        self.bytes.start
    }

    fn writable(&self) -> bool {
        self.is_writable()
    }

    fn poll_read_blocks(
        &mut self,
        state: &mut Option<Transfer>,
        cx: &mut Context<'_>,
        first: BlockIndex,
        buf: &mut [u8],
    ) -> Poll<Result<(), DeviceError>> {
        let start = || Box::pin(self.clone().read(self.offset(first), buf.len())) as Transfer;
        let read = advance(state, cx, start, "reading failed");
        read.map_ok(|bytes| buf.copy_from_slice(&bytes))
    }

    fn poll_write_blocks(
        &mut self,
        state: &mut Option<Transfer>,
        cx: &mut Context<'_>,
        first: BlockIndex,
        buf: &[u8],
    ) -> Poll<Result<(), DeviceError>> {
        let start = || Box::pin(self.clone().write(self.offset(first), buf.to_vec())) as Transfer;
        advance(state, cx, start, "writing failed").map_ok(drop)
    }

    fn poll_flush(
        &mut self,
        state: &mut Option<Transfer>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DeviceError>> {
        let start = || Box::pin(self.clone().flush()) as Transfer;
        advance(state, cx, start, "flushing failed").map_ok(drop)
    }

    fn cancel(&mut self, state: &mut Option<Transfer>) {
        *state = None;
    }
}

/// Starts a transfer, or goes on with it.
fn advance(
    state: &mut Option<Transfer>,
    cx: &mut Context<'_>,
    start: impl FnOnce() -> Transfer,
    failed: &'static str,
) -> Poll<Result<Vec<u8>, DeviceError>> {
    let result = state.get_or_insert_with(start).as_mut().poll(cx);
    if result.is_ready() {
        *state = None;
    }
    result.map_err(|error| DeviceError::device(Box::new(error), failed))
}
