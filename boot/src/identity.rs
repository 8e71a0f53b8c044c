//! Physical memory as the loader sees it: the first 4 GiB at their own addresses.

use core::ptr::with_exposed_provenance;
use core::ptr::with_exposed_provenance_mut;
use core::slice;

use vringlet_boot::physical::PhysicalMemory;

/// The end of what `entry.s` maps.
const END: u64 = 1 << 32;

/// The first 4 GiB of physical memory.
pub(crate) struct Identity;

impl PhysicalMemory for Identity {
    fn bytes(&self, address: u64, length: u64) -> Option<&[u8]> {
        // Address 0 would make a null reference.
        let end = address.checked_add(length).filter(|&end| end <= END)?;
        let length = usize::try_from(end - address).ok()?;
        if address == 0 {
            return None;
        }
        // SAFETY: all of it is mapped, and any bytes will do. The loader reads what firmware left
        // before it allocates, and it allocates only what firmware calls free.
        Some(unsafe { slice::from_raw_parts(with_exposed_provenance(address as usize), length) })
    }
}

/// Memory that the loader has allocated.
///
/// # Safety
///
/// It must be below 4 GiB, allocated, and not referred to otherwise.
pub(crate) unsafe fn allocated(address: u64, length: u64) -> &'static mut [u8] {
    // SAFETY: mapped; the rest is the caller's promise.
    unsafe {
        slice::from_raw_parts_mut(
            with_exposed_provenance_mut(address as usize),
            length as usize,
        )
    }
}
