//! Configuration space: in memory (ECAM) where ACPI says so, else through the ports 0xcf8 and 0xcfc.

#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, Ordering};

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::Port;

use crate::platform::acpi;
use crate::platform::memory::paging;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// What one bus takes of the memory window.
const BUS_BYTES: usize = 1 << 20;
const NOTHING: u32 = u32::MAX;

/// Where each bus's configuration space is mapped (null: reached through the ports).
static BUSES: [AtomicPtr<u32>; 256] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 256];
static PORTS_WORK: spin::Once<bool> = spin::Once::new();

/// Access to configuration space. There is one; every value of this type reaches it.
#[derive(Clone, Copy, Debug)]
pub struct ConfigSpace;

/// Finds out how configuration space is reached.
pub(super) fn init() {
    for window in &acpi::info().ecam {
        let buses = usize::from(window.last_bus.saturating_sub(window.first_bus)) + 1;
        // All of it at once: in large pages, that is less work than a bus in small ones.
        match paging::map_mmio(window.address, buses * BUS_BYTES) {
            Ok(mapped) => {
                let first = mapped.as_ptr().cast::<u32>();
                for (index, bus) in (window.first_bus..=window.last_bus).enumerate() {
                    let bus_start = first.wrapping_add(index * BUS_BYTES / 4);
                    BUSES[usize::from(bus)].store(bus_start, Ordering::Relaxed);
                }
            }
            Err(error) => log::warn!("pci: configuration space at {:#x}: {error}", window.address),
        }
    }
    PORTS_WORK.call_once(ports_work);
}

/// How configuration space is reached, in words.
pub fn method() -> &'static str {
    match (BUSES[0].load(Ordering::Relaxed).is_null(), PORTS_WORK.get()) {
        (false, _) => "ECAM",
        (true, Some(true)) => "ports",
        _ => "nothing (no PCI)",
    }
}

/// The address port of a PCI machine keeps what is written to it; without PCI it reads as nothing or as before.
fn ports_work() -> bool {
    let mut port = Port::<u32>::new(ADDRESS_PORT);
    // SAFETY: selects a configuration register, or reaches no device; nothing is read or written through it.
    unsafe {
        let before = port.read();
        port.write(ENABLE);
        let works = port.read() == ENABLE;
        port.write(before);
        works
    }
}

enum Place {
    Memory(*mut u32),
    Ports(u32),
}

/// Where a register is. `None` for registers that do not exist.
fn place(function: DeviceFunction, register: u8) -> Option<Place> {
    if function.device >= 32 || function.function >= 8 {
        return None;
    }
    let register = usize::from(register & 0xfc);
    let within_bus =
        usize::from(function.device) << 15 | usize::from(function.function) << 12 | register;
    let bus = BUSES[usize::from(function.bus)].load(Ordering::Relaxed);
    if !bus.is_null() {
        return Some(Place::Memory(bus.wrapping_add(within_bus / 4)));
    }
    let selector = u32::from(function.bus) << 16
        | u32::from(function.device) << 11
        | u32::from(function.function) << 8
        | register as u32;
    PORTS_WORK
        .get()
        .copied()
        .unwrap_or(false)
        .then_some(Place::Ports(ENABLE | selector))
}

impl ConfigurationAccess for ConfigSpace {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        match place(function, register) {
            // SAFETY: `place` stays inside the bus's megabyte, which is mapped for good.
            Some(Place::Memory(address)) => u32::from_le(unsafe { address.read_volatile() }),
            // SAFETY: these ports are configuration space; with interrupts off nobody selects another register
            // between.
            Some(Place::Ports(selector)) => without_interrupts(|| unsafe {
                Port::<u32>::new(ADDRESS_PORT).write(selector);
                Port::<u32>::new(DATA_PORT).read()
            }),
            None => NOTHING,
        }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        match place(function, register) {
            // SAFETY: as for reading. What a write does to a device cannot touch memory that is ours until it is made
            // bus master, which drivers do.
            Some(Place::Memory(address)) => unsafe { address.write_volatile(data.to_le()) },
            // SAFETY: as above.
            Some(Place::Ports(selector)) => without_interrupts(|| unsafe {
                Port::<u32>::new(ADDRESS_PORT).write(selector);
                Port::<u32>::new(DATA_PORT).write(data);
            }),
            None => {}
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}
