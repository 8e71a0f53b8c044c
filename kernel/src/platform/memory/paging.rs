//! Page mappings: what devices have, in a window of its own: registers, uncached, and memory, cached; stacks, each above
//! a page that is not mapped; and what lies where.

#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use raw_cpuid::CpuId;
use spin::{Mutex, Once};
use vringlet::Region;
use x86_64::registers::control::Cr3;
use x86_64::registers::model_specific::{Efer, EferFlags};
use x86_64::structures::paging::mapper::{MapToError, Translate};
use x86_64::structures::paging::{
    Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use super::PAGE_BYTES;
use super::frames::{self, PageTableFrames};

const PAGE: u64 = PAGE_BYTES as u64;
const LARGE_PAGE: u64 = 2 << 20;
/// What one entry of the level 4 page table covers: all that the window for devices ever needs.
const WINDOW_BYTES: u64 = 512 << 30;

struct Mappings {
    table: OffsetPageTable<'static>,
    /// What is left of the window.
    window: Range<u64>,
    mapped: Vec<Mapped>,
    /// Of every page in the window.
    flags: PageTableFlags,
}

/// Physical pages mapped in the window.
struct Mapped {
    physical: Range<u64>,
    start: u64,
    kind: Kind,
}

/// What a device has at a physical address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Registers,
    Memory,
}

impl Kind {
    fn flags(self) -> PageTableFlags {
        match self {
            Self::Registers => PageTableFlags::NO_CACHE | PageTableFlags::WRITE_THROUGH,
            // Write-back.
            Self::Memory => PageTableFlags::empty(),
        }
    }
}

static MAPPINGS: Mutex<Option<Mappings>> = Mutex::new(None);
static LAYOUT: Once<Layout> = Once::new();

/// A run of memory that is mapped in one run.
struct Linear {
    /// Where it is mapped.
    start: u64,
    len: u64,
    physical: u64,
}

impl Linear {
    /// The physical address of what lies in it as a whole.
    #[inline(always)]
    fn physical(&self, address: u64, bytes: usize) -> Option<u64> {
        let offset = address.wrapping_sub(self.start);
        let left = self.len.checked_sub(offset)?;
        (bytes as u64 <= left).then(|| self.physical + offset)
    }
}

struct Layout {
    offset: u64,
    /// Memory that must never be taken for device registers, and that is mapped at the offset.
    ram: Vec<Range<u64>>,
    /// The largest run of it.
    largest: Linear,
    physical_bits: u8,
}

/// Why registers or memory of a device could not be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// The range is empty, wraps around, or is beyond what the processor can address.
    BadRange,
    /// The range overlaps memory.
    OverlapsMemory,
    /// The range overlaps memory of a device that is in use, or registers are wanted as memory.
    InUse,
    /// No frames are left for page tables, or no addresses.
    OutOfMemory,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRange => "not an address range this processor can map",
            Self::OverlapsMemory => "the range overlaps memory",
            Self::InUse => "the range is in use already",
            Self::OutOfMemory => "out of memory for page tables",
        })
    }
}

/// Takes over the boot loader's page tables.
pub(super) fn init(regions: &[MemoryRegion], physical_memory_offset: u64) {
    let is_ram = |region: &&MemoryRegion| {
        matches!(
            region.kind,
            MemoryRegionKind::Usable | MemoryRegionKind::Bootloader
        )
    };
    let cpuid = CpuId::new();
    let ram: Vec<_> = regions
        .iter()
        .filter(is_ram)
        .map(|region| region.start..region.end)
        .collect();
    let largest = ram.iter().max_by_key(|ram| ram.end - ram.start).cloned();
    let largest = largest.unwrap_or_default();
    LAYOUT.call_once(|| Layout {
        offset: physical_memory_offset,
        largest: Linear {
            start: physical_memory_offset + largest.start,
            len: largest.end - largest.start,
            physical: largest.start,
        },
        ram,
        physical_bits: cpuid
            .get_processor_capacity_feature_info()
            .map_or(36, |capacity| capacity.physical_address_bits()),
    });

    let mut flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
    let no_execute = cpuid
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|features| features.has_execute_disable());
    if no_execute {
        // SAFETY: CPUID offers it; it only gives a meaning to a bit that was reserved.
        unsafe { Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE)) };
        flags |= PageTableFlags::NO_EXECUTE;
    }

    let root = physical_memory_offset + Cr3::read().0.start_address().as_u64();
    // SAFETY: CR3 points to the level 4 table in use, which is mapped at the offset like all memory; this is the only
    // reference to it from here on.
    let table = unsafe {
        OffsetPageTable::new(
            &mut *(root as *mut PageTable),
            VirtAddr::new(physical_memory_offset),
        )
    };
    // The upper half, because the loader's and our own mappings are the more likely to be extended in the lower.
    let free_entry = (256..512).find(|&index| table.level_4_table()[index].is_unused());
    let window = match free_entry {
        Some(index) => {
            let start = VirtAddr::new_truncate((index as u64) << 39).as_u64();
            start..start + (WINDOW_BYTES - PAGE)
        }
        None => 0..0,
    };
    *MAPPINGS.lock() = Some(Mappings {
        table,
        window,
        mapped: Vec::new(),
        flags,
    });
}

/// Maps device registers, uncached, and returns where they are now. What is mapped stays mapped; asking again for the
/// same registers gives the same address.
pub fn map_mmio(physical: u64, bytes: usize) -> Result<NonNull<u8>, MapError> {
    let wanted = range_of_device(physical, bytes as u64)?;
    let mut mappings = MAPPINGS.lock();
    let mappings = mappings.as_mut().ok_or(MapError::OutOfMemory)?;
    let known = mappings
        .mapped
        .iter()
        .filter(|mapped| mapped.kind == Kind::Registers)
        .find(|mapped| mapped.physical.start <= physical && wanted.end <= mapped.physical.end);
    match known {
        Some(mapped) => address(mapped.start + (physical - mapped.physical.start)),
        None => mappings.map(wanted, Kind::Registers),
    }
}

/// Maps memory of a device, write-back cached. Each byte of it is handed out once.
pub fn region(physical: u64, bytes: u64) -> Result<Region, MapError> {
    let wanted = range_of_device(physical, bytes)?;
    let len = usize::try_from(bytes).map_err(|_| MapError::BadRange)?;
    let mut mappings = MAPPINGS.lock();
    let mappings = mappings.as_mut().ok_or(MapError::OutOfMemory)?;
    let start = mappings.map(wanted, Kind::Memory)?;
    // SAFETY: `len` bytes are mapped at `start`, for good; they are no memory that the kernel knows of otherwise, and
    // `map` gave and will give no page of theirs to anyone else.
    Ok(unsafe { Region::new(start, len) })
}

/// Maps memory for a stack of `bytes` bytes, a multiple of a page, above a page that is not mapped, and says where it is.
/// It stays mapped.
pub fn stack(bytes: u64) -> Result<Range<u64>, MapError> {
    let mut mappings = MAPPINGS.lock();
    let mappings = mappings.as_mut().ok_or(MapError::OutOfMemory)?;
    mappings.map_stack(bytes)
}

/// The physical addresses of something that a device has: not empty, within reach, and not memory of the machine.
fn range_of_device(physical: u64, bytes: u64) -> Result<Range<u64>, MapError> {
    let layout = LAYOUT.get().ok_or(MapError::OutOfMemory)?;
    let end = physical.checked_add(bytes).ok_or(MapError::BadRange)?;
    if bytes == 0 || end > 1 << layout.physical_bits.min(52) {
        return Err(MapError::BadRange);
    }
    let is_ram = |ram: &Range<u64>| physical < ram.end && ram.start < end;
    match layout.ram.iter().any(is_ram) {
        true => Err(MapError::OverlapsMemory),
        false => Ok(physical..end),
    }
}

fn address(address: u64) -> Result<NonNull<u8>, MapError> {
    NonNull::new(address as *mut u8).ok_or(MapError::OutOfMemory)
}

impl Mappings {
    fn map(&mut self, wanted: Range<u64>, kind: Kind) -> Result<NonNull<u8>, MapError> {
        let first = wanted.start / PAGE * PAGE;
        let last = wanted.end.next_multiple_of(PAGE);
        let in_use = |mapped: &Mapped| {
            let overlaps = first < mapped.physical.end && mapped.physical.start < last;
            overlaps && (kind == Kind::Memory || mapped.kind == Kind::Memory)
        };
        if self.mapped.iter().any(in_use) {
            return Err(MapError::InUse);
        }
        // As far from a 2 MiB boundary as the physical address is, so that large pages fit large ranges.
        let misfit = (first % LARGE_PAGE).wrapping_sub(self.window.start % LARGE_PAGE) % LARGE_PAGE;
        let start = self.window.start + misfit;
        let window_end = start
            .checked_add(last - first)
            .ok_or(MapError::OutOfMemory)?;
        if window_end > self.window.end {
            return Err(MapError::OutOfMemory);
        }
        // Used up even if a page below fails: half a mapping is never handed out and never built upon.
        self.window.start = window_end;
        let (mut virt, mut phys) = (start, first);
        while phys < last {
            let large = phys.is_multiple_of(LARGE_PAGE) && last - phys >= LARGE_PAGE;
            let size = if large { LARGE_PAGE } else { PAGE };
            self.map_page(virt, phys, large, kind)?;
            virt += size;
            phys += size;
        }
        self.mapped.push(Mapped {
            physical: first..last,
            start,
            kind,
        });
        address(start + (wanted.start - first))
    }

    fn map_stack(&mut self, bytes: u64) -> Result<Range<u64>, MapError> {
        let start = self.window.start + PAGE;
        let end = start.checked_add(bytes).ok_or(MapError::OutOfMemory)?;
        if end > self.window.end {
            return Err(MapError::OutOfMemory);
        }
        let count = (bytes / PAGE) as usize;
        let frame = frames::allocate(count, 1).ok_or(MapError::OutOfMemory)?;
        // Used up even if a page below fails, as above.
        self.window.start = end;
        for (page, physical) in (start..end).zip(frame.as_u64()..).step_by(PAGE_BYTES) {
            self.map_page(page, physical, false, Kind::Memory)
                .inspect_err(|_| {
                    let _ = frames::release(frame, count);
                })?;
        }
        Ok(start..end)
    }

    fn map_page(&mut self, virt: u64, phys: u64, large: bool, kind: Kind) -> Result<(), MapError> {
        let flags = self.flags | kind.flags();
        let (virt, phys) = (VirtAddr::new(virt), PhysAddr::new(phys));
        let frames = &mut PageTableFrames;
        // SAFETY: the pages are in the window, which only this file hands out and each page once; the frames are not
        // memory, or were just allocated, so nothing Rust knows of is aliased. A page not present before needs no TLB
        // flush.
        unsafe {
            if large {
                let (page, frame) = (
                    Page::<Size2MiB>::containing_address(virt),
                    PhysFrame::containing_address(phys),
                );
                let flags = flags | PageTableFlags::HUGE_PAGE;
                let mapped = self.table.map_to(page, frame, flags, frames);
                mapped.map(|flush| flush.ignore()).map_err(out_of_memory)
            } else {
                let (page, frame) = (
                    Page::<Size4KiB>::containing_address(virt),
                    PhysFrame::containing_address(phys),
                );
                let mapped = self.table.map_to(page, frame, flags, frames);
                mapped.map(|flush| flush.ignore()).map_err(out_of_memory)
            }
        }
    }
}

fn out_of_memory<S: x86_64::structures::paging::PageSize>(_: MapToError<S>) -> MapError {
    MapError::OutOfMemory
}

/// Where memory at this physical address is mapped. `None` for what is not memory.
pub fn memory_at(physical: u64, bytes: usize) -> Option<NonNull<u8>> {
    let layout = LAYOUT.get()?;
    let end = physical.checked_add(bytes as u64)?;
    let inside = layout
        .ram
        .iter()
        .any(|ram| ram.start <= physical && end <= ram.end);
    NonNull::new((layout.offset + physical) as *mut u8).filter(|_| inside)
}

/// The physical address of a buffer if it is one run of physical memory: by subtraction in the physical-memory mapping
/// (the heap, DMA memory), by a walk of the page tables elsewhere (the stack, statics).
#[inline(always)]
pub fn contiguous_physical(address: u64, bytes: usize) -> Option<u64> {
    let layout = LAYOUT.get()?;
    // The heap is one run of memory, and most buffers come from there.
    if let Some(physical) = layout.largest.physical(address, bytes) {
        return Some(physical);
    }
    contiguous_elsewhere(layout, address, bytes)
}

#[cold]
fn contiguous_elsewhere(layout: &Layout, address: u64, bytes: usize) -> Option<u64> {
    let end = address.checked_add(bytes as u64)?;
    if let (Some(physical), Some(physical_end)) = (
        address.checked_sub(layout.offset),
        end.checked_sub(layout.offset),
    ) && layout
        .ram
        .iter()
        .any(|ram| ram.start <= physical && physical_end <= ram.end)
    {
        return Some(physical);
    }
    let mappings = MAPPINGS.lock();
    let table = &mappings.as_ref()?.table;
    let translate = |address| table.translate_addr(VirtAddr::try_new(address).ok()?);
    let physical = translate(address)?.as_u64();
    let mut next_page = (address / PAGE + 1) * PAGE;
    while next_page < end {
        if translate(next_page)?.as_u64() != physical + (next_page - address) {
            return None;
        }
        next_page += PAGE;
    }
    Some(physical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_a_run_as_a_whole_has_an_address_there() {
        let run = Linear {
            start: 0x9000,
            len: 0x100,
            physical: 0x1000,
        };
        for (address, bytes, physical) in [
            (0x9000, 0x100, Some(0x1000)),
            (0x9010, 0xf0, Some(0x1010)),
            (0x90ff, 1, Some(0x10ff)),
            (0x9000, 0x101, None),
            (0x9010, 0xf1, None),
            (0x8fff, 1, None),
            (0x8fff, 2, None),
            (0x9101, 0, None),
            (0x9010, usize::MAX, None),
            (u64::MAX, usize::MAX, None),
        ] {
            let seen = run.physical(address, bytes);
            assert_eq!(seen, physical, "{bytes:#x} bytes at {address:#x}");
        }
    }
}
