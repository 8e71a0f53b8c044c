//! The machine: its processor, memory, interrupts, clocks, PCI functions and serial port. Nothing in here knows of tasks or
//! of virtio devices.

pub mod acpi;
pub mod arch;
pub mod fw_cfg;
pub mod interrupts;
pub mod journal;
pub mod memory;
pub mod number;
pub mod pci;
pub mod power;
pub mod serial;
pub mod time;
pub mod traps;
