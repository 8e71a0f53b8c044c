//! Memory for what the loader makes: page tables, the kernel's image and stack, the boot information.

use x86_64::PhysAddr;
use x86_64::structures::paging::{FrameAllocator, PhysFrame, Size4KiB};

use crate::error::Error;
use crate::memory_map::{MemoryMap, PAGE};

/// Only below 4 GiB can the loader reach what it allocates.
const END: u64 = 1 << 32;

/// Takes usable memory from an address on, upwards, and never gives it back.
pub struct Frames {
    map: MemoryMap,
    start: u64,
    next: u64,
}

impl Frames {
    /// Takes memory of `map` from the page-aligned address `start` on.
    pub fn new(map: MemoryMap, start: u64) -> Self {
        Self {
            map,
            start,
            next: start,
        }
    }

    /// The map; what was allocated is still usable in it.
    pub fn map(&self) -> &MemoryMap {
        &self.map
    }

    /// The physical address of `bytes` contiguous bytes in whole pages, of any content.
    pub fn allocate(&mut self, what: &'static str, bytes: u64) -> Result<u64, Error> {
        let failed = Error::OutOfMemory { what, bytes };
        let length = bytes.checked_next_multiple_of(PAGE).ok_or(failed)?;
        let start = self.map.find_usable(length, self.next..END).ok_or(failed)?;
        self.next = start + length;
        Ok(start)
    }

    /// The map, in which what was allocated is the boot loader's.
    pub fn finish(mut self) -> Result<MemoryMap, Error> {
        self.map.reserve(self.start..self.next)?;
        Ok(self.map)
    }
}

// SAFETY: `allocate` hands out usable memory, and no page twice: `next` only grows.
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let address = self.allocate("a page table", PAGE).ok()?;
        Some(PhysFrame::containing_address(PhysAddr::new_truncate(
            address,
        )))
    }
}
