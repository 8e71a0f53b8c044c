//! The kernel's layers. `main.rs` says in which order they start and how to work in them.
//!
//! ```text
//!   shell      commands: what a person can do with the devices
//!   apps       what uses the drivers: files, pictures, dashboard, store, status
//!   net        smoltcp on the network devices, and services
//!   devices    the virtio devices: found, named, owned
//!   runtime    tasks and fibers
//!   platform   the machine: processor, memory, interrupts, time, PCI, serial port
//! ```
//!
//! A layer uses what is below it and never names what is above. What a lower one needs of a higher one is handed down to
//! it by `main.rs`.
//!
//! It is a library so that the parts that touch no hardware (the frame bitmap, the timer queue, the line editor, the
//! word splitter, the ACPI byte scanner) are tested on the host, beside their code: `cargo test -p vringlet-kernel --lib`.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod apps;
pub mod devices;
pub mod net;
pub mod platform;
pub mod runtime;
pub mod shell;
