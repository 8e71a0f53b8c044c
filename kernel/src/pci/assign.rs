//! Bus numbers and memory addresses for functions that the firmware gave none.
//!
//! SeaBIOS and OVMF do all of this; the firmware of microvm (qboot) does nothing. What a function has already is left
//! as it is. Behind a bridge, memory comes out of the bridge's 32-bit window, which any memory BAR may be in; a BAR too
//! large for it, and I/O ports, which modern virtio has no use for, are left without address, and a log line says so.

use alloc::vec::Vec;
use core::ops::Range;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::bar::{self, Bar, Space};
use super::config::ConfigSpace;
use super::{Function, Kind, command, header, scan};
use crate::acpi;

const FOUR_GIB: u64 = 1 << 32;
const PAGE: u64 = 4096;
/// A bridge's memory window begins and ends on one of these.
const BRIDGE_UNIT: u64 = 1 << 20;
/// Memory base and limit, and their prefetchable twins, in a bridge's header.
const MEMORY_WINDOW: u8 = 0x20;
const PREFETCHABLE_WINDOW: u8 = 0x24;
/// A window that is closed: its base is above its limit.
const CLOSED: u32 = 0x0000_fff0;

/// Assigns what is missing. Returns whether buses were numbered, so that there may be more functions than before.
pub(super) fn complete(functions: &mut Vec<Function>) -> bool {
    let bare = |function: &Function| {
        function.kind != Kind::Other && !decodes_memory(function) && wants_memory(function)
    };
    let unnumbered = functions
        .iter()
        .any(|function| function.kind == Kind::Bridge(0));
    if unnumbered {
        let mut last = functions
            .iter()
            .map(|function| function.address.bus)
            .max()
            .unwrap_or(0);
        number_bus(0, None, &mut last);
        *functions = scan::all();
    }
    if functions.iter().any(bare) {
        let mut memory = Memory::of_root_bus(functions);
        assign_bus(functions, 0, &mut memory);
    }
    unnumbered
}

fn decodes_memory(function: &Function) -> bool {
    ConfigSpace.read_word(function.address, header::COMMAND) & command::MEMORY != 0
}

/// Whether there is a memory BAR without address. Only asked of functions that decode nothing yet.
fn wants_memory(function: &Function) -> bool {
    bar::read(function)
        .iter()
        .any(|bar| bar.space != Space::Io && bar.address == 0)
}

/// Numbers the buses behind the bridges of a bus that have no number, depth first.
fn number_bus(bus: u8, parent: Option<DeviceFunction>, last: &mut u8) {
    let limit = acpi::info()
        .ecam
        .iter()
        .map(|window| window.last_bus)
        .max()
        .unwrap_or(u8::MAX);
    for device in 0..32 {
        let address = |function| DeviceFunction {
            bus,
            device,
            function,
        };
        for bridge in (0..8).filter_map(|function| scan::look(address(function), parent)) {
            if bridge.kind != Kind::Bridge(0) {
                continue;
            }
            let Some(secondary) = last.checked_add(1).filter(|number| *number <= limit) else {
                log::warn!("pci: no bus number left for the bridge {}", bridge.address);
                return;
            };
            *last = secondary;
            set_buses(bridge.address, bus, secondary, limit);
            number_bus(secondary, Some(bridge.address), last);
            set_buses(bridge.address, bus, secondary, *last);
        }
    }
}

fn set_buses(bridge: DeviceFunction, primary: u8, secondary: u8, subordinate: u8) {
    let latency = ConfigSpace.read_word(bridge, header::BUS_NUMBERS) & 0xff00_0000;
    let numbers = u32::from_le_bytes([primary, secondary, subordinate, 0]);
    ConfigSpace.write_word(bridge, header::BUS_NUMBERS, latency | numbers);
}

/// Gives addresses to everything on a bus that decodes no memory yet.
fn assign_bus(functions: &[Function], bus: u8, memory: &mut Memory) {
    for function in functions
        .iter()
        .filter(|function| function.address.bus == bus)
    {
        if function.kind == Kind::Other || decodes_memory(function) {
            continue;
        }
        let complete = assign_bars(function, memory);
        if let Kind::Bridge(secondary) = function.kind
            && secondary > bus
        {
            assign_bridge(functions, function, secondary, memory);
        }
        if complete {
            let command = ConfigSpace.read_word(function.address, header::COMMAND) & 0xffff;
            let bus_master = match function.kind {
                // A bridge passes on what its devices send only as bus master; a device is made one by its driver.
                Kind::Bridge(_) => command::BUS_MASTER,
                _ => 0,
            };
            ConfigSpace.write_word(
                function.address,
                header::COMMAND,
                command | command::MEMORY | bus_master,
            );
        }
    }
}

/// Returns whether every memory BAR has an address now, so that decoding may be turned on.
fn assign_bars(function: &Function, memory: &mut Memory) -> bool {
    let wanting = |bar: &Bar| bar.space != Space::Io && bar.address == 0;
    let mut complete = true;
    for bar in bar::read(function).iter().filter(|bar| wanting(bar)) {
        let wide = matches!(bar.space, Space::Memory { wide: true, .. });
        match memory.take(bar.size, bar.size, wide) {
            Some(address) => bar::set(function, bar, address),
            None => {
                complete = false;
                log::warn!(
                    "pci: no addresses left for {} of {}: {:#x} bytes",
                    bar.index,
                    function.address,
                    bar.size
                );
            }
        }
    }
    complete
}

/// Opens a bridge's window wide enough for what is behind it, and assigns that.
fn assign_bridge(functions: &[Function], bridge: &Function, secondary: u8, memory: &mut Memory) {
    let behind = demand(functions, secondary).next_multiple_of(BRIDGE_UNIT);
    let align = behind.next_power_of_two();
    let Some(start) = memory.take(behind, align, false) else {
        ConfigSpace.write_word(bridge.address, MEMORY_WINDOW, CLOSED);
        ConfigSpace.write_word(bridge.address, PREFETCHABLE_WINDOW, CLOSED);
        log::warn!(
            "pci: no addresses left for what is behind the bridge {}",
            bridge.address
        );
        return;
    };
    let last = start + behind - 1;
    // Both registers hold address bits 20..32 in their upper 12 bits.
    let window = (last as u32 & 0xfff0_0000) | (start as u32 >> 16 & 0xfff0);
    ConfigSpace.write_word(bridge.address, MEMORY_WINDOW, window);
    ConfigSpace.write_word(bridge.address, PREFETCHABLE_WINDOW, CLOSED);
    let mut inside = Memory {
        windows: alloc::vec![start..start + behind],
    };
    assign_bus(functions, secondary, &mut inside);
}

/// An upper bound for what the functions on a bus and behind it need, alignment included: at least one unit, for a
/// device plugged in later.
fn demand(functions: &[Function], bus: u8) -> u64 {
    let on_bus = functions
        .iter()
        .filter(|function| function.address.bus == bus);
    let needs = on_bus.map(|function| {
        let memory = bar::read(function)
            .into_iter()
            .filter(|bar| bar.space != Space::Io);
        // Twice the size leaves room to align, in whatever order the BARs come.
        let bars: u64 = memory
            .map(|bar| bar.size.max(PAGE).saturating_mul(2))
            .fold(0, u64::saturating_add);
        let behind = match function.kind {
            Kind::Bridge(secondary) if secondary > bus => {
                demand(functions, secondary).saturating_mul(4)
            }
            _ => 0,
        };
        bars.saturating_add(behind)
    });
    let sum = needs.fold(0, u64::saturating_add);
    // More than the 32-bit space could ever give: refused as a whole when it is asked for.
    sum.clamp(BRIDGE_UNIT, FOUR_GIB)
}

/// Address ranges to be given out.
struct Memory {
    windows: Vec<Range<u64>>,
}

impl Memory {
    /// What ACPI hands to the host bridge, above everything that is in use already.
    fn of_root_bus(functions: &[Function]) -> Self {
        let ecam = &acpi::info().ecam;
        let is_ecam = |window: &Range<u64>| ecam.iter().any(|ecam| window.contains(&ecam.address));
        let mut windows = acpi::dsdt::pci_windows(acpi::info().dsdt);
        windows.retain(|window| !is_ecam(window));
        if windows.is_empty() {
            log::warn!("pci: ACPI names no addresses for PCI; functions without address stay so");
        }
        for bar in functions
            .iter()
            .flat_map(bar::read)
            .filter(|bar| bar.space != Space::Io)
        {
            let end = bar.address.saturating_add(bar.size);
            for window in windows
                .iter_mut()
                .filter(|window| window.contains(&bar.address))
            {
                window.start = window.start.max(end).min(window.end);
            }
        }
        Self { windows }
    }

    /// Takes `size` bytes at a multiple of `align` (a power of two, at least a page so that no two devices share one).
    fn take(&mut self, size: u64, align: u64, above_four_gib: bool) -> Option<u64> {
        let align = align.max(PAGE);
        self.windows.iter_mut().find_map(|window| {
            let start = window.start.checked_next_multiple_of(align)?;
            let end = start.checked_add(size)?;
            let reachable = above_four_gib || end <= FOUR_GIB;
            if end > window.end || !reachable || start == 0 {
                return None;
            }
            window.start = end;
            Some(start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_and_used_once() {
        let mut memory = Memory {
            windows: alloc::vec![0xc000_1000..0xc010_0000, 0x1_0000_0000..0x2_0000_0000],
        };
        assert_eq!(memory.take(0x100, 0x100, false), Some(0xc000_1000));
        assert_eq!(memory.take(0x100, 0x100, false), Some(0xc000_2000));
        assert_eq!(memory.take(0x4000, 0x4000, true), Some(0xc000_4000));
        // Too large for the low window: only where 64 bits are wide enough.
        assert_eq!(memory.take(0x10_0000, 0x10_0000, false), None);
        assert_eq!(memory.take(0x10_0000, 0x10_0000, true), Some(0x1_0000_0000));
        assert_eq!(memory.take(u64::MAX, 1 << 63, true), None);
    }
}
