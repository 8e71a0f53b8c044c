//! The physical memory map: from what firmware reports to what the kernel may use.

use core::ops::Range;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use heapless::Vec;

use crate::error::Error;

/// Page size: all regions of a map begin and end at multiples of it.
pub const PAGE: u64 = 4096;

/// E820 type of memory that may be used.
const E820_RAM: u32 = 1;
/// E820 type of memory and devices that must be left alone.
const E820_RESERVED: u32 = 2;
/// E820 type of memory that holds ACPI tables.
const E820_ACPI: u32 = 3;
/// E820 type of memory that firmware uses at run time.
const E820_NVS: u32 = 4;

/// Firmware below 1 MiB: where an RSDP may be without being in the memory map.
const LEGACY_FIRMWARE: Range<u64> = 0xe_0000..0x10_0000;

/// One entry of the map that firmware reports.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// E820 type: 1 is RAM.
    pub kind: u32,
}

/// A memory map: sorted regions of whole pages that do not overlap.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    regions: Vec<MemoryRegion, { Self::CAPACITY }>,
}

impl MemoryMap {
    /// The most entries that [`Self::new`] takes. Linux takes as many from a boot loader.
    pub const MAX_ENTRIES: usize = 128;

    /// The most regions that a map can have.
    pub const CAPACITY: usize = 2 * Self::MAX_ENTRIES + 64;

    /// Makes a map of what firmware reports, in any order. Where entries overlap the highest type wins,
    /// so that doubtful memory is not used. Addresses from `memory_end` on are ignored.
    pub fn new(entries: impl IntoIterator<Item = Entry>, memory_end: u64) -> Result<Self, Error> {
        let mut spans: Vec<(Range<u64>, u32), { Self::MAX_ENTRIES }> = Vec::new();
        for entry in entries {
            let end = entry.start.saturating_add(entry.length).min(memory_end);
            let start = entry.start.min(end);
            // A page that is RAM in part only is no RAM.
            let span = match entry.kind {
                E820_RAM => start.saturating_add(PAGE - 1) & !(PAGE - 1)..end & !(PAGE - 1),
                _ => page_bounds(&(start..end)),
            };
            if span.is_empty() || entry.length == 0 {
                continue;
            }
            spans.push((span, entry.kind)).map_err(|_| Error::Handoff {
                what: "the memory map has too many entries",
                value: Self::MAX_ENTRIES as u64 + 1,
            })?;
        }

        // Between two neighbouring edges nothing changes.
        let mut edges: Vec<u64, { 2 * Self::MAX_ENTRIES }> = Vec::new();
        for (span, _) in &spans {
            // There is room: two edges for each of at most MAX_ENTRIES spans.
            let _ = edges.push(span.start);
            let _ = edges.push(span.end);
        }
        edges.sort_unstable();

        let mut map = Self {
            regions: Vec::new(),
        };
        for (&start, &end) in edges.iter().zip(edges.iter().skip(1)) {
            let kind = spans
                .iter()
                .filter(|(span, _)| span.start <= start && end <= span.end)
                .map(|&(_, kind)| kind)
                .max();
            match kind {
                Some(E820_RAM) => map.push(start, end, MemoryRegionKind::Usable)?,
                Some(kind) => map.push(start, end, MemoryRegionKind::UnknownBios(kind))?,
                None => {}
            }
        }
        Ok(map)
    }

    /// The regions, lowest first.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// Makes the usable pages that a range of addresses touches [`MemoryRegionKind::Bootloader`].
    pub fn reserve(&mut self, range: Range<u64>) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        let range = page_bounds(&range);
        let old = core::mem::take(&mut self.regions);
        for region in old {
            if region.kind != MemoryRegionKind::Usable {
                self.push(region.start, region.end, region.kind)?;
                continue;
            }
            let start = range.start.clamp(region.start, region.end);
            let end = range.end.clamp(start, region.end);
            self.push(region.start, start, MemoryRegionKind::Usable)?;
            self.push(start, end, MemoryRegionKind::Bootloader)?;
            self.push(end, region.end, MemoryRegionKind::Usable)?;
        }
        Ok(())
    }

    /// Checks that all pages that a range of addresses touches are usable.
    pub fn require_usable(&self, what: &'static str, range: Range<u64>) -> Result<(), Error> {
        let pages = page_bounds(&range);
        // Neighbours of one kind are one region, so a usable range lies in one region.
        let usable = self.regions.iter().any(|region| {
            region.kind == MemoryRegionKind::Usable
                && region.start <= pages.start
                && pages.end <= region.end
        });
        usable.then_some(()).ok_or(Error::NotInRam {
            what,
            start: range.start,
            end: range.end,
        })
    }

    /// Checks that all pages that a range of addresses touches are memory, whoever uses it.
    pub fn require_memory(&self, what: &'static str, range: Range<u64>) -> Result<(), Error> {
        let pages = page_bounds(&range);
        let memory = self
            .mapped()
            .any(|memory| memory.start <= pages.start && pages.end <= memory.end);
        memory.then_some(()).ok_or(Error::NotInRam {
            what,
            start: range.start,
            end: range.end,
        })
    }

    /// The lowest run of `length` usable bytes, a multiple of the page size, between two addresses.
    pub fn find_usable(&self, length: u64, within: Range<u64>) -> Option<u64> {
        self.regions
            .iter()
            .filter(|region| region.kind == MemoryRegionKind::Usable)
            .map(|region| (region.start.max(within.start), region.end.min(within.end)))
            .find(|&(start, end)| end.saturating_sub(start) >= length)
            .map(|(start, _)| start)
    }

    /// What the kernel finds in its mapping of physical memory, lowest first:
    ///
    /// - all RAM, whoever uses it;
    /// - what firmware calls ACPI tables or ACPI NVS;
    /// - reserved memory below 4 GiB that begins where one of these ends: the end of RAM, where
    ///   firmware puts the ACPI tables that it does not report as such;
    /// - the firmware area 0xe0000..0x100000, where an RSDP may be.
    ///
    /// Other reserved regions (PCI configuration space, flash, q35's hole at 0xfd_0000_0000) are not
    /// memory.
    pub fn mapped(&self) -> impl Iterator<Item = Range<u64>> {
        let mut ranges: Vec<Range<u64>, { Self::CAPACITY + 1 }> = Vec::new();
        let mut add = |range: Range<u64>| match ranges.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            // There is room: one range per region, and one for the firmware area.
            _ => drop(ranges.push(range)),
        };
        let mut firmware = Some(LEGACY_FIRMWARE);
        let mut memory_end = 0;
        for region in &self.regions {
            if region.start >= LEGACY_FIRMWARE.start
                && let Some(firmware) = firmware.take()
            {
                add(firmware);
            }
            let memory = match region.kind {
                MemoryRegionKind::UnknownBios(E820_ACPI | E820_NVS) => true,
                MemoryRegionKind::UnknownBios(E820_RESERVED) => {
                    region.start == memory_end && region.end <= 1 << 32
                }
                MemoryRegionKind::UnknownBios(_) => false,
                _ => true,
            };
            if memory {
                memory_end = region.end;
                add(region.start..region.end);
            }
        }
        ranges.into_iter()
    }

    /// Appends a region, or grows the last one.
    fn push(&mut self, start: u64, end: u64, kind: MemoryRegionKind) -> Result<(), Error> {
        if start >= end {
            return Ok(());
        }
        match self.regions.last_mut() {
            Some(last) if last.end == start && last.kind == kind => {
                last.end = end;
                Ok(())
            }
            _ => self
                .regions
                .push(MemoryRegion { start, end, kind })
                .map_err(|_| Error::Handoff {
                    what: "the memory map has too many regions",
                    value: Self::CAPACITY as u64,
                }),
        }
    }
}

/// The pages that a range of addresses touches.
pub fn page_bounds(range: &Range<u64>) -> Range<u64> {
    range.start & !(PAGE - 1)..range.end.saturating_add(PAGE - 1) & !(PAGE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryRegionKind::{Bootloader, UnknownBios, Usable};

    const END: u64 = 1 << 40;

    fn map(entries: &[(u64, u64, u32)]) -> MemoryMap {
        let entries = entries.iter().map(|&(start, end, kind)| Entry {
            start,
            length: end.wrapping_sub(start),
            kind,
        });
        MemoryMap::new(entries, END).unwrap()
    }

    fn regions(map: &MemoryMap) -> std::vec::Vec<(u64, u64, MemoryRegionKind)> {
        let regions = map.regions().iter();
        regions
            .map(|region| (region.start, region.end, region.kind))
            .collect()
    }

    /// What q35 with 256 MiB reports.
    const Q35: [(u64, u64, u32); 8] = [
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0xa_0000, 2),
        (0xf_0000, 0x10_0000, 2),
        (0x10_0000, 0xffe_0000, 1),
        (0xffe_0000, 0x1000_0000, 2),
        (0xb000_0000, 0xc000_0000, 2),
        (0xfffc_0000, 0x1_0000_0000, 2),
        (0xfd_0000_0000, 0x100_0000_0000, 2),
    ];

    #[test]
    fn a_page_is_ram_only_if_all_of_it_is() {
        assert_eq!(
            regions(&map(&Q35))[..3],
            [
                (0, 0x9_f000, Usable),
                (0x9_f000, 0xa_0000, UnknownBios(2)),
                (0xf_0000, 0x10_0000, UnknownBios(2)),
            ]
        );
        assert_eq!(
            regions(&map(&[(0x1001, 0x1fff, 1), (0x2fff, 0x4001, 1)])),
            [(0x3000, 0x4000, Usable)]
        );
    }

    #[test]
    fn order_does_not_matter_and_neighbours_become_one() {
        let mut backwards = Q35;
        backwards.reverse();
        assert_eq!(regions(&map(&backwards)), regions(&map(&Q35)));
        assert_eq!(
            regions(&map(&[(0x2000, 0x3000, 1), (0x1000, 0x2000, 1)])),
            [(0x1000, 0x3000, Usable)]
        );
    }

    #[test]
    fn where_entries_overlap_the_less_usable_wins() {
        let overlapping = map(&[
            (0x1000, 0x9000, 1),
            (0x3000, 0x6000, 2),
            (0x5000, 0x7000, 4),
            (0x2000, 0x8000, 1),
        ]);
        assert_eq!(
            regions(&overlapping),
            [
                (0x1000, 0x3000, Usable),
                (0x3000, 0x5000, UnknownBios(2)),
                (0x5000, 0x7000, UnknownBios(4)),
                (0x7000, 0x9000, Usable),
            ]
        );
    }

    #[test]
    fn wild_entries_do_no_harm() {
        // Empty, beyond the end, beyond what 64 bits hold, all there is.
        let wild = map(&[
            (0x1000, 0x1000, 1),
            (0x1800, 0x1800, 2),
            (END, END + 0x1000, 1),
            (u64::MAX - 10, 5, 1),
            (0x5000, 0x4fff, 1),
        ]);
        assert_eq!(regions(&wild), [(0x5000, END, Usable)]);
        assert_eq!(regions(&map(&[])), []);
    }

    #[test]
    fn too_many_entries_are_an_error() {
        let entry = |index| Entry {
            start: index * 0x2000,
            length: 0x1000,
            kind: 1,
        };
        let most = MemoryMap::MAX_ENTRIES as u64;
        assert_eq!(
            MemoryMap::new((0..most).map(entry), END)
                .unwrap()
                .regions()
                .len() as u64,
            most
        );
        assert!(MemoryMap::new((0..=most).map(entry), END).is_err());
    }

    #[test]
    fn reserving_takes_whole_pages_of_usable_memory_only() {
        let mut map = map(&[(0, 0x4000, 1), (0x4000, 0x6000, 2), (0x6000, 0x9000, 1)]);
        map.reserve(0x1fff..0x1fff).unwrap();
        assert_eq!(map.regions().len(), 3, "an empty range");
        map.reserve(0x1fff..0x2001).unwrap();
        map.reserve(0x3fff..0x7001).unwrap();
        assert_eq!(
            regions(&map),
            [
                (0, 0x1000, Usable),
                (0x1000, 0x4000, Bootloader),
                (0x4000, 0x6000, UnknownBios(2)),
                (0x6000, 0x8000, Bootloader),
                (0x8000, 0x9000, Usable),
            ]
        );
        map.reserve(0..u64::MAX).unwrap();
        assert!(map.regions().iter().all(|region| region.kind != Usable));
    }

    #[test]
    fn reserving_too_often_is_an_error() {
        let mut map = map(&[(0, 1 << 30, 1)]);
        let result = (0..MemoryMap::CAPACITY as u64)
            .try_for_each(|index| map.reserve(index * 0x2000..index * 0x2000 + 1));
        assert!(result.is_err());
    }

    #[test]
    fn required_memory_must_be_there_and_free() {
        let mut map = map(&Q35);
        map.reserve(0x20_0000..0x20_1000).unwrap();
        assert!(map.require_usable("it", 0x10_0000..0x20_0000).is_ok());
        assert!(map.require_memory("it", 0x10_0000..0x20_0001).is_ok());
        assert!(
            map.require_memory("it", 0xffd_f000..0xffe_1000).is_ok(),
            "the tables behind RAM"
        );
        for range in [
            0x10_0000..0x20_0001,
            0xf_ffff..0x10_0001,
            0xffd_f000..0xffe_0001,
            0x2000_0000..0x2000_1000,
            0..u64::MAX,
        ] {
            assert!(
                map.require_usable("it", range.clone()).is_err(),
                "{range:x?}"
            );
        }
        assert!(map.require_memory("it", 0xaff_f000..0xb000_1000).is_err());
        assert!(map.require_memory("it", 0xfff_f000..0x1000_0001).is_err());
    }

    #[test]
    fn the_kernel_sees_memory_and_no_devices() {
        let mapped: std::vec::Vec<_> = map(&Q35).mapped().collect();
        assert_eq!(mapped, [0..0xa_0000, 0xe_0000..0x1000_0000]);

        // More than 4 GiB, as on pc; ACPI tables by their own type, with a hole before them.
        let large = map(&[
            (0, 0xa_0000, 1),
            (0x10_0000, 0xbffd_0000, 1),
            (0xbffe_0000, 0xbfff_0000, 3),
            (0xbfff_0000, 0xc000_0000, 2),
            (0xfffc_0000, 0x1_0000_0000, 2),
            (0x1_0000_0000, 0x2_4000_0000, 1),
            (0x2_4000_0000, 0x2_5000_0000, 2),
        ]);
        let mapped: std::vec::Vec<_> = large.mapped().collect();
        assert_eq!(
            mapped,
            [
                0..0xa_0000,
                0xe_0000..0xbffd_0000,
                0xbffe_0000..0xc000_0000,
                0x1_0000_0000..0x2_4000_0000,
            ]
        );
    }

    #[test]
    fn mapping_does_not_depend_on_what_is_reserved() {
        let before = map(&Q35);
        let mut after = before.clone();
        after.reserve(0..0x1000).unwrap();
        after.reserve(0x10_0000..0x30_0000).unwrap();
        assert!(before.mapped().eq(after.mapped()));
    }
}
