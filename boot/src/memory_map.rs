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
