//! PCI: the functions that are there, what they ask for, and giving it to them where the firmware did not.
//!
//! Nothing in configuration space is trusted: every walk is bounded, and an odd value costs its function, not us.

mod assign;
pub mod bar;
pub mod capability;
pub mod config;
mod scan;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use spin::Once;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use x86_64::instructions::interrupts::without_interrupts;

use crate::platform::acpi;
pub use config::ConfigSpace;

/// Offsets in the configuration header.
mod header {
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const CLASS: u8 = 0x08;
    pub(super) const HEADER_TYPE: u8 = 0x0c;
    pub(super) const BARS: u8 = 0x10;
    pub(super) const BUS_NUMBERS: u8 = 0x18;
    pub(super) const SUBSYSTEM: u8 = 0x2c;
    pub(super) const CAPABILITIES: u8 = 0x34;
    pub(super) const INTERRUPT: u8 = 0x3c;
}

/// Bits of the command register.
mod command {
    pub(super) const IO: u32 = 1 << 0;
    pub(super) const MEMORY: u32 = 1 << 1;
    pub(super) const BUS_MASTER: u32 = 1 << 2;
}

/// A function found on a PCI bus.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it is.
    pub address: DeviceFunction,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem id (0 for bridges).
    pub subsystem: u16,
    /// Base class, subclass and programming interface.
    pub class: [u8; 3],
    /// What kind of function it is.
    pub kind: Kind,
    /// The bridge that leads to its bus (`None` on a root bus).
    pub parent: Option<DeviceFunction>,
}

/// What a function's header describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An ordinary function, with six BARs.
    Endpoint,
    /// A bridge to the bus with this number, with two BARs.
    Bridge(u8),
    /// Something else (CardBus): left alone.
    Other,
}

static FUNCTIONS: Once<Vec<Function>> = Once::new();

/// Finds the functions, and gives bus numbers and addresses to those that have none.
pub fn init() {
    config::init();
    let found = scan::all(&ConfigSpace, &acpi::dsdt::root_buses(acpi::info().dsdt));
    let functions = assign::complete(&mut ConfigSpace, found, resources);
    log::debug!(
        "pci: {} functions, root buses {:02x?}, configuration by {}",
        functions.len(),
        root_buses(&functions),
        config::method()
    );
    FUNCTIONS.call_once(|| functions);
}

/// The root buses on which something was found, in order.
fn root_buses(functions: &[Function]) -> Vec<u8> {
    let roots = functions
        .iter()
        .filter(|function| function.parent.is_none());
    let mut buses: Vec<_> = roots.map(|function| function.address.bus).collect();
    buses.sort_unstable();
    buses.dedup();
    buses
}

/// What ACPI hands to the host bridges.
fn resources() -> assign::Resources {
    let info = acpi::info();
    let is_ecam = |window: &Range<u64>| info.ecam.iter().any(|ecam| window.contains(&ecam.address));
    let mut windows = acpi::dsdt::pci_windows(info.dsdt);
    windows.retain(|window| !is_ecam(window));
    assign::Resources {
        last_bus: info
            .ecam
            .iter()
            .map(|ecam| ecam.last_bus)
            .max()
            .unwrap_or(u8::MAX),
        windows,
    }
}

/// The BARs of a function, with their sizes. Measuring takes the function off the bus for a moment, so interrupts are
/// off meanwhile.
pub fn bars(function: &Function) -> Vec<bar::Bar> {
    without_interrupts(|| bar::read(&mut ConfigSpace, function))
}

/// All functions, in the order of their addresses as the buses were walked.
pub fn functions() -> &'static [Function] {
    FUNCTIONS.get().map_or(&[], Vec::as_slice)
}

/// Why a function has no interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLine {
    /// It has no interrupt pin.
    NoPin,
    /// Neither the firmware's interrupt line register nor ACPI says where the pin leads.
    UnknownRoute,
}

impl fmt::Display for NoLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPin => "the function has no interrupt pin",
            Self::UnknownRoute => "neither firmware nor ACPI says where the interrupt pin leads",
        })
    }
}

impl Function {
    /// Whether it stands on bus 0 for a bridge between processor and PCI.
    fn is_host_bridge(&self) -> bool {
        const HOST_BRIDGE: [u8; 2] = [0x06, 0x00];
        self.address.bus == 0 && self.class.starts_with(&HOST_BRIDGE)
    }

    /// The interrupt line that the function's pin leads to, for `interrupts::lines::connect_shared`.
    ///
    /// The interrupt line register where the firmware set it up (SeaBIOS on pc and q35), else the routing table of the
    /// DSDT (microvm, whose firmware leaves PCI alone).
    pub fn interrupt_line(&self) -> Result<u32, NoLine> {
        let interrupt = ConfigSpace.read_word(self.address, header::INTERRUPT);
        let (line, pin) = (interrupt & 0xff, (interrupt >> 8 & 0xff) as u8);
        if !(1..=4).contains(&pin) {
            return Err(NoLine::NoPin);
        }
        if (1..16).contains(&line) {
            return Ok(line);
        }
        let (device, pin) = self.root_pin(pin - 1);
        acpi::dsdt::pci_interrupt(acpi::info().dsdt, device, pin).ok_or(NoLine::UnknownRoute)
    }

    /// The device and the pin (0 is INTA) on the root bus that an interrupt pin comes out at: each bridge rotates the
    /// pins by the device number behind it (PCI-to-PCI Bridge Architecture, 9.1).
    fn root_pin(&self, pin: u8) -> (u8, u8) {
        const MAX_BRIDGES: usize = 256;
        let (mut pin, mut at) = (pin, self);
        for _ in 0..MAX_BRIDGES {
            let parent = at.parent.and_then(|parent| {
                functions()
                    .iter()
                    .find(|function| function.address == parent)
            });
            let Some(parent) = parent else { break };
            pin = (pin + at.address.device) % 4;
            at = parent;
        }
        (at.address.device, pin)
    }
}
