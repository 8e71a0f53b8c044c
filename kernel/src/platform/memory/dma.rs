//! Memory shared with devices: the kernel's `virtio_drivers::Hal`.
//!
//! There is no IOMMU: a device address is a physical address. Heap buffers are contiguous and shared where they are;
//! a buffer that is not (one on the stack, across pages) is copied through contiguous memory.

#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::{PAGE_BYTES, frames, paging};

/// What the drivers know of this kernel's memory.
pub struct KernelHal;

static PAGES_IN_USE: AtomicUsize = AtomicUsize::new(0);
static BOUNCES: AtomicUsize = AtomicUsize::new(0);

/// What a failed allocation and a failed share return as the device address.
const NO_ADDRESS: PhysAddr = 0;

/// Pages that drivers hold now, and how many buffers had to be copied so far.
pub fn usage() -> (usize, usize) {
    (
        PAGES_IN_USE.load(Ordering::Relaxed),
        BOUNCES.load(Ordering::Relaxed),
    )
}

// SAFETY: `dma_alloc` returns zeroed, page aligned frames that nothing else uses until they are released, mapped for
// as long as the kernel runs; `mmio_phys_to_virt` maps what is not memory.
unsafe impl Hal for KernelHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let failed = (NO_ADDRESS, NonNull::dangling());
        let Some(bytes) = pages.checked_mul(PAGE_BYTES) else {
            return failed;
        };
        let Some(start) = frames::allocate(pages, 1) else {
            log::warn!("dma: no {pages} contiguous pages left");
            return failed;
        };
        let Some(memory) = paging::memory_at(start.as_u64(), bytes) else {
            frames::release(start, pages);
            return failed;
        };
        // SAFETY: the frames were just allocated and are mapped at `memory`.
        unsafe { memory.as_ptr().write_bytes(0, bytes) };
        PAGES_IN_USE.fetch_add(pages, Ordering::Relaxed);
        (start.as_u64(), memory)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        let address = x86_64::PhysAddr::try_new(paddr);
        if address.is_ok_and(|start| frames::release(start, pages)) {
            PAGES_IN_USE.fetch_sub(pages, Ordering::Relaxed);
        } else {
            // The caller can do nothing about it (virtio-drivers panics on an error), and nothing was changed.
            log::error!("dma: {pages} pages at {paddr:#x} given back but not taken");
        }
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        paging::map_mmio(paddr, size).unwrap_or_else(|error| {
            log::error!(
                "registers at {paddr:#x}, {size:#x} bytes: {error}; treated as an absent device"
            );
            absent_device(size)
        })
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        if let Some(physical) = contiguous(buffer) {
            return physical;
        }
        let pages = buffer.len().div_ceil(PAGE_BYTES);
        let (physical, memory) = Self::dma_alloc(pages, direction);
        if physical == NO_ADDRESS {
            // There is no way to fail. A device that uses address 0 reaches the first page of memory, below
            // everything the kernel hands out.
            return NO_ADDRESS;
        }
        BOUNCES.fetch_add(1, Ordering::Relaxed);
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller lends `buffer`; the pages are new and at least as long.
            unsafe {
                memory
                    .as_ptr()
                    .copy_from_nonoverlapping(buffer.cast().as_ptr(), buffer.len())
            };
        }
        physical
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        // Most guests never copy a buffer, and need not find that out for each.
        let never_copied = BOUNCES.load(Ordering::Relaxed) == 0;
        if never_copied || paddr == NO_ADDRESS || contiguous(buffer) == Some(paddr) {
            return;
        }
        let Some(memory) = paging::memory_at(paddr, buffer.len()) else {
            return;
        };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: `share` allocated these pages for this buffer, and the device is done with them.
            unsafe {
                buffer
                    .cast::<u8>()
                    .as_ptr()
                    .copy_from_nonoverlapping(memory.as_ptr(), buffer.len())
            };
        }
        // SAFETY: as above; `share` got them from `dma_alloc` with this number of pages.
        unsafe { Self::dma_dealloc(paddr, memory, buffer.len().div_ceil(PAGE_BYTES)) };
    }
}

fn contiguous(buffer: NonNull<[u8]>) -> Option<u64> {
    paging::contiguous_physical(buffer.cast::<u8>().as_ptr() as u64, buffer.len())
}

/// Registers of a device that is not there: all ones. For a caller that cannot be told that mapping failed.
fn absent_device(bytes: usize) -> NonNull<u8> {
    let pages = bytes.div_ceil(PAGE_BYTES).max(1);
    let (physical, memory) = KernelHal::dma_alloc(pages, BufferDirection::Both);
    assert_ne!(
        physical, NO_ADDRESS,
        "no memory left to stand in for {bytes:#x} bytes of registers"
    );
    // SAFETY: `pages` new pages, never given back.
    unsafe { memory.as_ptr().write_bytes(0xff, pages * PAGE_BYTES) };
    memory
}
