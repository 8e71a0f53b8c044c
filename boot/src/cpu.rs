//! What this CPU can do, and switching it on. Long mode is already on.

use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

/// Features that decide what page tables look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// Pages can be made non-executable.
    pub(crate) no_execute: bool,
    /// Pages can be 1 GiB large.
    pub(crate) huge_pages: bool,
    /// The first physical address that the CPU can't address.
    pub(crate) memory_end: u64,
}

/// Switches on no-execute pages (where the CPU has them), write protection in the kernel and SSE.
pub(crate) fn enable_features() -> Cpu {
    let cpuid = CpuId::new();
    let features = cpuid.get_extended_processor_and_feature_identifiers();
    let capacity = cpuid.get_processor_capacity_feature_info();
    let cpu = Cpu {
        no_execute: features.as_ref().is_some_and(|f| f.has_execute_disable()),
        huge_pages: features.as_ref().is_some_and(|f| f.has_1gib_pages()),
        // At least 36 bits in every CPU with long mode, at most 52 in a page table.
        memory_end: 1 << capacity.map_or(36, |c| c.physical_address_bits().clamp(36, 52)),
    };
    // SAFETY: every CPU with long mode has SSE2; no-execute is switched on only where it exists. The
    // loader's own page tables have only writable, executable pages, so nothing changes for them.
    unsafe {
        Cr0::update(|cr0| {
            cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            cr0.insert(Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::WRITE_PROTECT);
        });
        Cr4::update(|cr4| cr4.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE));
        if cpu.no_execute {
            Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE));
        }
    }
    cpu
}
