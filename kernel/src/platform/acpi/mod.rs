//! What the firmware's ACPI tables say: processors, interrupt controllers, PCI configuration space, timers, power.
//!
//! The static tables are read by the `acpi` crate. The DSDT is a program; instead of an interpreter (the crate's needs
//! nightly Rust) we read from it, in [`dsdt`], the few self-describing resources the kernel needs.

#![allow(unsafe_code)]

pub mod dsdt;

use alloc::vec::Vec;
use core::ptr::NonNull;

use ::acpi::address::{AddressSpace, GenericAddress};
use ::acpi::fadt::Fadt;
use ::acpi::madt::{Madt, MadtEntry};
use ::acpi::mcfg::Mcfg;
use ::acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use spin::Once;

use crate::platform::memory::paging;

/// Everything the kernel takes from ACPI. Empty where the machine has none.
#[derive(Default)]
pub struct Info {
    /// Processors that are present and enabled (0 when ACPI does not say).
    pub processors: usize,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not wired to the I/O APIC input of their own number.
    pub overrides: Vec<Override>,
    /// PCI configuration space in memory.
    pub ecam: Vec<Ecam>,
    /// The I/O port of the power management timer, and whether it has 32 bits (else 24).
    pub pm_timer: Option<(u16, bool)>,
    /// Which register of the real-time clock has the century.
    pub century: Option<u8>,
    /// How to switch off and restart.
    pub power: Option<Power>,
    /// The DSDT's byte code.
    pub dsdt: &'static [u8],
}

/// One I/O APIC.
#[derive(Clone, Copy)]
pub struct IoApic {
    /// Where its registers are.
    pub address: u64,
    /// The global number of its first input.
    pub first_input: u32,
}

/// Where an ISA interrupt really arrives.
#[derive(Clone, Copy)]
pub struct Override {
    /// The ISA interrupt.
    pub isa: u8,
    /// The global interrupt number.
    pub input: u32,
    /// Low means active.
    pub active_low: bool,
    /// The line is level-triggered.
    pub level: bool,
}

/// One window of PCI configuration space.
#[derive(Clone, Copy)]
pub struct Ecam {
    /// The physical address of bus `first_bus`.
    pub address: u64,
    /// The first bus in the window.
    pub first_bus: u8,
    /// The last bus in the window.
    pub last_bus: u8,
}

/// How the machine is switched off and restarted.
pub struct Power {
    /// PM1a and PM1b control, 16-bit I/O ports.
    pub pm1_control: [Option<u16>; 2],
    /// On hardware-reduced ACPI machines: the sleep control register.
    pub sleep_control: Option<Register>,
    /// The reset register and the value that resets.
    pub reset: Option<(Register, u8)>,
}

/// A byte register of the platform.
#[derive(Clone, Copy)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(u64),
}

static INFO: Once<Info> = Once::new();

/// What was read at boot.
pub fn info() -> &'static Info {
    static NOTHING: Once<Info> = Once::new();
    INFO.get()
        .unwrap_or_else(|| NOTHING.call_once(Info::default))
}

/// Reads the tables, if the boot loader found any.
pub fn init(rsdp: Option<u64>) {
    INFO.call_once(|| rsdp.and_then(read).unwrap_or_default());
}

fn read(rsdp: u64) -> Option<Info> {
    // SAFETY: the boot loader passes on the firmware's RSDP; the crate checks signature and checksum.
    let tables = unsafe { AcpiTables::from_rsdp(Mapper, rsdp as usize) }
        .inspect_err(|error| log::warn!("acpi: no tables: {error:?}"))
        .ok()?;
    let mut info = Info::default();
    if let Ok(madt) = tables.find_table::<Madt>() {
        read_madt(&madt, &mut info);
    }
    if let Ok(mcfg) = tables.find_table::<Mcfg>() {
        let first_segment = mcfg
            .entries()
            .iter()
            .filter(|entry| entry.pci_segment_group == 0);
        info.ecam = first_segment
            .map(|entry| Ecam {
                address: entry.base_address,
                first_bus: entry.bus_number_start,
                last_bus: entry.bus_number_end,
            })
            .collect();
    }
    if let Ok(dsdt) = tables.dsdt() {
        // SAFETY: the crate checked the table's checksum over this length; tables are not written to and what is
        // mapped stays mapped.
        info.dsdt = map(dsdt.address as u64, dsdt.length as usize).map_or(&[], |code| unsafe {
            core::slice::from_raw_parts(code.as_ptr(), dsdt.length as usize)
        });
    }
    if info.ecam.is_empty() {
        info.ecam.extend(ecam_of_dsdt(info.dsdt));
    }
    if let Ok(fadt) = tables.find_table::<Fadt>() {
        read_fadt(&fadt, &mut info);
    }
    Some(info)
}

/// A host bridge that the MCFG table does not list (microvm's).
fn ecam_of_dsdt(dsdt: &[u8]) -> Option<Ecam> {
    const BUS_BYTES: u64 = 1 << 20;
    let range = dsdt::ecam(dsdt)?;
    let buses = ((range.end - range.start) / BUS_BYTES).min(256);
    Some(Ecam {
        address: range.start,
        first_bus: 0,
        last_bus: u8::try_from(buses.checked_sub(1)?).ok()?,
    })
}

fn read_madt(madt: &PhysicalMapping<Mapper, Madt>, info: &mut Info) {
    const ENABLED: u32 = 1;
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(apic) if { apic.flags } & ENABLED != 0 => info.processors += 1,
            MadtEntry::LocalX2Apic(apic) if { apic.flags } & ENABLED != 0 => info.processors += 1,
            MadtEntry::IoApic(apic) => info.io_apics.push(IoApic {
                address: u64::from(apic.io_apic_address),
                first_input: apic.global_system_interrupt_base,
            }),
            MadtEntry::InterruptSourceOverride(source) => info.overrides.push(Override {
                isa: source.irq,
                input: source.global_system_interrupt,
                // Bits 0..2 polarity, 2..4 trigger mode; 0 and 1 are what ISA does, 3 the opposite.
                active_low: source.flags & 0b11 == 0b11,
                level: source.flags >> 2 & 0b11 == 0b11,
            }),
            _ => {}
        }
    }
}

fn read_fadt(fadt: &Fadt, info: &mut Info) {
    let port = |register: Option<GenericAddress>| match register?.address_space {
        AddressSpace::SystemIo => u16::try_from(register?.address)
            .ok()
            .filter(|&port| port != 0),
        _ => None,
    };
    let reduced = { fadt.flags }.system_is_hw_reduced_acpi();
    if !reduced {
        info.pm_timer = port(fadt.pm_timer_block().ok().flatten())
            .map(|port| (port, { fadt.flags }.pm_timer_is_32_bit()));
    }
    // The clock has 128 registers.
    info.century = Some(fadt.century).filter(|register| (1..128).contains(register));
    let pm1_control = match reduced {
        true => [None, None],
        false => [
            port(fadt.pm1a_control_block().ok()),
            port(fadt.pm1b_control_block().ok().flatten()),
        ],
    };
    let sleep_control = match reduced {
        true => fadt
            .sleep_control_register()
            .ok()
            .flatten()
            .and_then(register),
        false => None,
    };
    let reset = { fadt.flags }
        .supports_system_reset_via_fadt()
        .then(|| fadt.reset_register().ok().and_then(register))
        .flatten();
    info.power = Some(Power {
        pm1_control,
        sleep_control,
        reset: reset.map(|register| (register, fadt.reset_value)),
    });
}

fn register(address: GenericAddress) -> Option<Register> {
    match address.address_space {
        AddressSpace::SystemIo => u16::try_from(address.address).ok().map(Register::Port),
        AddressSpace::SystemMemory => Some(Register::Memory(address.address)),
        _ => None,
    }
}

/// Where firmware data is now: in the physical-memory mapping if the loader counted it as memory, else mapped here.
fn map(physical: u64, bytes: usize) -> Option<NonNull<u8>> {
    paging::memory_at(physical, bytes).or_else(|| {
        paging::map_mmio(physical, bytes)
            .inspect_err(|error| log::warn!("acpi: table at {physical:#x}: {error}"))
            .ok()
    })
}

#[derive(Clone)]
struct Mapper;

impl AcpiHandler for Mapper {
    unsafe fn map_physical_region<T>(
        &self,
        physical: usize,
        bytes: usize,
    ) -> PhysicalMapping<Self, T> {
        // An old table may be shorter than the crate's type for it, whose later fields the crate looks at all the same.
        let mapped = bytes.max(size_of::<T>());
        // The trait knows no failure; this early in the boot only a table at an absurd address causes one.
        let start = map(physical as u64, mapped).expect("the ACPI tables cannot be mapped");
        // SAFETY: at least `bytes` bytes are mapped at `start` and stay so.
        unsafe { PhysicalMapping::new(physical, start.cast(), bytes, mapped, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}
