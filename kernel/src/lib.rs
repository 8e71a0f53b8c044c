//! The kernel's rooms. `main.rs` says in which order they are opened and how to work in them.
//!
//! It is a library so that the parts that touch no hardware (the frame bitmap, the timer queue, the line editor, the
//! word splitter, the ACPI byte scanner) are tested on the host, beside their code: `cargo test -p vringlet-kernel --lib`.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod arch;
pub mod dashboard;
pub mod devices;
pub mod fiber;
pub mod files;
pub mod fw_cfg;
pub mod interrupts;
pub mod journal;
pub mod memory;
pub mod net;
pub mod pci;
pub mod picture;
pub mod power;
pub mod serial;
pub mod shell;
pub mod status;
pub mod store;
pub mod task;
pub mod time;
