//! What every kernel has: an allocator, a log, a panic handler, PCI configuration space, memory for devices. The guest without
//! a driver uses all of it, and it is kept out of line, so that it is no part of a driver's size.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE};
use vringlet::{Cause, Direction, DmaContext};

const SERIAL_DATA: u16 = 0x3f8;
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;

pub(crate) fn start() {
    let _ = log::set_logger(&Serial);
    log::set_max_level(LevelFilter::Trace);
    let place = crate::place();
    let command = Ports.read_word(place, 4);
    Ports.write_word(place, 4, command);
    let pages = pages_alloc(1);
    // Numbers, texts and lists as any kernel's log has them.
    log::info!(
        "up: {:>8} {command:#010x} {:02x?} {pages:?}",
        ticks(),
        [1u8, 2]
    );
}

pub(crate) fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The bound of each wait.
#[inline(never)]
pub(crate) fn is_in_time() -> bool {
    ticks() < 1 << 40
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    log::error!("{info}");
    stop()
}

fn write_byte(port: u16, value: u8) {
    // SAFETY: the ports used here are those of a PC, which has nothing at them that would touch memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

fn write_word(port: u16, value: u32) {
    // SAFETY: as for `write_byte`; what a PCI device is told here its driver answers for.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

fn read_word(port: u16) -> u32 {
    let value;
    // SAFETY: as for `write_byte`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// The serial line, and the log on it.
struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            write_byte(SERIAL_DATA, byte);
        }
        Ok(())
    }
}

impl Log for Serial {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let _ = writeln!(Self, "{} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// PCI configuration space by the ports that every PC has.
pub(crate) struct Ports;

impl Ports {
    fn select(function: DeviceFunction, register: u8) {
        let DeviceFunction {
            bus,
            device,
            function,
        } = function;
        let place = u32::from(bus) << 16 | u32::from(device) << 11 | u32::from(function) << 8;
        write_word(PCI_ADDRESS, 1 << 31 | place | u32::from(register));
    }
}

impl ConfigurationAccess for Ports {
    #[inline(never)]
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        Self::select(function, register);
        read_word(PCI_DATA)
    }

    #[inline(never)]
    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        Self::select(function, register);
        write_word(PCI_DATA, value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

const HEAP_LEN: usize = 16 << 20;

/// Memory that is handed out once.
#[repr(align(4096))]
struct Heap {
    bytes: core::cell::UnsafeCell<[u8; HEAP_LEN]>,
    used: AtomicUsize,
}

// SAFETY: each byte is handed out once.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap {
    bytes: core::cell::UnsafeCell::new([0; HEAP_LEN]),
    used: AtomicUsize::new(0),
};

// SAFETY: what is handed out lies inside `bytes`, is aligned as asked for, and is handed out once.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut start = 0;
        let place = |used: usize| {
            start = used.next_multiple_of(layout.align());
            let end = start.checked_add(layout.size())?;
            (end <= HEAP_LEN).then_some(end)
        };
        let relaxed = Ordering::Relaxed;
        match self.used.fetch_update(relaxed, relaxed, place) {
            Ok(_) => self.bytes.get().cast::<u8>().wrapping_add(start),
            Err(_) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[inline(never)]
fn pages_alloc(pages: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()?;
    // SAFETY: at least a page is asked for.
    NonNull::new(unsafe { HEAP.alloc_zeroed(layout) })
}

/// Memory as devices see it: where the program sees it.
#[derive(Clone)]
pub(crate) struct Identity;

// SAFETY: pages are handed out once and zeroed; every address is what it is for the program.
unsafe impl DmaContext for Identity {
    fn allocate(&self, pages: usize, _: Direction) -> Result<(u64, NonNull<u8>), Cause> {
        let start = pages_alloc(pages).ok_or(Cause::NoDmaMemory)?;
        Ok((start.as_ptr() as u64, start))
    }

    unsafe fn release(&self, _: u64, _: NonNull<u8>, _: usize) {}

    unsafe fn map(&self, bytes: NonNull<[u8]>, _: Direction) -> Result<u64, Cause> {
        Ok(bytes.cast::<u8>().as_ptr() as u64)
    }

    unsafe fn unmap(&self, _: u64, _: NonNull<[u8]>, _: Direction) {}

    fn map_registers(&self, address: u64, len: usize) -> Result<NonNull<u8>, Cause> {
        let bad = Cause::BadRegisters {
            address,
            len: len as u64,
        };
        NonNull::new(address as *mut u8).ok_or(bad)
    }
}

// SAFETY: as for `DmaContext`.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (u64, NonNull<u8>) {
        match pages_alloc(pages) {
            Some(start) => (start.as_ptr() as u64, start),
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: u64, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: u64, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(bytes: NonNull<[u8]>, _: BufferDirection) -> u64 {
        bytes.cast::<u8>().as_ptr() as u64
    }

    unsafe fn unshare(_: u64, _: NonNull<[u8]>, _: BufferDirection) {}
}
