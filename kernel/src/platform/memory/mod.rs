//! Physical frames, page mappings, the heap, and memory shared with devices.
//!
//! None of it is used from interrupt handlers, with one exception that costs nothing: the heap's lock is safe against
//! them, because a waker dropped by a handler may free memory.

pub mod bitmap;
pub mod dma;
pub mod frames;
pub mod heap;
pub mod paging;
pub mod quota;
pub mod stack;

use core::fmt;

use bootloader_api::BootInfo;
use bootloader_api::info::MemoryRegionKind;

/// Bytes per page and per frame.
pub const PAGE_BYTES: usize = 4096;

/// What the kernel needs beside itself: heap, and memory for a few devices.
const MIN_BYTES: u64 = 8 << 20;

/// There is less memory than the kernel needs.
pub struct TooLittle {
    free: u64,
}

impl fmt::Display for TooLittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, least) = (self.free >> 10, MIN_BYTES >> 10);
        write!(
            f,
            "too little memory: {free} KiB are free, and the kernel needs {least} KiB"
        )
    }
}

/// Takes over the memory that the boot loader left free.
///
/// # Errors
///
/// It is too little; nothing was done.
pub fn init(boot: &'static BootInfo, physical_memory_offset: u64) -> Result<(), TooLittle> {
    let free = frames::count_usable(&boot.memory_regions);
    if free < MIN_BYTES {
        return Err(TooLittle { free });
    }
    frames::init(&boot.memory_regions, physical_memory_offset);
    heap::init(physical_memory_offset);
    paging::init(&boot.memory_regions, physical_memory_offset);
    Ok(())
}

/// Bytes of memory that the boot loader knows of, taken or not.
pub fn installed(boot: &BootInfo) -> u64 {
    let known = boot.memory_regions.iter().filter(|region| {
        let kind = region.kind;
        matches!(
            kind,
            MemoryRegionKind::Usable | MemoryRegionKind::Bootloader
        )
    });
    known
        .map(|region| region.end.saturating_sub(region.start))
        .sum()
}
