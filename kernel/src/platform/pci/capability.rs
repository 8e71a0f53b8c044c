//! The list of capabilities of a function, for showing it.

use core::fmt;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::header;

const HAS_LIST: u32 = 1 << 20;
/// As many as fit into the 192 bytes after the header: a list that links to itself ends here.
const MAX_CAPABILITIES: usize = 48;
const FIRST_OFFSET: u8 = 0x40;

const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const MSIX: u8 = 0x11;

/// A capability.
#[derive(Clone, Copy, Debug)]
pub struct Capability<'a, C> {
    config: &'a C,
    function: DeviceFunction,
    /// Its id.
    pub id: u8,
    /// Where it is in configuration space.
    pub offset: u8,
    /// Its first word: id, next pointer and 16 bits of its own.
    word: u32,
    vendor: u16,
}

/// The function's capabilities.
pub fn list<C: ConfigurationAccess>(
    config: &C,
    function: DeviceFunction,
) -> impl Iterator<Item = Capability<'_, C>> {
    let read = move |register| config.read_word(function, register);
    let vendor = read(0) as u16;
    let first = match read(header::COMMAND) & HAS_LIST {
        0 => 0,
        _ => (read(header::CAPABILITIES) & 0xfc) as u8,
    };
    let mut next = first;
    core::iter::from_fn(move || {
        let offset = next;
        if offset < FIRST_OFFSET {
            return None;
        }
        let word = read(offset);
        let [id, following, ..] = word.to_le_bytes();
        next = following & 0xfc;
        Some(Capability {
            config,
            function,
            id,
            offset,
            word,
            vendor,
        })
    })
    .take(MAX_CAPABILITIES)
}

impl<C: ConfigurationAccess> fmt::Display for Capability<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let control = (self.word >> 16) as u16;
        let read = |at: u8| {
            self.config
                .read_word(self.function, self.offset.wrapping_add(at))
        };
        match self.id {
            MSIX => {
                let vectors = (control & 0x7ff) + 1;
                let state = if control & 1 << 15 != 0 { "on" } else { "off" };
                let table = read(4);
                write!(
                    f,
                    "MSI-X: {vectors} vectors, {state}, table in BAR{}+{:#x}",
                    table & 7,
                    table & !7
                )
            }
            MSI => {
                let vectors = 1 << (control >> 1 & 7);
                let state = if control & 1 != 0 { "on" } else { "off" };
                write!(f, "MSI: {vectors} vectors, {state}")
            }
            VENDOR if self.vendor == vringlet::transport::pci::VENDOR_ID => {
                let kind = (self.word >> 24) as u8;
                let name = match kind {
                    1 => "common configuration",
                    2 => "notification",
                    3 => "interrupt status",
                    4 => "device configuration",
                    5 => "configuration access",
                    8 => "shared memory",
                    9 => "vendor data",
                    _ => "unknown",
                };
                let bar = read(4) & 0xff;
                write!(
                    f,
                    "virtio {name}: BAR{bar}+{:#x} [{:#x}]",
                    read(8),
                    read(12)
                )
            }
            id => write!(f, "{}", name(id)),
        }
    }
}

fn name(id: u8) -> &'static str {
    match id {
        0x01 => "power management",
        0x02 => "AGP",
        0x03 => "vital product data",
        0x04 => "slot identification",
        0x06 => "CompactPCI hot swap",
        0x07 => "PCI-X",
        0x08 => "HyperTransport",
        VENDOR => "vendor specific",
        0x0a => "debug port",
        0x0b => "CompactPCI resource control",
        0x0c => "hot plug",
        0x0d => "bridge subsystem ids",
        0x0e => "AGP 8x",
        0x0f => "secure device",
        0x10 => "PCI Express",
        0x12 => "SATA",
        0x13 => "advanced features",
        0x14 => "enhanced allocation",
        0x15 => "flattening portal bridge",
        _ => "unknown capability",
    }
}
