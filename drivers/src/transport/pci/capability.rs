//! Finding the virtio structures of a PCI function (spec 4.1.4), believing nothing that it says about itself.

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::bar::Bar;
use crate::error::Cause;
use crate::transport::SharedMemory;

const STATUS_COMMAND: u8 = 0x04;
const STATUS_CAPABILITIES_LIST: u32 = 1 << (16 + 4);
const CAPABILITIES_POINTER: u8 = 0x34;
/// Capabilities live in the 192 bytes behind the header and are 4-aligned: more than this many is a loop.
const MAX_CAPABILITIES: usize = 48;

const ID_VENDOR: u8 = 0x09;
const ID_MSIX: u8 = 0x11;

/// `cfg_type` of `struct virtio_pci_cap` (spec 4.1.4).
mod cfg_type {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const SHARED_MEMORY: u8 = 8;
}

/// The most shared-memory regions kept; the specification's device types use one at most (spec 5.11.6).
const MAX_SHARED_MEMORY: usize = 4;

/// A checked run of physical addresses inside a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) address: u64,
    pub(super) len: u64,
}

/// Where the MSI-X capability and its table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixCapability {
    /// Offset of the capability in configuration space.
    pub(super) offset: u8,
    /// The table: 16 bytes per vector.
    pub(super) table: Region,
    /// Number of vectors, 1 to 2048.
    pub(super) vectors: u16,
}

/// All that a function's capability list says about it as a virtio device. Each region lies inside a memory BAR.
#[derive(Debug, Default)]
pub(super) struct Structures {
    pub(super) common: Option<Region>,
    pub(super) notify: Option<(Region, u32)>,
    pub(super) isr: Option<Region>,
    pub(super) device: Option<Region>,
    pub(super) shared_memory: Vec<SharedMemory>,
    pub(super) msix: Option<MsixCapability>,
}

/// One pass over the capability list.
///
/// Of several capabilities of one type the first usable one counts (spec 4.1.4: the device lists them in order of
/// preference); one in an I/O BAR is passed over, as is a type or BAR number that is reserved. A capability that describes
/// something impossible fails the whole device: it is broken or hostile.
pub(super) fn find<C: ConfigurationAccess>(
    config: &C,
    function: DeviceFunction,
    bars: &[Option<Bar>; 6],
) -> Result<Structures, Cause> {
    let mut found = Structures::default();
    if config.read_word(function, STATUS_COMMAND) & STATUS_CAPABILITIES_LIST == 0 {
        return Ok(found);
    }
    let mut offset = config.read_word(function, CAPABILITIES_POINTER) as u8 & !0b11;
    for _ in 0..MAX_CAPABILITIES {
        if offset == 0 {
            return Ok(found);
        }
        if offset < 0x40 {
            return Err(bad(offset, "lies in the header"));
        }
        let header = config.read_word(function, offset);
        let cap = Capability {
            config,
            function,
            offset,
            header,
        };
        match header as u8 {
            ID_VENDOR => cap.virtio(bars, &mut found)?,
            ID_MSIX if found.msix.is_none() => found.msix = cap.msix(bars)?,
            _ => {}
        }
        offset = (header >> 8) as u8 & !0b11;
    }
    Err(bad(offset, "the list does not end"))
}

const fn bad(offset: u8, reason: &'static str) -> Cause {
    Cause::BadCapability { offset, reason }
}

struct Capability<'a, C> {
    config: &'a C,
    function: DeviceFunction,
    offset: u8,
    header: u32,
}

impl<C: ConfigurationAccess> Capability<'_, C> {
    /// The four bytes at `field` of the capability, which must lie inside configuration space.
    fn word(&self, field: u8) -> Result<u32, Cause> {
        let Some(offset) = self.offset.checked_add(field) else {
            return Err(bad(self.offset, "runs past configuration space"));
        };
        Ok(self.config.read_word(self.function, offset))
    }

    fn bad<T>(&self, reason: &'static str) -> Result<T, Cause> {
        Err(bad(self.offset, reason))
    }

    /// `struct virtio_pci_cap` (spec 4.1.4) and the longer ones that begin with it.
    fn virtio(&self, bars: &[Option<Bar>; 6], found: &mut Structures) -> Result<(), Cause> {
        let cap_len = (self.header >> 16) as u8;
        let kind = (self.header >> 24) as u8;
        let known = matches!(
            kind,
            cfg_type::COMMON
                | cfg_type::NOTIFY
                | cfg_type::ISR
                | cfg_type::DEVICE
                | cfg_type::SHARED_MEMORY
        );
        if !known {
            return Ok(());
        }
        let need = match kind {
            cfg_type::NOTIFY => 20,
            cfg_type::SHARED_MEMORY => 24,
            _ => 16,
        };
        if cap_len < need {
            return self.bad("is too short for its type");
        }
        let word = self.word(4)?;
        let (bar, id) = (word as u8, (word >> 8) as u8);
        if usize::from(bar) >= bars.len() {
            // Reserved values are for a future that this driver does not know (spec 4.1.4, driver requirements).
            return Ok(());
        }
        let mut offset = u64::from(self.word(8)?);
        let mut len = u64::from(self.word(12)?);
        if kind == cfg_type::SHARED_MEMORY {
            offset |= u64::from(self.word(16)?) << 32;
            len |= u64::from(self.word(20)?) << 32;
        }
        let Some(region) = self.region(bars, bar, offset, len)? else {
            return Ok(());
        };
        match kind {
            cfg_type::COMMON => _ = found.common.get_or_insert(region),
            cfg_type::ISR => _ = found.isr.get_or_insert(region),
            cfg_type::DEVICE => _ = found.device.get_or_insert(region),
            cfg_type::NOTIFY => {
                let multiplier = self.word(16)?;
                found.notify.get_or_insert((region, multiplier));
            }
            _ => {
                let known = &mut found.shared_memory;
                if known.len() < MAX_SHARED_MEMORY && known.iter().all(|other| other.id != id) {
                    let Region { address, len } = region;
                    known.push(SharedMemory { id, address, len });
                }
            }
        }
        Ok(())
    }

    /// The MSI-X capability (PCI 3.0, 6.8.2).
    fn msix(&self, bars: &[Option<Bar>; 6]) -> Result<Option<MsixCapability>, Cause> {
        let vectors = ((self.header >> 16) as u16 & 0x7ff) + 1;
        let table = self.word(4)?;
        let (bar, offset) = (table as u8 & 0b111, u64::from(table & !0b111));
        let region = self.region(bars, bar, offset, u64::from(vectors) * 16)?;
        Ok(region.map(|table| MsixCapability {
            offset: self.offset,
            table,
            vectors,
        }))
    }

    /// The physical addresses of `len` bytes at `offset` of BAR number `bar`; `None` if that is not a memory BAR.
    fn region(
        &self,
        bars: &[Option<Bar>; 6],
        bar: u8,
        offset: u64,
        len: u64,
    ) -> Result<Option<Region>, Cause> {
        let Some(bar) = bars.get(usize::from(bar)) else {
            return self.bad("names a BAR that no function has");
        };
        let Some(bar) = bar else {
            return Ok(None);
        };
        if bar.address == 0 {
            return self.bad("is in a BAR that was not assigned an address");
        }
        match offset.checked_add(len) {
            Some(end) if end <= bar.len => Ok(Some(Region {
                address: bar.address + offset,
                len,
            })),
            _ => self.bad("reaches past the end of its BAR"),
        }
    }
}
