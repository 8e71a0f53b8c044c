//! Base address registers: where a PCI function's memory regions are, and how large.

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

const COMMAND: u8 = 0x04;
const COMMAND_MEMORY_SPACE: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const BAR0: u8 = 0x10;

const BAR_IO: u32 = 1;
const BAR_TYPE_MASK: u32 = 0b110;
const BAR_TYPE_64: u32 = 0b100;
const BAR_FLAGS: u32 = 0b1111;

/// A memory BAR: a run of physical addresses that the function answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Physical address of its first byte; 0 if the firmware did not assign one.
    pub address: u64,
    /// Length in bytes, a power of two.
    pub len: u64,
}

/// Reads the memory BARs of a function with a type 0 header. An I/O BAR, an unused one, and the upper half of a 64-bit
/// one are `None`.
///
/// Address decoding is switched off while a BAR holds the pattern that reveals its size, so that the function does not
/// answer at a foreign address meanwhile.
pub(super) fn read_bars<C: ConfigurationAccess>(
    config: &mut C,
    function: DeviceFunction,
) -> [Option<Bar>; 6] {
    let command = config.read_word(function, COMMAND) & 0xffff;
    config.write_word(function, COMMAND, command & !0b11);
    let mut bars = [None; 6];
    let mut index = 0;
    while let Some(slot) = bars.get_mut(index) {
        let offset = BAR0 + 4 * index as u8;
        let low = config.read_word(function, offset);
        let wide = low & (BAR_IO | BAR_TYPE_MASK) == BAR_TYPE_64 && index < 5;
        let mut mask = u64::from(probe(config, function, offset, low) & !BAR_FLAGS);
        let mut address = u64::from(low & !BAR_FLAGS);
        if wide {
            let high = config.read_word(function, offset + 4);
            mask |= u64::from(probe(config, function, offset + 4, high)) << 32;
            address |= u64::from(high) << 32;
        } else if mask != 0 {
            mask |= u64::from(u32::MAX) << 32;
        }
        if low & BAR_IO == 0 && mask != 0 {
            // The lowest bit that can be set is the size; all of them above it can be.
            let len = mask & mask.wrapping_neg();
            if address.checked_add(len).is_some() {
                *slot = Some(Bar { address, len });
            }
        }
        index += if wide { 2 } else { 1 };
    }
    config.write_word(function, COMMAND, command);
    bars
}

/// Writes all ones to a BAR register, reads what sticks, and restores `original`.
fn probe<C: ConfigurationAccess>(
    config: &mut C,
    function: DeviceFunction,
    offset: u8,
    original: u32,
) -> u32 {
    config.write_word(function, offset, u32::MAX);
    let mask = config.read_word(function, offset);
    config.write_word(function, offset, original);
    mask
}

/// Lets the function answer to its memory BARs and reach memory by itself (DMA and MSI-X).
pub(super) fn enable_memory_and_bus_master<C: ConfigurationAccess>(
    config: &mut C,
    function: DeviceFunction,
) {
    let command = config.read_word(function, COMMAND) & 0xffff;
    let command = command | COMMAND_MEMORY_SPACE | COMMAND_BUS_MASTER;
    config.write_word(function, COMMAND, command);
}
