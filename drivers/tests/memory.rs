//! How much memory the drivers take, and what they say when there is none: heap and memory for DMA told apart.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use virtio_drivers::PAGE_SIZE;
use vringlet::blk::{self, Blk};
use vringlet::fake::{FakeBlk, FakeDevice, FakeNic, FakeSound, Memory};
use vringlet::net::{self, Net};
use vringlet::sound::{self, Sound};
use vringlet::{Cause, Error};

/// The system's allocator, but a thread can have it refuse what is large. The fake platform takes its memory for DMA from
/// there too, in pages, and is always served.
struct Heap;

thread_local! {
    /// From how many bytes on there is no memory.
    static REFUSED: Cell<usize> = const { Cell::new(usize::MAX) };
}

// SAFETY: what is given is the system's.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= REFUSED.get() && layout.align() < PAGE_SIZE {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

/// Makes something while the heap has nothing of `refused` bytes or more.
fn short_of<T>(refused: usize, make: impl FnOnce() -> T) -> T {
    REFUSED.set(refused);
    let made = make();
    REFUSED.set(usize::MAX);
    made
}

/// How making a driver fails while the heap has nothing of a size that only its queues ask for, and while the platform has
/// no memory for DMA.
fn causes<T>(
    memory: &Memory,
    refused: usize,
    make: impl Fn() -> Result<T, Error>,
) -> [Option<Cause>; 2] {
    let heap = short_of(refused, &make).err();
    memory.assert_clean();
    memory.fail_allocations_after(0);
    let dma = make().err();
    memory.fail_allocations_after(None);
    memory.assert_clean();
    [heap, dma].map(|error| error.map(|error| error.cause))
}

#[test]
fn no_heap_is_told_from_no_memory_for_dma() {
    const EACH: [Option<Cause>; 2] = [Some(Cause::NoMemory), Some(Cause::NoDmaMemory)];
    let memory = Memory::fresh();
    let blk = FakeDevice::new(FakeBlk::new(8));
    let make = || Blk::new(blk.transport(), blk::Options::default());
    assert_eq!(causes(&memory, 4096, make), EACH);
    let sound = FakeDevice::new(FakeSound::new());
    let make = || Sound::new(sound.transport(), sound::Options::default());
    assert_eq!(causes(&memory, 4096, make), EACH);
    // The buffers for frames, and with short ones a queue.
    let nic = FakeDevice::new(FakeNic::new());
    let make = || Net::new(nic.transport(), net::Options::default());
    assert_eq!(causes(&memory, 2048, make), EACH);
    assert_eq!(causes(&memory, 8192, make), EACH);
}

#[test]
fn a_request_without_heap_says_so() {
    Memory::fresh();
    let cause = short_of(16, || blk::Request::get_id().err());
    assert_eq!(cause, Some(Cause::NoMemory));
    let cause = short_of(16, || blk::Request::discard(&[0..8, 16..24]).err());
    assert_eq!(cause, Some(Cause::NoMemory));
    assert!(blk::Request::get_id().is_ok());
}
