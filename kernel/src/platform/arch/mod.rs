//! The processor: segments, backtraces, and what CPUID says it can do.

pub mod backtrace;
pub mod cpu;
pub(super) mod gdt;
pub mod marker;
pub mod provoke;

use bootloader_api::BootInfo;

/// Takes the processor over from the boot loader: own segments, own stacks for faults.
pub fn init(boot: &BootInfo, physical_memory_offset: u64) {
    backtrace::init(boot, physical_memory_offset);
    gdt::init();
}
