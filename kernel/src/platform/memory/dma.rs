//! Memory shared with devices: [`KernelDma`], what every device's driver knows of this kernel's memory.
//!
//! There is no IOMMU: a device address is a physical address. Heap buffers are contiguous and lent where they are;
//! a buffer that is not (one on the stack, across pages) is copied through contiguous memory.

#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use vringlet::{Cause, Direction, DmaContext};

use super::{PAGE_BYTES, frames, paging};

/// How devices reach this kernel's memory: all of them alike.
#[derive(Clone, Copy, Debug)]
pub struct KernelDma;

static PAGES_IN_USE: AtomicUsize = AtomicUsize::new(0);
static BOUNCES: AtomicUsize = AtomicUsize::new(0);

/// Pages that drivers hold now, and how many buffers had to be copied so far.
pub fn usage() -> (usize, usize) {
    (
        PAGES_IN_USE.load(Ordering::Relaxed),
        BOUNCES.load(Ordering::Relaxed),
    )
}

// SAFETY: `allocate` gives zeroed, page-aligned frames in one run that nothing else uses until they are released, mapped
// for as long as the kernel runs; `map` gives where the bytes are, or where a copy of them is, which `unmap` brings back;
// `map_registers` maps nothing that is memory, uncached and for good.
unsafe impl DmaContext for KernelDma {
    fn allocate(&self, pages: usize, _: Direction) -> Result<(u64, NonNull<u8>), Cause> {
        let bytes = pages.checked_mul(PAGE_BYTES).ok_or(Cause::NoDmaMemory)?;
        let Some(start) = frames::allocate(pages, 1) else {
            log::warn!("dma: no {pages} contiguous pages left");
            return Err(Cause::NoDmaMemory);
        };
        let Some(memory) = paging::memory_at(start.as_u64(), bytes) else {
            frames::release(start, pages);
            return Err(Cause::NoDmaMemory);
        };
        // SAFETY: the frames were just allocated and are mapped at `memory`.
        unsafe { memory.as_ptr().write_bytes(0, bytes) };
        PAGES_IN_USE.fetch_add(pages, Ordering::Relaxed);
        Ok((start.as_u64(), memory))
    }

    unsafe fn release(&self, address: u64, _: NonNull<u8>, pages: usize) {
        let start = x86_64::PhysAddr::try_new(address);
        if start.is_ok_and(|start| frames::release(start, pages)) {
            PAGES_IN_USE.fetch_sub(pages, Ordering::Relaxed);
        } else {
            // The caller can do nothing about it, and nothing was changed.
            log::error!("dma: {pages} pages at {address:#x} given back but not taken");
        }
    }

    #[inline(always)]
    unsafe fn map(&self, bytes: NonNull<[u8]>, direction: Direction) -> Result<u64, Cause> {
        if let Some(physical) = contiguous(bytes) {
            return Ok(physical);
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.map_copy(bytes, direction) }
    }

    #[inline(always)]
    unsafe fn unmap(&self, address: u64, bytes: NonNull<[u8]>, direction: Direction) {
        // Most guests never copy a buffer, and need not find that out for each.
        let never_copied = BOUNCES.load(Ordering::Relaxed) == 0;
        if never_copied || contiguous(bytes) == Some(address) {
            return;
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.unmap_copy(address, bytes, direction) }
    }

    fn map_registers(&self, address: u64, len: usize) -> Result<NonNull<u8>, Cause> {
        paging::map_mmio(address, len).map_err(|error| {
            log::warn!("registers at {address:#x}, {len:#x} bytes: {error}");
            let len = len as u64;
            Cause::BadRegisters { address, len }
        })
    }
}

impl KernelDma {
    /// Lends a copy of the bytes.
    ///
    /// # Safety
    ///
    /// As for [`DmaContext::map`].
    #[cold]
    unsafe fn map_copy(&self, bytes: NonNull<[u8]>, direction: Direction) -> Result<u64, Cause> {
        let pages = bytes.len().div_ceil(PAGE_BYTES);
        let (physical, memory) = self.allocate(pages, direction)?;
        BOUNCES.fetch_add(1, Ordering::Relaxed);
        if direction != Direction::FromDevice {
            // SAFETY: the caller lends `bytes`; the pages are new and at least as long.
            unsafe {
                memory
                    .as_ptr()
                    .copy_from_nonoverlapping(bytes.cast().as_ptr(), bytes.len())
            };
        }
        Ok(physical)
    }

    /// Ends a loan of [`Self::map_copy`].
    ///
    /// # Safety
    ///
    /// As for [`DmaContext::unmap`].
    #[cold]
    unsafe fn unmap_copy(&self, address: u64, bytes: NonNull<[u8]>, direction: Direction) {
        let Some(memory) = paging::memory_at(address, bytes.len()) else {
            return;
        };
        if direction != Direction::ToDevice {
            // SAFETY: `map_copy` allocated these pages for these bytes, and the device is done with them.
            unsafe {
                bytes
                    .cast::<u8>()
                    .as_ptr()
                    .copy_from_nonoverlapping(memory.as_ptr(), bytes.len())
            };
        }
        // SAFETY: as above; `map_copy` got them from `allocate` with this number of pages.
        unsafe { self.release(address, memory, bytes.len().div_ceil(PAGE_BYTES)) };
    }
}

#[inline(always)]
fn contiguous(bytes: NonNull<[u8]>) -> Option<u64> {
    paging::contiguous_physical(bytes.cast::<u8>().as_ptr() as u64, bytes.len())
}
