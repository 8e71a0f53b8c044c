//! Segments, and the task state segment that gives faults stacks of their own.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ops::Range;

use spin::LazyLock;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

/// Which of the task state segment's stacks a fault runs on. A fault on a broken stack must not need that stack, and
/// one that interrupts the report of another must not overwrite it.
#[derive(Clone, Copy)]
pub(in crate::platform) enum FaultStack {
    DoubleFault = 0,
    NonMaskable = 1,
    MachineCheck = 2,
    PageFault = 3,
}

const STACKS: usize = 4;
const STACK_BYTES: usize = 32 * 1024;

#[repr(C, align(16))]
struct Stacks([UnsafeCell<[u8; STACK_BYTES]>; STACKS]);

// SAFETY: only the processor writes to the stacks, when a fault makes it switch to one; no reference is ever made.
unsafe impl Sync for Stacks {}

static FAULT_STACKS: Stacks = Stacks([const { UnsafeCell::new([0; STACK_BYTES]) }; STACKS]);

static TSS: LazyLock<TaskStateSegment> = LazyLock::new(|| {
    let mut tss = TaskStateSegment::new();
    // The structure is packed: no references into it.
    for index in 0..STACKS {
        let top = VirtAddr::from_ptr(FAULT_STACKS.0[index].get()) + STACK_BYTES as u64;
        tss.interrupt_stack_table[index] = top;
    }
    tss
});

struct Segments {
    table: GlobalDescriptorTable,
    code: SegmentSelector,
    data: SegmentSelector,
    task_state: SegmentSelector,
}

static SEGMENTS: LazyLock<Segments> = LazyLock::new(|| {
    let mut table = GlobalDescriptorTable::new();
    let code = table.append(Descriptor::kernel_code_segment());
    let data = table.append(Descriptor::kernel_data_segment());
    let task_state = table.append(Descriptor::tss_segment(&TSS));
    Segments {
        table,
        code,
        data,
        task_state,
    }
});

/// Loads the segments and the fault stacks.
pub(super) fn init() {
    SEGMENTS.table.load();
    // SAFETY: the table just loaded is static and the selectors are those of its entries: flat 64-bit code and data
    // as the boot loader had them, and a TSS that is loaded once.
    unsafe {
        CS::set_reg(SEGMENTS.code);
        SS::set_reg(SEGMENTS.data);
        DS::set_reg(SEGMENTS.data);
        ES::set_reg(SEGMENTS.data);
        load_tss(SEGMENTS.task_state);
    }
}

/// The addresses of the fault stacks, where a backtrace may walk.
pub(super) fn fault_stacks() -> Range<u64> {
    let start = FAULT_STACKS.0.as_ptr() as u64;
    start..start + (STACKS * STACK_BYTES) as u64
}
