//! What the kernel is told.

use core::mem::{align_of, size_of};
use core::ptr::with_exposed_provenance_mut;
use core::slice;

use bootloader_api::BootInfo;
use bootloader_api::info::{MemoryRegion, MemoryRegions};
use vringlet_boot::memory_map::{MemoryMap, PAGE};

/// Where the regions begin, after the [`BootInfo`].
const REGIONS: u64 = size_of::<BootInfo>().next_multiple_of(align_of::<MemoryRegion>()) as u64;

/// Room for a [`BootInfo`] and the largest memory map, in whole pages.
pub(crate) const SIZE: u64 =
    (REGIONS + (MemoryMap::CAPACITY * size_of::<MemoryRegion>()) as u64).next_multiple_of(PAGE);

/// Puts a [`BootInfo`] at an address, and the memory map behind it; `fill` does the rest.
///
/// # Safety
///
/// [`SIZE`] bytes must be mapped there, in the loader's and in the kernel's address space alike, and be
/// used for nothing else.
pub(crate) unsafe fn write(address: u64, map: &MemoryMap, fill: impl FnOnce(&mut BootInfo)) {
    let regions = with_exposed_provenance_mut::<MemoryRegion>((address + REGIONS) as usize);
    let count = map.regions().len().min(MemoryMap::CAPACITY);
    // SAFETY: `SIZE` has room for both, page-aligned as it is, and the rest is the caller's promise.
    unsafe {
        regions.copy_from_nonoverlapping(map.regions().as_ptr(), count);
        let regions: MemoryRegions = slice::from_raw_parts_mut(regions, count).into();
        let info = with_exposed_provenance_mut::<BootInfo>(address as usize);
        info.write(BootInfo::new(regions));
        fill(&mut *info);
    }
}
