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

#[cfg(test)]
mod tests {
    use bootloader_api::info::MemoryRegionKind::Usable;

    use super::*;
    use crate::physical::Fake;

    const MEMORY_END: u64 = 1 << 40;
    /// Where the structures are; deliberately misaligned, as qboot's are.
    const INFO: u64 = 0x2005;
    const MEMMAP: u64 = 0x2103;
    const MODULES: u64 = 0x2201;

    /// Offsets of fields of `hvm_start_info`.
    const VERSION: u64 = INFO + 4;
    const NR_MODULES: u64 = INFO + 12;
    const MODLIST_PADDR: u64 = INFO + 16;
    const RSDP_PADDR: u64 = INFO + 32;
    const MEMMAP_PADDR: u64 = INFO + 40;
    const MEMMAP_ENTRIES: u64 = INFO + 48;

    fn put(memory: &mut Fake, at: u64, bytes: &[u8]) {
        let at = (at - memory.base) as usize;
        memory.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// 64 MiB of RAM, a ramdisk of 5000 bytes, an RSDP.
    fn memory() -> Fake {
        let mut memory = Fake {
            base: 0x2000,
            bytes: vec![0; 0x1000],
        };
        put(&mut memory, INFO, &MAGIC.to_le_bytes());
        put(&mut memory, VERSION, &1u32.to_le_bytes());
        put(&mut memory, NR_MODULES, &1u32.to_le_bytes());
        put(&mut memory, MODLIST_PADDR, &MODULES.to_le_bytes());
        put(&mut memory, RSDP_PADDR, &0xf_5250u64.to_le_bytes());
        put(&mut memory, MEMMAP_PADDR, &MEMMAP.to_le_bytes());
        put(&mut memory, MEMMAP_ENTRIES, &2u32.to_le_bytes());
        for (index, fields) in [[0, 0xa_0000, 1], [0x10_0000, 0x3f0_0000, 1]]
            .iter()
            .enumerate()
        {
            for (field, value) in fields.iter().enumerate() {
                let at = MEMMAP + 24 * index as u64 + 8 * field as u64;
                put(&mut memory, at, &u64::to_le_bytes(*value));
            }
        }
        put(&mut memory, MODULES, &0x300_0000u64.to_le_bytes());
        put(&mut memory, MODULES + 8, &5000u64.to_le_bytes());
        memory
    }

    fn error_with(at: u64, bytes: &[u8]) -> Error {
        let mut memory = memory();
        put(&mut memory, at, bytes);
        read(&memory, INFO, MEMORY_END).unwrap_err()
    }

    #[test]
    fn all_of_it_is_read() {
        let handoff = read(&memory(), INFO, MEMORY_END).unwrap();
        assert_eq!(handoff.rsdp_hint, 0xf_5250);
        assert_eq!(handoff.ramdisk, Some(0x300_0000..0x300_0000 + 5000));
        let usable = handoff
            .memory
            .regions()
            .iter()
            .filter(|region| region.kind == Usable);
        let usable: Vec<_> = usable.map(|region| (region.start, region.end)).collect();
        assert_eq!(
            usable,
            [
                (0, 0x2000),
                (0x3000, 0xa_0000),
                (0x10_0000, 0x300_0000),
                (0x300_2000, 0x400_0000),
            ]
        );
    }

    #[test]
    fn no_modules_is_no_ramdisk_wherever_they_are() {
        let mut memory = memory();
        put(&mut memory, NR_MODULES, &0u32.to_le_bytes());
        for at in [0, MODULES, u64::MAX] {
            put(&mut memory, MODLIST_PADDR, &at.to_le_bytes());
            assert_eq!(read(&memory, INFO, MEMORY_END).unwrap().ramdisk, None);
        }
    }

    #[test]
    fn an_empty_module_is_none() {
        let mut memory = memory();
        put(&mut memory, MODULES + 8, &0u64.to_le_bytes());
        assert_eq!(read(&memory, INFO, MEMORY_END).unwrap().ramdisk, None);
    }

    #[test]
    fn wild_fields_are_named() {
        let wild = u64::MAX.to_le_bytes();
        for (at, bytes, expected) in [
            (INFO, &b"y"[..], "hvm_start_info has a wrong magic"),
            (VERSION, &[0], "hvm_start_info version 0 has no memory map"),
            (NR_MODULES, &[0xff; 4], "nr_modules is too large"),
            (NR_MODULES, &[9], "nr_modules is too large"),
            (MODLIST_PADDR, &wild, "modlist_paddr is out of reach"),
            (MEMMAP_PADDR, &wild, "memmap_paddr is out of reach"),
            (MEMMAP_PADDR, &[0; 8], "memmap_paddr is out of reach"),
            (MEMMAP_ENTRIES, &[0xff; 4], "memmap_entries is too large"),
            (MEMMAP_ENTRIES, &[129], "memmap_entries is too large"),
            (
                MEMMAP_PADDR,
                &0x2ff0u64.to_le_bytes(),
                "memmap_paddr is out of reach",
            ),
            (MODULES + 8, &wild, "a module has a wrong size"),
            (MODULES, &0x500_0000u64.to_le_bytes(), "a module (-initrd)"),
            (
                MODULES + 8,
                &(1u64 << 32).to_le_bytes(),
                "a module (-initrd)",
            ),
        ] {
            match error_with(at, bytes) {
                Error::Handoff { what, .. } | Error::NotInRam { what, .. } => {
                    assert!(what.starts_with(expected), "{at:#x}: {what}");
                }
                other => panic!("{at:#x}: {other:?}"),
            }
        }
        for at in [0, 0x1fff, 0x2fff, u64::MAX] {
            assert!(read(&memory(), at, MEMORY_END).is_err(), "at {at:#x}");
        }
    }

    /// Whatever is flipped: an answer, and no panic.
    #[test]
    fn no_damage_is_fatal() {
        for at in 0..0x300 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut memory = memory();
                put(&mut memory, 0x2000 + at, &[value]);
                let _ = read(&memory, INFO, MEMORY_END);
            }
        }
    }
}
