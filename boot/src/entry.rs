//! The way in from the firmware (32-bit code) and the way out into the kernel.

use core::arch::global_asm;
use core::ops::Range;

use vringlet_boot::memory_map::PAGE;
use x86_64::structures::paging::PageTable;

global_asm!(include_str!("entry.s"));

unsafe extern "C" {
    static loader_start: u8;
    static loader_end: u8;
    static mut identity_level_4: PageTable;
    #[link_name = "handover"]
    static handover_page: u8;
    fn handover(boot_info: u64, stack_end: u64, entry_point: u64, level_4_table: u64) -> !;
}

/// Where the loader is, with the kernel's file in it.
pub(crate) fn image() -> Range<u64> {
    (&raw const loader_start) as u64..(&raw const loader_end) as u64
}

/// The page that must be mapped at its own address, executable, wherever [`enter`] goes.
pub(crate) fn shared_page() -> Range<u64> {
    let start = (&raw const handover_page) as u64;
    start..start + PAGE
}

/// The physical address of the level 4 table that the loader runs on.
pub(crate) fn own_level_4_table() -> u64 {
    (&raw const identity_level_4) as u64
}

/// What a kernel is entered with; all addresses are virtual ones in its own address space but the
/// physical one of its level 4 table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) level_4_table: u64,
    pub(crate) entry_point: u64,
    pub(crate) stack_end: u64,
    pub(crate) boot_info: u64,
}

/// Leaves the loader for ever.
///
/// # Safety
///
/// The page tables must map the [shared page](shared_page) and what the other fields point to, and
/// the kernel must be one that takes a `&'static mut BootInfo`.
pub(crate) unsafe fn enter(start: Start) -> ! {
    // SAFETY: the caller's promise.
    unsafe {
        handover(
            start.boot_info,
            start.stack_end,
            start.entry_point,
            start.level_4_table,
        )
    }
}
