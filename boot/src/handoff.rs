//! What the loader learns from whoever started it, by whichever protocol.

use core::ops::Range;

use crate::memory_map::MemoryMap;

/// What the loader was told about the machine.
#[derive(Debug)]
pub struct Handoff {
    /// The memory, without what holds the rest of the information.
    pub memory: MemoryMap,
    /// Where the ACPI RSDP is said to be; 0 if nothing was said.
    pub rsdp_hint: u64,
    /// Physical addresses of the ramdisk (`-initrd`): bytes, not pages.
    pub ramdisk: Option<Range<u64>>,
}
