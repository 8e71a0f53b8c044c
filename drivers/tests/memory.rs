//! How much memory the drivers take, and what they say when there is none: heap and memory for DMA told apart.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use virtio_drivers::PAGE_SIZE;
use vringlet::blk::{self, Blk};
use vringlet::fake::{
    DeviceModel, FakeBlk, FakeDevice, FakeGpu, FakeHal, FakeNic, FakePmem, FakeRng, FakeSound,
    FakeTransport, Memory,
};
use vringlet::gpu::{self, Gpu};
use vringlet::net::{self, Net};
use vringlet::pmem::{self, Pmem};
use vringlet::rng::{self, Rng};
use vringlet::sound::{self, Sound};
use vringlet::stock::{FromStock, IntoStock, StockDma};
use vringlet::{Cause, Error, Location};

/// The system's allocator, but it counts what each thread has, and a thread can have it refuse what is large. The fake
/// platform takes its memory for DMA from there too, in pages, and is always served.
struct Heap;

thread_local! {
    /// From how many bytes on there is no memory.
    static REFUSED: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Bytes that the thread has of the heap.
    static HEAP_BYTES: Cell<isize> = const { Cell::new(0) };
    /// And in pages, for DMA.
    static DMA_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(layout: Layout, sign: isize) {
    let bytes = match layout.align() < PAGE_SIZE {
        true => &HEAP_BYTES,
        false => &DMA_BYTES,
    };
    bytes.set(bytes.get() + sign * layout.size() as isize);
}

// SAFETY: what is given is the system's.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= REFUSED.get() && layout.align() < PAGE_SIZE {
            return std::ptr::null_mut();
        }
        count(layout, 1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(layout, -1);
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

/// A way to the device with a DMA context that takes no room, as that of a kernel without an IOMMU.
fn lean<M: DeviceModel>(
    device: &FakeDevice<M>,
) -> FromStock<IntoStock<FakeTransport<M>>, StockDma<FakeHal>> {
    // SAFETY: there is no other driver, and the stock trait is used by our own adapter only; the fake's `Hal` maps nothing.
    unsafe {
        let stock = IntoStock::new(device.transport()).expect("a type that it knows");
        FromStock::new(stock, Location::Other(0), StockDma::new())
    }
}

/// KiB of heap and of memory for DMA that what `make` makes has. The fake device's account of what it was given is among
/// the heap's.
fn taken<T>(make: impl FnOnce() -> Result<T, Error>) -> [usize; 2] {
    let memory = Memory::current();
    // Else it copies what it is lent.
    memory.set_bounce(false);
    let now = || [HEAP_BYTES.get(), DMA_BYTES.get()];
    let before = now();
    let made = make().expect("an honest device");
    let after = now();
    drop(made);
    memory.assert_clean();
    std::array::from_fn(|of| {
        usize::try_from(after[of] - before[of])
            .expect("more")
            .div_ceil(1024)
    })
}

/// Holds a driver to what the documentation of its options says, within an eighth for the heap: at most that much, and no
/// less, so that the documentation does not scare anybody.
fn check(driver: &str, documented: [usize; 2], measured: [usize; 2]) {
    let [heap, dma] = documented;
    assert_eq!(measured[1], dma, "{driver}: KiB for DMA");
    let near = heap - heap / 8 - 1..=heap;
    assert!(
        near.contains(&measured[0]),
        "{driver}: {} KiB of heap",
        measured[0]
    );
}

#[test]
fn drivers_take_as_much_memory_as_their_options_say() {
    Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(8));
    let blk = |options| taken(|| Blk::new(lean(&device), options));
    check("blk", [52, 32], blk(blk::Options::default()));
    let least = blk::Options {
        queue_size: 4,
        ..Default::default()
    };
    check("least blk", [2, 4], blk(least));

    let device = FakeDevice::new(FakeRng::new());
    let rng = |options| taken(|| Rng::new(lean(&device), options));
    check("rng", [3, 4], rng(rng::Options::default()));

    let device = FakeDevice::new(FakeNic::new());
    let net = |options| taken(|| Net::new(lean(&device), options));
    check("net", [1098, 56], net(net::Options::default()));
    let small = net::Options {
        receive_queue_size: 8,
        receive_buffers: 8,
        transmit_queue_size: 4,
        ..Default::default()
    };
    check("small net", [42, 16], net(small));
    let least = net::Options {
        receive_queue_size: 2,
        receive_buffers: 2,
        receive_buffer_len: 0,
        transmit_queue_size: 1,
        ..Default::default()
    };
    check("least net", [21, 16], net(least));

    let device = FakeDevice::new(FakeNic::offloading());
    let net = |options| taken(|| Net::new(lean(&device), options));
    check("offloading net", [2104, 56], net(net::Options::default()));
    let small = net::Options {
        large_receive_buffers: 0,
        large_transmit_buffers: 0,
        ..small
    };
    check("small offloading net", [42, 16], net(small));

    let device = FakeDevice::new(FakeGpu::new());
    let gpu = |options| taken(|| Gpu::new(lean(&device), options));
    check("gpu", [30, 16], gpu(gpu::Options::default()));
    let least = gpu::Options {
        control_queue_size: 4,
        cursor_queue_size: 2,
        ..Default::default()
    };
    check("least gpu", [13, 8], gpu(least));

    let device = FakeDevice::new(FakeSound::new());
    let sound = |options| taken(|| Sound::new(lean(&device), options));
    check("sound", [64, 32], sound(sound::Options::default()));
    let least = sound::Options {
        control_queue_size: 4,
        transfer_queue_size: 4,
        ..Default::default()
    };
    check("least sound", [6, 16], sound(least));

    // A type that virtio-drivers has no name for.
    let device = FakeDevice::new(FakePmem::new(4096));
    let pmem = |options| taken(|| Pmem::new(device.transport(), options));
    check("pmem", [5, 4], pmem(pmem::Options::default()));
}
