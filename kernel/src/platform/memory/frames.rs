//! Physical memory by the frame, one bitmap per run of usable memory.

#![allow(unsafe_code)]

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use spin::Mutex;
use x86_64::PhysAddr;
use x86_64::structures::paging::{FrameAllocator, PhysFrame, Size4KiB};

use super::PAGE_BYTES;
use super::bitmap::Bitmap;

const FRAME: u64 = PAGE_BYTES as u64;
/// Below lie the firmware's data and whatever a stray device address of 0 would hit: never handed out.
const LOWEST: u64 = 0x10_0000;
const MAX_RUNS: usize = 32;

struct Run {
    first_frame: u64,
    bitmap: Bitmap<'static>,
}

static RUNS: Mutex<[Option<Run>; MAX_RUNS]> = Mutex::new([const { None }; MAX_RUNS]);

/// Builds the bitmaps, in the first usable memory that has room for them.
pub(super) fn init(regions: &[MemoryRegion], physical_memory_offset: u64) {
    let mut runs = runs(regions);
    let words_of = |&(start, end): &(u64, u64)| Bitmap::words_for(((end - start) / FRAME) as usize);
    let bytes = runs.iter().map(words_of).sum::<usize>() as u64 * 8;
    let home = runs
        .iter_mut()
        .find(|(start, end)| end - start > bytes + FRAME)
        .expect("no usable memory of any size in the boot loader's memory map");
    let words_start = home.0;
    home.0 = (home.0 + bytes).next_multiple_of(FRAME);

    let mut words = (physical_memory_offset + words_start) as *mut u64;
    let mut table = RUNS.lock();
    for (slot, run) in table.iter_mut().zip(runs.iter()) {
        let length = words_of(run);
        // SAFETY: the memory map calls this memory usable, it is mapped at the offset, it was just cut out of the
        // run it lies in, and each run's words follow the previous run's.
        let bits = unsafe { core::slice::from_raw_parts_mut(words, length) };
        words = words.wrapping_add(length);
        *slot = Some(Run {
            first_frame: run.0 / FRAME,
            bitmap: Bitmap::new(bits, ((run.1 - run.0) / FRAME) as usize),
        });
    }
}

/// Bytes of the usable memory that [`init`] makes use of, its bitmaps among them.
pub(super) fn count_usable(regions: &[MemoryRegion]) -> u64 {
    runs(regions).iter().map(|(start, end)| end - start).sum()
}

/// The usable memory by its runs: what borders on something else is one with it.
fn runs(regions: &[MemoryRegion]) -> heapless::Vec<(u64, u64), MAX_RUNS> {
    let mut runs = heapless::Vec::<(u64, u64), MAX_RUNS>::new();
    for (start, end) in usable(regions) {
        match runs.last_mut() {
            Some((_, last_end)) if *last_end == start => *last_end = end,
            _ => {
                // More separate runs than any machine has: the rest stays unused rather than stop the boot.
                if runs.push((start, end)).is_err() {
                    break;
                }
            }
        }
    }
    runs
}

/// The usable memory, in whole frames.
fn usable(regions: &[MemoryRegion]) -> impl Iterator<Item = (u64, u64)> {
    regions
        .iter()
        .filter(|region| region.kind == MemoryRegionKind::Usable)
        .map(|region| {
            (
                region.start.max(LOWEST).next_multiple_of(FRAME),
                region.end / FRAME * FRAME,
            )
        })
        .filter(|(start, end)| start < end)
}

/// Takes `count` frames in a row whose first address is a multiple of `align` frames (a power of two).
pub fn allocate(count: usize, align: usize) -> Option<PhysAddr> {
    let mut runs = RUNS.lock();
    // High memory first: what lies low is scarce, and some devices can reach nothing else.
    runs.iter_mut().rev().flatten().find_map(|run| {
        let phase = (run.first_frame as usize).wrapping_neg() & (align - 1);
        let frame = run.bitmap.allocate(count, align, phase)?;
        Some(PhysAddr::new((run.first_frame + frame as u64) * FRAME))
    })
}

/// Gives frames back. Returns false, and changes nothing, unless all of them were taken.
pub fn release(start: PhysAddr, count: usize) -> bool {
    let first = start.as_u64() / FRAME;
    let mut runs = RUNS.lock();
    runs.iter_mut().flatten().any(|run| {
        first
            .checked_sub(run.first_frame)
            .is_some_and(|frame| run.bitmap.release(frame as usize, count))
    })
}

/// Free and all frames.
pub fn usage() -> (usize, usize) {
    RUNS.lock()
        .iter()
        .flatten()
        .fold((0, 0), |(free, all), run| {
            (free + run.bitmap.free_frames(), all + run.bitmap.frames())
        })
}

/// Frames for page tables.
pub(super) struct PageTableFrames;

// SAFETY: `allocate` hands out each frame once, and only frames that nothing else uses.
unsafe impl FrameAllocator<Size4KiB> for PageTableFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        allocate(1, 1).map(PhysFrame::containing_address)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn memory_that_is_not_used_does_not_count() {
        let region = |start, end| MemoryRegion {
            start,
            end,
            kind: MemoryRegionKind::Usable,
        };
        // A frame, and one that nobody can use, in turns.
        let place = |number: usize| LOWEST + 2 * FRAME * number as u64;
        let many = (0..MAX_RUNS + 8).map(|number| region(place(number), place(number) + FRAME));
        let many: Vec<_> = many.collect();
        assert_eq!(count_usable(&many), MAX_RUNS as u64 * FRAME);
        assert_eq!(count_usable(&many[..3]), 3 * FRAME);
        // Two that border on each other are one run.
        let bordering = [region(LOWEST, place(1)), region(place(1), place(2))];
        assert_eq!(runs(&bordering).as_slice(), [(LOWEST, place(2))]);
        // Half a frame is none, and what lies low is left alone.
        assert_eq!(count_usable(&[region(0, LOWEST + FRAME / 2)]), 0);
    }
}
