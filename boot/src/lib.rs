//! The parts of Vringlet's loader that only compute: what they read comes from firmware, QEMU or a
//! file, and is checked here, where it can be tested on the host.
//!
//! The loader itself (`main.rs`) is described in the folder's README.
#![cfg_attr(not(test), no_std)]

pub mod address_space;
pub mod error;
pub mod frames;
pub mod handoff;
pub mod kernel;
pub mod layout;
pub mod memory_map;
pub mod multiboot2;
pub mod physical;
pub mod rsdp;
pub mod start_info;
