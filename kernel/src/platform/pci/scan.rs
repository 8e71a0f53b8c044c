//! Walking the buses: every device and function of each root bus, and what is behind each bridge.

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::{Function, Kind, header};

const DEVICES: u8 = 32;
const FUNCTIONS: u8 = 8;
const MULTI_FUNCTION: u32 = 1 << 23;
const NO_FUNCTION: u32 = u32::MAX;

/// All functions. Those of bus 0 come first, then those of the root buses that are known by `named`, and what is behind each.
pub(super) fn all(config: &impl ConfigurationAccess, named: &[u8]) -> Vec<Function> {
    let mut walk = Walk {
        config,
        found: Vec::new(),
        visited: [false; 256],
    };
    walk.bus(0, None);
    // A further host bridge shows itself on bus 0, as the first does; QEMU's pxb does so. Where nothing says which bus it leads
    // to (microvm's ACPI tables don't), whatever answers on a bus that no other bridge leads to is behind it.
    let host_bridges = walk
        .found
        .iter()
        .filter(|function| function.is_host_bridge());
    let mut missing = host_bridges.count().saturating_sub(1);
    for bus in named.iter().copied().chain(1..=u8::MAX) {
        if missing == 0 {
            break;
        }
        let before = walk.found.len();
        walk.bus(bus, None);
        missing -= usize::from(walk.found.len() > before);
    }
    walk.found
}

struct Walk<'a, C> {
    config: &'a C,
    found: Vec<Function>,
    /// Buses walked: a bridge that leads back to one of them leads nowhere, and the walk ends.
    visited: [bool; 256],
}

impl<C: ConfigurationAccess> Walk<'_, C> {
    fn bus(&mut self, bus: u8, parent: Option<DeviceFunction>) {
        if core::mem::replace(&mut self.visited[usize::from(bus)], true) {
            return;
        }
        for device in 0..DEVICES {
            for function in 0..FUNCTIONS {
                let address = DeviceFunction {
                    bus,
                    device,
                    function,
                };
                let Some(found) = look(self.config, address, parent) else {
                    // Function 0 must be there for the others to be.
                    if function == 0 { break } else { continue }
                };
                let kind = found.kind;
                self.found.push(found);
                if let Kind::Bridge(secondary) = kind {
                    // Each level of recursion has a bus of its own, so 255 at most; QEMU's machines have three.
                    self.bus(secondary, Some(address));
                }
                let header = self.config.read_word(address, header::HEADER_TYPE);
                if function == 0 && header & MULTI_FUNCTION == 0 {
                    break;
                }
            }
        }
    }
}

/// Reads the header of a function, if there is one.
pub(super) fn look(
    config: &impl ConfigurationAccess,
    address: DeviceFunction,
    parent: Option<DeviceFunction>,
) -> Option<Function> {
    let read = |register| config.read_word(address, register);
    let ids = read(0);
    if ids == NO_FUNCTION || ids & 0xffff == 0xffff {
        return None;
    }
    let [_, interface, subclass, class] = read(header::CLASS).to_le_bytes();
    let kind = match read(header::HEADER_TYPE) >> 16 & 0x7f {
        0 => Kind::Endpoint,
        1 => Kind::Bridge((read(header::BUS_NUMBERS) >> 8) as u8),
        _ => Kind::Other,
    };
    let subsystem = match kind {
        Kind::Endpoint => (read(header::SUBSYSTEM) >> 16) as u16,
        _ => 0,
    };
    Some(Function {
        address,
        vendor: ids as u16,
        device: (ids >> 16) as u16,
        subsystem,
        class: [class, subclass, interface],
        kind,
        parent,
    })
}
