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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_map::Entry;
    use bootloader_api::info::MemoryRegionKind::{Bootloader, Usable};

    fn frames(ram: &[(u64, u64)], start: u64) -> Frames {
        let entries = ram.iter().map(|&(start, end)| Entry {
            start,
            length: end - start,
            kind: 1,
        });
        Frames::new(MemoryMap::new(entries, 1 << 40).unwrap(), start)
    }

    #[test]
    fn memory_comes_from_the_start_on_and_goes_around_what_is_taken() {
        let mut frames = frames(&[(0, 0x10_0000)], 0x8000);
        frames.map.reserve(0xa000..0xb000).unwrap();
        assert_eq!(frames.allocate("it", 1), Ok(0x8000));
        assert_eq!(frames.allocate("it", 0x1001), Ok(0xb000));
        assert_eq!(
            frames.allocate_frame().unwrap().start_address().as_u64(),
            0xd000
        );

        let map = frames.finish().unwrap();
        let regions: Vec<_> = map
            .regions()
            .iter()
            .map(|r| (r.start, r.end, r.kind))
            .collect();
        assert_eq!(
            regions,
            [
                (0, 0x8000, Usable),
                (0x8000, 0xe000, Bootloader),
                (0xe000, 0x10_0000, Usable),
            ]
        );
    }

    #[test]
    fn nothing_comes_from_above_4_gib() {
        let mut frames = frames(&[(END - 0x2000, END + 0x10_0000)], 0);
        let failed = Error::OutOfMemory {
            what: "it",
            bytes: 0x3000,
        };
        assert_eq!(frames.allocate("it", 0x3000), Err(failed));
        assert_eq!(frames.allocate("it", 0x2000), Ok(END - 0x2000));
        assert!(frames.allocate_frame().is_none());
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let mut frames = frames(&[(0, 1 << 30)], 0);
        for bytes in [u64::MAX, u64::MAX - PAGE, 1 << 63, (1 << 30) + 1] {
            assert!(frames.allocate("it", bytes).is_err(), "{bytes:#x}");
        }
        assert_eq!(frames.allocate("it", 1 << 30), Ok(0));
    }
}
