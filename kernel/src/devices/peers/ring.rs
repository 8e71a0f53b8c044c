//! A virtqueue with read requests in it that is handed to the device again and again: no driver can do less than move the index, kick
//! and sleep.

use alloc::string::String;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use virtio_drivers::transport::Transport as _;
use vringlet::features::RingFeatures;
use vringlet::{Direction, DmaContext};
use x86_64::instructions::interrupts;

use super::{Transport, take, text};
use crate::platform::memory::PAGE_BYTES;
use crate::platform::memory::dma::KernelDma;

/// Entries of the queue.
const SIZE: u16 = 256;
/// Where the parts of the queue are: descriptors first.
const AVAIL: usize = 4096;
const USED: usize = 8192;
/// Headers and status bytes.
const HEADERS: usize = 12288;
const PAGES: usize = 4;
/// Descriptors of a request: header, data, status.
const DESCRIPTORS: usize = 3;
const MAX_DEPTH: usize = 64;

const NEXT: u64 = 1;
const WRITE: u64 = 2;

/// Memory that the device has for good.
struct Memory(*mut u8);

impl Memory {
    fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: this module's offsets are aligned and inside of the pages, which are never freed.
        unsafe { AtomicU16::from_ptr(self.0.add(offset).cast()) }
    }

    fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.0.add(offset).cast()) }
    }
}

/// Has the device do `count` reads of `bytes`, `depth` at a time, between calls of `mark`. The processor sleeps until all of them are
/// done, and does nothing else meanwhile.
pub fn replay(bytes: usize, depth: usize, count: u64, mark: [fn(); 2]) -> Result<(), String> {
    if !depth.is_power_of_two() || depth > MAX_DEPTH {
        return Err(alloc::format!(
            "iodepth is a power of two up to {MAX_DEPTH}"
        ));
    }
    let (mut transport, _) = take()?;
    let offered = RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX;
    let accepted: RingFeatures = transport.begin_init(offered);
    if accepted != offered {
        return Err("the device has no EVENT_IDX".into());
    }
    let (address, start) = KernelDma.allocate(PAGES, Direction::Both).map_err(text)?;
    let data_pages = (depth * bytes).div_ceil(PAGE_BYTES);
    let (data, _) = KernelDma
        .allocate(data_pages, Direction::Both)
        .map_err(text)?;
    let memory = Memory(start.as_ptr());
    for slot in 0..depth {
        let header = HEADERS + slot * 32;
        memory.u64(header).store(0, Ordering::Relaxed);
        let sector = slot * bytes / 512;
        memory
            .u64(header + 8)
            .store(sector as u64, Ordering::Relaxed);
        let first = slot * DESCRIPTORS;
        let header = address + header as u64;
        for (number, (address, len, flags)) in [
            (header, 16, NEXT),
            (data + (slot * bytes) as u64, bytes as u64, NEXT | WRITE),
            (header + 16, 1, WRITE),
        ]
        .into_iter()
        .enumerate()
        {
            let next = (first + number + 1) as u64;
            let at = (first + number) * 16;
            memory.u64(at).store(address, Ordering::Relaxed);
            let rest = len | flags << 32 | next << 48;
            memory.u64(at + 8).store(rest, Ordering::Relaxed);
        }
    }
    for entry in 0..usize::from(SIZE) {
        let first = entry % depth * DESCRIPTORS;
        memory
            .u16(AVAIL + 4 + 2 * entry)
            .store(first as u16, Ordering::Relaxed);
    }
    transport.queue_set(
        0,
        SIZE.into(),
        address,
        address + AVAIL as u64,
        address + USED as u64,
    );
    transport.finish_init();
    if let Some(error) = transport.failure() {
        return Err(text(error));
    }
    let [start, end] = mark;
    start();
    turn(&memory, &mut transport, depth as u16, count);
    end();
    Ok(())
}

fn turn(memory: &Memory, transport: &mut Transport, depth: u16, count: u64) {
    let available = memory.u16(AVAIL + 2);
    let used = memory.u16(USED + 2);
    let used_event = memory.u16(AVAIL + 4 + 2 * usize::from(SIZE));
    let mut index = 0u16;
    for _ in 0..count.div_ceil(depth.into()) {
        index = index.wrapping_add(depth);
        // An interrupt with the last of them.
        used_event.store(index.wrapping_sub(1), Ordering::Relaxed);
        fence(Ordering::Release);
        available.store(index, Ordering::Relaxed);
        transport.notify(0);
        while used.load(Ordering::Acquire) != index {
            interrupts::disable();
            if used.load(Ordering::Acquire) == index {
                interrupts::enable();
                break;
            }
            // It takes effect after the `hlt` has begun.
            interrupts::enable_and_hlt();
        }
    }
}
