//! Base address registers: what is in them, and how much they ask for.

use alloc::vec::Vec;
use core::fmt;

use virtio_drivers::transport::pci::bus::ConfigurationAccess;

use super::{Function, Kind, command, header};

/// A base address register that asks for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which register (the first of the two if it is 64 bits wide).
    pub index: u8,
    /// What kind of address it holds.
    pub space: Space,
    /// The address; 0 if none was given.
    pub address: u64,
    /// The bytes it covers, a power of two.
    pub size: u64,
}

/// The kinds of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Io,
    /// Memory.
    Memory {
        /// The register pair holds 64 bits.
        wide: bool,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            address,
            size,
            ..
        } = self;
        match self.space {
            Space::Io => write!(f, "BAR{index} ports {address:#06x}")?,
            Space::Memory { wide, prefetchable } => {
                let width = if wide { 64 } else { 32 };
                write!(f, "BAR{index} memory{width} {address:#x}")?;
                if prefetchable {
                    f.write_str(" prefetchable")?;
                }
            }
        }
        match size {
            0..1024 => write!(f, " [{size}]"),
            1024..0x10_0000 => write!(f, " [{}K]", size >> 10),
            _ => write!(f, " [{}M]", size >> 20),
        }
    }
}

/// Reads the function's BARs and, by writing all ones and restoring them, their sizes. The function does not decode
/// addresses meanwhile: no interrupt handler may run that uses it.
pub(super) fn read(config: &mut impl ConfigurationAccess, function: &Function) -> Vec<Bar> {
    let count = match function.kind {
        Kind::Endpoint => 6,
        Kind::Bridge(_) => 2,
        Kind::Other => 0,
    };
    let command = config.read_word(function.address, header::COMMAND);
    let quiet = command & 0xffff & !(command::IO | command::MEMORY);
    // The upper half is the status register, whose bits are cleared by writing ones: zeros leave it alone.
    config.write_word(function.address, header::COMMAND, quiet);
    let mut bars = Vec::new();
    let mut index = 0;
    while index < count {
        let (bar, registers) = size(config, function, index, count);
        bars.extend(bar);
        index += registers;
    }
    config.write_word(function.address, header::COMMAND, command & 0xffff);
    bars
}

/// The BAR at `index`, if it asks for anything, and how many registers it takes.
fn size(
    config: &mut impl ConfigurationAccess,
    function: &Function,
    index: u8,
    count: u8,
) -> (Option<Bar>, u8) {
    let low = probe(config, function, index);
    let wide = low.value & 0b111 == 0b100 && index + 1 < count;
    let registers = if wide { 2 } else { 1 };
    let is_io = low.value & 1 != 0;
    let flags = if is_io { 0b11 } else { 0b1111 };
    let mut mask = u64::from(low.mask & !flags);
    let mut address = u64::from(low.value & !flags);
    if wide {
        let high = probe(config, function, index + 1);
        mask |= u64::from(high.mask) << 32;
        address |= u64::from(high.value) << 32;
    }
    // The bits that stay zero are the size: the lowest that can be set is it.
    let size = mask & mask.wrapping_neg();
    let space = match is_io {
        true => Space::Io,
        false => Space::Memory {
            wide,
            prefetchable: low.value & 0b1000 != 0,
        },
    };
    let bar = Bar {
        index,
        space,
        address,
        size,
    };
    ((size != 0).then_some(bar), registers)
}

struct Probe {
    value: u32,
    mask: u32,
}

fn probe(config: &mut impl ConfigurationAccess, function: &Function, index: u8) -> Probe {
    let register = header::BARS + index * 4;
    let value = config.read_word(function.address, register);
    config.write_word(function.address, register, u32::MAX);
    let mask = config.read_word(function.address, register);
    config.write_word(function.address, register, value);
    Probe { value, mask }
}

/// Gives a memory BAR its address.
pub(super) fn set(
    config: &mut impl ConfigurationAccess,
    function: &Function,
    bar: &Bar,
    address: u64,
) {
    let register = header::BARS + bar.index * 4;
    config.write_word(function.address, register, address as u32);
    if matches!(bar.space, Space::Memory { wide: true, .. }) {
        config.write_word(function.address, register + 4, (address >> 32) as u32);
    }
}
