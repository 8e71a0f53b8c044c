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

use bootloader_api::BootInfo;
use bootloader_api::info::MemoryRegionKind;

/// Bytes per page and per frame.
pub const PAGE_BYTES: usize = 4096;

/// Takes over the memory that the boot loader left free. Panics where nothing could work without it.
pub fn init(boot: &'static BootInfo, physical_memory_offset: u64) {
    frames::init(&boot.memory_regions, physical_memory_offset);
    heap::init(physical_memory_offset);
    paging::init(&boot.memory_regions, physical_memory_offset);
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
