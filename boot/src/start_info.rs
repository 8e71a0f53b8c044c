//! `hvm_start_info`: what a PVH boot hands over
//! (<https://xenbits.xen.org/docs/unstable/misc/pvh.html>).
//!
//! Every field is written by the firmware or by QEMU, and none is trusted.

use core::ops::Range;

use zerocopy::FromBytes;

use crate::error::Error;
use crate::handoff::Handoff;
use crate::memory_map::{Entry, MemoryMap};
use crate::physical::PhysicalMemory;

/// The first field of `hvm_start_info`.
pub const MAGIC: u32 = 0x336e_c578;

/// More modules than this are a mistake: QEMU hands over one at most, its `-initrd`.
const MAX_MODULES: u32 = 8;

/// `struct hvm_start_info`, version 1.
#[derive(FromBytes)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    _flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    _cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    _reserved: u32,
}

/// `struct hvm_modlist_entry`.
#[derive(FromBytes)]
#[repr(C)]
struct Module {
    paddr: u64,
    size: u64,
    _cmdline_paddr: u64,
    _reserved: u64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(FromBytes)]
#[repr(C)]
struct MemmapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    _reserved: u32,
}

/// Reads the `hvm_start_info` at a physical address. Memory at `memory_end` and above is beyond what
/// the CPU can address, and ignored.
///
/// In the map that is returned, the structure itself and all it refers to is reserved.
pub fn read(memory: &impl PhysicalMemory, address: u64, memory_end: u64) -> Result<Handoff, Error> {
    let wrong = |what, value| Error::Handoff { what, value };

    let info: StartInfo = memory
        .read(address)
        .ok_or(wrong("hvm_start_info is out of reach", address))?;
    if info.magic != MAGIC {
        return Err(wrong("hvm_start_info has a wrong magic", info.magic.into()));
    }
    if info.version == 0 {
        return Err(wrong("hvm_start_info version 0 has no memory map", address));
    }

    if info.memmap_entries as usize > MemoryMap::MAX_ENTRIES {
        return Err(wrong(
            "memmap_entries is too large",
            info.memmap_entries.into(),
        ));
    }
    let memmap = memory
        .table::<MemmapEntry>(info.memmap_paddr, info.memmap_entries)
        .ok_or(wrong("memmap_paddr is out of reach", info.memmap_paddr))?;
    let mut map = MemoryMap::new(
        memmap.map(|entry| Entry {
            start: entry.addr,
            length: entry.size,
            kind: entry.kind,
        }),
        memory_end,
    )?;
    map.reserve(extent::<StartInfo>(address, 1))?;
    map.reserve(extent::<MemmapEntry>(
        info.memmap_paddr,
        info.memmap_entries,
    ))?;

    if info.nr_modules > MAX_MODULES {
        return Err(wrong("nr_modules is too large", info.nr_modules.into()));
    }
    let modules = memory
        .table::<Module>(info.modlist_paddr, info.nr_modules)
        .ok_or(wrong("modlist_paddr is out of reach", info.modlist_paddr))?;
    let mut ramdisk = None;
    for module in modules.filter(|module| module.size != 0) {
        let end = module
            .paddr
            .checked_add(module.size)
            .ok_or(wrong("a module has a wrong size", module.size))?;
        // Not `require_usable`: on microvm QEMU puts the ramdisk at the very end of RAM, where SeaBIOS
        // has put ACPI tables and reserved their page. The ramdisk is written last, so it is sound.
        map.require_memory("a module (-initrd)", module.paddr..end)?;
        map.reserve(module.paddr..end)?;
        ramdisk.get_or_insert(module.paddr..end);
    }
    map.reserve(extent::<Module>(info.modlist_paddr, info.nr_modules))?;

    Ok(Handoff {
        memory: map,
        rsdp_hint: info.rsdp_paddr,
        ramdisk,
    })
}

/// The address range of a table with `count` entries of type `T`.
fn extent<T>(start: u64, count: u32) -> Range<u64> {
    start..start.saturating_add(u64::from(count).saturating_mul(size_of::<T>() as u64))
}
