//! The processor: segments, traps, backtraces, and what CPUID says it can do.

pub mod backtrace;
pub mod cpu;
mod gdt;
pub mod marker;
pub mod provoke;
mod traps;

use bootloader_api::BootInfo;

/// Takes the processor over from the boot loader: own segments, own stacks for faults, every trap reported.
pub fn init(boot: &BootInfo, physical_memory_offset: u64) {
    backtrace::init(boot, physical_memory_offset);
    gdt::init();
    traps::init();
}
