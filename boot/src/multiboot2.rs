//! The Multiboot2 boot information: what GRUB hands over
//! (<https://www.gnu.org/software/grub/manual/multiboot2/multiboot.html>).
//!
//! The crate of this name panics on sizes that can't be; here each is an error with a name.

use heapless::Vec;
use zerocopy::FromBytes;

use crate::error::Error;
use crate::handoff::Handoff;
use crate::memory_map::{Entry, MemoryMap};
use crate::physical::PhysicalMemory;

/// What the first argument is after a Multiboot2 boot.
pub const MAGIC: u32 = 0x36d7_6289;

/// Longer boot information is a mistake.
const MAX_SIZE: u32 = 1 << 20;

const END: u32 = 0;
const MODULE: u32 = 3;
const MEMORY_MAP: u32 = 6;
const RSDP_1: u32 = 14;
const RSDP_2: u32 = 15;

/// How the boot information begins.
#[derive(FromBytes)]
#[repr(C)]
struct Header {
    total_size: u32,
    _reserved: u32,
}

/// How each tag begins. Tags begin at multiples of eight bytes.
#[derive(FromBytes)]
#[repr(C)]
struct TagHeader {
    kind: u32,
    size: u32,
}

/// Tag 3, without its command line.
#[derive(FromBytes)]
#[repr(C)]
struct Module {
    mod_start: u32,
    mod_end: u32,
}

/// How tag 6 begins.
#[derive(FromBytes)]
#[repr(C)]
struct MemoryMapHeader {
    entry_size: u32,
    _entry_version: u32,
}

/// How each entry of tag 6 begins. The types are those of E820.
#[derive(FromBytes)]
#[repr(C)]
struct MemoryMapEntry {
    base_addr: u64,
    length: u64,
    kind: u32,
    _reserved: u32,
}

/// Reads the boot information at a physical address. Memory at `memory_end` and above is beyond what
/// the CPU can address, and ignored.
///
/// In the map that is returned, the information itself and the modules are reserved.
pub fn read(memory: &impl PhysicalMemory, address: u64, memory_end: u64) -> Result<Handoff, Error> {
    let wrong = |what, value| Error::Handoff { what, value };

    let header: Header = memory
        .read(address)
        .ok_or(wrong("the Multiboot2 information is out of reach", address))?;
    if header.total_size > MAX_SIZE {
        return Err(wrong(
            "the Multiboot2 information is too long",
            header.total_size.into(),
        ));
    }
    let information = memory
        .bytes(address, header.total_size.into())
        .ok_or(wrong("the Multiboot2 information is out of reach", address))?;

    let mut map = None;
    let mut modules: Vec<Module, 8> = Vec::new();
    let (mut rsdp_1, mut rsdp_2) = (None, None);
    let mut offset = size_of::<Header>();
    loop {
        let rest = information.get(offset..).unwrap_or_default();
        let (tag, _) = TagHeader::read_from_prefix(rest)
            .map_err(|_| wrong("a Multiboot2 tag is cut off; its offset", offset as u64))?;
        let body = rest
            .get(size_of::<TagHeader>()..tag.size as usize)
            .ok_or(wrong("a Multiboot2 tag has a wrong size", tag.size.into()))?;
        match tag.kind {
            END => break,
            MODULE => {
                let (module, _) = Module::read_from_prefix(body)
                    .map_err(|_| wrong("a Multiboot2 module has a wrong size", tag.size.into()))?;
                if module.mod_end < module.mod_start {
                    return Err(wrong("a Multiboot2 module ends at", module.mod_end.into()));
                }
                modules
                    .push(module)
                    .map_err(|_| wrong("too many Multiboot2 modules", offset as u64))?;
            }
            MEMORY_MAP => map = Some(read_map(body, memory_end)?),
            // A copy of the one in firmware, within the information.
            RSDP_1 => rsdp_1 = Some(address + (offset + size_of::<TagHeader>()) as u64),
            RSDP_2 => rsdp_2 = Some(address + (offset + size_of::<TagHeader>()) as u64),
            _ => {}
        }
        offset += (tag.size as usize).next_multiple_of(8);
    }

    let mut map = map.ok_or(wrong("no memory map from Multiboot2", address))?;
    let mut ramdisk = None;
    for module in modules
        .iter()
        .filter(|module| module.mod_start < module.mod_end)
    {
        let module = module.mod_start.into()..module.mod_end.into();
        map.require_memory("a module", module.clone())?;
        map.reserve(module.clone())?;
        ramdisk.get_or_insert(module);
    }
    map.reserve(address..address + u64::from(header.total_size))?;
    Ok(Handoff {
        memory: map,
        rsdp_hint: rsdp_2.or(rsdp_1).unwrap_or(0),
        ramdisk,
    })
}

/// Reads the body of the memory map's tag.
fn read_map(body: &[u8], memory_end: u64) -> Result<MemoryMap, Error> {
    let wrong = |value| Error::Handoff {
        what: "the Multiboot2 memory map has entries of a wrong size",
        value,
    };
    let (header, entries) = MemoryMapHeader::read_from_prefix(body).map_err(|_| wrong(0))?;
    let size = header.entry_size as usize;
    if size < size_of::<MemoryMapEntry>() || !entries.len().is_multiple_of(size) {
        return Err(wrong(header.entry_size.into()));
    }
    // Every chunk is long enough, so none is left out.
    let entries = entries
        .chunks_exact(size)
        .filter_map(|entry| Some(MemoryMapEntry::read_from_prefix(entry).ok()?.0));
    MemoryMap::new(
        entries.map(|entry| Entry {
            start: entry.base_addr,
            length: entry.length,
            kind: entry.kind,
        }),
        memory_end,
    )
}

#[cfg(test)]
mod tests {
    use bootloader_api::info::MemoryRegionKind::Usable;

    use super::*;
    use crate::physical::Fake;

    const MEMORY_END: u64 = 1 << 40;
    const INFO: u64 = 0x2_0008;

    /// Boot information of these tags (type and body) in a page of memory.
    fn memory(tags: &[(u32, &[u8])]) -> Fake {
        let mut information = vec![0; 8];
        for (kind, body) in tags.iter().chain([&(END, &b""[..])]) {
            information.extend(kind.to_le_bytes());
            information.extend((8 + body.len() as u32).to_le_bytes());
            information.extend(*body);
            information.resize(information.len().next_multiple_of(8), 0xee);
        }
        let size = information.len() as u32;
        information[..4].copy_from_slice(&size.to_le_bytes());
        Fake {
            base: INFO,
            bytes: information,
        }
    }

    fn map_body(entry_size: u32, entries: &[(u64, u64, u32)]) -> Vec<u8, 256> {
        let mut body = Vec::new();
        body.extend(entry_size.to_le_bytes());
        body.extend([0; 4]);
        for (start, length, kind) in entries {
            body.extend(start.to_le_bytes());
            body.extend(length.to_le_bytes());
            body.extend(kind.to_le_bytes());
            body.extend([0; 4]);
            let padding = (entry_size as usize).saturating_sub(24);
            body.resize(body.len() + padding, 0xee).unwrap();
        }
        body
    }

    const RAM: [(u64, u64, u32); 2] = [(0, 0xa_0000, 1), (0x10_0000, 0x3f0_0000, 1)];

    fn module(start: u32, end: u32) -> std::vec::Vec<u8> {
        [&start.to_le_bytes()[..], &end.to_le_bytes(), b"initrd\0"].concat()
    }

    #[test]
    fn all_of_it_is_read() {
        for entry_size in [24, 40] {
            let map = map_body(entry_size, &RAM);
            let module = module(0x300_0000, 0x300_1388);
            let memory = memory(&[
                (1, b"command line\0"),
                (RSDP_1, b"RSD PTR 1"),
                (RSDP_2, b"RSD PTR 2"),
                (MODULE, &module),
                (MEMORY_MAP, &map),
            ]);
            let handoff = read(&memory, INFO, MEMORY_END).unwrap();
            assert_eq!(handoff.ramdisk, Some(0x300_0000..0x300_1388));
            assert_eq!(memory.bytes(handoff.rsdp_hint, 9), Some(&b"RSD PTR 2"[..]));
            let usable = handoff
                .memory
                .regions()
                .iter()
                .filter(|region| region.kind == Usable);
            let usable: std::vec::Vec<_> =
                usable.map(|region| (region.start, region.end)).collect();
            assert_eq!(
                usable,
                [
                    (0, 0x2_0000),
                    (0x2_1000, 0xa_0000),
                    (0x10_0000, 0x300_0000),
                    (0x300_2000, 0x400_0000),
                ]
            );
        }
    }

    #[test]
    fn a_lack_of_tags_is_named() {
        let map = map_body(24, &RAM);
        let handoff = read(&memory(&[(MEMORY_MAP, &map)]), INFO, MEMORY_END).unwrap();
        assert_eq!((handoff.rsdp_hint, handoff.ramdisk), (0, None));
        assert!(read(&memory(&[]), INFO, MEMORY_END).is_err());
    }

    #[test]
    fn wild_tags_are_named() {
        let map = map_body(24, &RAM);
        let error = |tags: &[(u32, &[u8])]| match read(&memory(tags), INFO, MEMORY_END) {
            Err(Error::Handoff { what, .. } | Error::NotInRam { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        let sizes = "the Multiboot2 memory map has entries of a wrong size";
        assert_eq!(error(&[(MEMORY_MAP, b"short")]), sizes);
        assert_eq!(error(&[(MEMORY_MAP, &map_body(0, &RAM))]), sizes);
        assert_eq!(error(&[(MEMORY_MAP, &map_body(23, &RAM))]), sizes);
        assert_eq!(error(&[(MEMORY_MAP, &map[..30])]), sizes);
        let wrong = "a Multiboot2 module has a wrong size";
        assert_eq!(error(&[(MODULE, b"short")]), wrong);
        let wrong = "a Multiboot2 module ends at";
        assert_eq!(error(&[(MODULE, &module(2, 1))]), wrong);
        let far = module(0x500_0000, 0x500_0001);
        assert_eq!(error(&[(MODULE, &far), (MEMORY_MAP, &map)]), "a module");
        let many = module(0x300_0000, 0x300_0001);
        assert_eq!(
            error(&[(MODULE, &many[..]); 9]),
            "too many Multiboot2 modules"
        );
    }

    /// Whatever is changed: an answer, and neither a panic nor an endless walk.
    #[test]
    fn no_damage_is_fatal() {
        let map = map_body(24, &RAM);
        let module = module(0x300_0000, 0x300_1388);
        let sound = memory(&[(MODULE, &module), (RSDP_1, b"RSD"), (MEMORY_MAP, &map)]);
        let mut refused = 0;
        for at in 0..sound.bytes.len() {
            for value in [0, 1, 7, 8, 0x7f, 0x80, 0xff] {
                let mut damaged = memory(&[]);
                damaged.bytes.clone_from(&sound.bytes);
                damaged.bytes[at] = value;
                refused += usize::from(read(&damaged, INFO, MEMORY_END).is_err());
            }
        }
        assert!(refused > 0);
        for length in 0..sound.bytes.len() {
            let mut cut = memory(&[]);
            cut.bytes = sound.bytes[..length].to_vec();
            assert!(read(&cut, INFO, MEMORY_END).is_err());
            // Shorter by its own account.
            cut.bytes = sound.bytes.clone();
            cut.bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
            assert!(read(&cut, INFO, MEMORY_END).is_err());
        }
    }
}
