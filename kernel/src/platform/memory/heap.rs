//! The heap: `linked_list_allocator` over one physically contiguous run, seen through the physical-memory mapping, so
//! that any heap buffer can be handed to a device as one address.
//!
//! Its size is fixed at boot: half of memory, at most 256 MiB. The rest is for devices: rings, and the pixels of displays. When it is used up, fallible callers get an error
//! and the others panic with the size they asked for.

#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use linked_list_allocator::Heap;
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

use super::{PAGE_BYTES, frames, quota};

const LARGEST: usize = 256 << 20;
const SMALLEST: usize = 1 << 20;
/// What large things must leave.
const HEADROOM: usize = 2 << 20;

/// The global allocator; `main.rs` declares it. There is one heap behind it.
pub struct KernelHeap;

static HEAP: Mutex<Heap> = Mutex::new(Heap::empty());

/// Gives the heap its memory.
pub(super) fn init(physical_memory_offset: u64) {
    let (free, _) = frames::usage();
    let mut bytes = (free * PAGE_BYTES / 2)
        .clamp(SMALLEST, LARGEST)
        .next_multiple_of(PAGE_BYTES);
    // The largest run may be smaller than half of all memory.
    let start = loop {
        if let Some(start) = frames::allocate(bytes / PAGE_BYTES, 1) {
            break start;
        }
        bytes = (bytes / 2).next_multiple_of(PAGE_BYTES);
        assert!(
            bytes >= SMALLEST,
            "no {SMALLEST} bytes of contiguous memory for the heap"
        );
    };
    let start = (physical_memory_offset + start.as_u64()) as usize;
    // SAFETY: the frames were just allocated for this, are mapped at the offset, and the heap is empty before.
    without_interrupts(|| unsafe { HEAP.lock().init(start as *mut u8, bytes) });
}

/// Room for so many elements, if enough is left beside it for what can't be refused.
pub fn room<T>(len: usize) -> Option<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(len).ok()?;
    let mut rest: Vec<u8> = Vec::new();
    rest.try_reserve_exact(HEADROOM).ok()?;
    Some(room)
}

/// Used and all bytes.
pub fn usage() -> (usize, usize) {
    without_interrupts(|| {
        let heap = HEAP.lock();
        (heap.used(), heap.size())
    })
}

// SAFETY: `Heap` hands out disjoint blocks of the layout asked for; the lock, taken with interrupts off, serialises.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !quota::may_take(layout.size()) {
            return null_mut();
        }
        let block = without_interrupts(|| HEAP.lock().allocate_first_fit(layout));
        block.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        quota::give_back(layout.size());
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller passes a block and layout that `alloc` gave out.
            without_interrupts(|| unsafe { HEAP.lock().deallocate(block, layout) });
        }
    }
}
