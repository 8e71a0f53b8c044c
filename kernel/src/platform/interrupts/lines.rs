//! Interrupt lines: inputs of the I/O APICs or, where there is none, of the two 8259s.
//!
//! Devices may share a line; every handler on it is called. A line that fires without end (a device that never lets
//! go of it) is masked after 256 interrupts and opened again when the executor has run the tasks once, so tasks
//! get their turn whatever a device does.

#![allow(unsafe_code)]

use alloc::format;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pic8259::ChainedPics;
use spin::{Mutex, Once};
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::Port;

use super::{Error, Handler, PIC_VECTORS, claim, lapic, name_vector};
use crate::platform::acpi;
use crate::platform::memory::paging;

const LINES: usize = 64;
const SHARERS: usize = 8;
const BURST: u32 = 256;
const PIC_LINES: u32 = 16;
const IO_APIC_BYTES: usize = 0x20;

/// How a line signals.
#[derive(Clone, Copy, Debug)]
struct Signal {
    level: bool,
    active_low: bool,
}

struct Line {
    number: u32,
    handlers: [Once<&'static dyn Handler>; SHARERS],
    /// Interrupts since the executor last ran the tasks.
    burst: AtomicU32,
    masked: AtomicBool,
}

static TABLE: [Line; LINES] = {
    let mut table = [const { Line::new(0) }; LINES];
    let mut number = 0;
    while number < LINES {
        table[number].number = number as u32;
        number += 1;
    }
    table
};

/// A line fired since the last look at bursts.
static ANY_FIRED: AtomicBool = AtomicBool::new(false);

static IO_APICS: Once<Vec<IoApic>> = Once::new();
static PICS: Mutex<ChainedPics> = {
    // SAFETY: both offsets are above the exceptions and do not overlap.
    Mutex::new(unsafe { ChainedPics::new_contiguous(PIC_VECTORS) })
};

/// Moves the 8259s out of the exceptions' way and masks all their inputs.
pub(super) fn silence_pics() {
    // SAFETY: the ports are the 8259s' on every PC, or nobody's; interrupts are still off.
    unsafe {
        let mut pics = PICS.lock();
        pics.initialize();
        pics.disable();
    }
}

/// Finds the I/O APICs.
pub(super) fn init() {
    let found = IO_APICS.call_once(|| {
        acpi::info()
            .io_apics
            .iter()
            .filter_map(IoApic::find)
            .collect()
    });
    if found.is_empty() || !lapic::present() {
        log::warn!("irq: no I/O APIC known, using the 8259s");
        lapic::accept_pic();
    }
}

/// Connects a handler to an ISA interrupt, wherever the machine routes it.
pub fn connect_isa(irq: u8, name: &str, handler: &'static dyn Handler) -> Result<(), Error> {
    let routed = acpi::info()
        .overrides
        .iter()
        .find(|source| source.isa == irq);
    let (number, signal) = match routed {
        Some(source) if using_io_apic() => (
            source.input,
            Signal {
                level: source.level,
                active_low: source.active_low,
            },
        ),
        _ => (
            u32::from(irq),
            Signal {
                level: false,
                active_low: false,
            },
        ),
    };
    connect(number, signal, name, handler)
}

/// Connects a handler to a line that PCI or virtio-mmio devices share: level-triggered, active high on QEMU's machines
/// for those wired straight to the I/O APIC as for those that share an 8259 input.
pub fn connect_shared(number: u32, name: &str, handler: &'static dyn Handler) -> Result<(), Error> {
    let signal = Signal {
        level: true,
        active_low: false,
    };
    connect(number, signal, name, handler)
}

fn connect(
    number: u32,
    signal: Signal,
    name: &str,
    handler: &'static dyn Handler,
) -> Result<(), Error> {
    let line = TABLE
        .get(number as usize)
        .ok_or(Error::NoSuchLine(number))?;
    let io_apic = io_apic_of(number);
    if io_apic.is_none() && (using_io_apic() || number >= PIC_LINES) {
        return Err(Error::NoSuchLine(number));
    }
    let first = line.handlers[0].get().is_none();
    let place = line
        .handlers
        .iter()
        .find(|place| place.get().is_none())
        .ok_or(Error::LineFull(number))?;
    if first {
        let shown = format!("line {number} ({name})");
        match io_apic {
            Some((io_apic, input)) => io_apic.route(input, claim(&shown, line)?, signal),
            None => name_vector(PIC_VECTORS + number as u8, &shown, line),
        }
    }
    place.call_once(|| handler);
    line.unmask();
    Ok(())
}

fn using_io_apic() -> bool {
    lapic::present() && IO_APICS.get().is_some_and(|found| !found.is_empty())
}

fn io_apic_of(number: u32) -> Option<(&'static IoApic, u32)> {
    let found = IO_APICS.get().filter(|_| lapic::present())?;
    found.iter().find_map(|io_apic| {
        let input = number.checked_sub(io_apic.first_input)?;
        (input < io_apic.inputs).then_some((io_apic, input))
    })
}

/// Opens lines that were masked for firing without end. The executor calls it after each round of tasks.
pub(crate) fn unmask() {
    // Mostly none did, and a load is cheaper than a swap.
    if !any_fired() || !ANY_FIRED.swap(false, Ordering::Relaxed) {
        return;
    }
    for line in &TABLE {
        if line.burst.swap(0, Ordering::Relaxed) != 0 && line.masked.load(Ordering::Relaxed) {
            line.unmask();
            // What an edge-triggered device signalled meanwhile is lost: its handler must look for itself.
            without_interrupts(|| line.call_handlers());
        }
    }
}

/// Whether a line fired since the last [`unmask`], and so may be masked. The processor must not sleep then.
pub(crate) fn any_fired() -> bool {
    ANY_FIRED.load(Ordering::Relaxed)
}

/// An interrupt of the 8259s. Returns false if it was spurious.
pub(super) fn pic_interrupt(irq: u8) -> bool {
    // Inputs 7 and 15 fire spuriously, and then are not in service.
    if (irq == 7 || irq == 15) && !in_service(irq) {
        if irq == 15 {
            // The first 8259 did see a real interrupt: the second one's.
            // SAFETY: ends the interrupt in service.
            unsafe { PICS.lock().notify_end_of_interrupt(PIC_VECTORS + 2) };
        }
        return false;
    }
    let served = TABLE[usize::from(irq)].interrupt();
    // SAFETY: ends the interrupt in service. Tasks take the lock with interrupts off, so it is free here.
    unsafe { PICS.lock().notify_end_of_interrupt(PIC_VECTORS + irq) };
    served
}

fn in_service(irq: u8) -> bool {
    const READ_IN_SERVICE: u8 = 0x0b;
    let mut command = Port::<u8>::new(if irq < 8 { 0x20 } else { 0xa0 });
    // SAFETY: the 8259's command port; this only chooses what the next read returns.
    let in_service = unsafe {
        command.write(READ_IN_SERVICE);
        command.read()
    };
    in_service & 1 << (irq % 8) != 0
}

impl Line {
    const fn new(number: u32) -> Self {
        Self {
            number,
            handlers: [const { Once::new() }; SHARERS],
            burst: AtomicU32::new(0),
            masked: AtomicBool::new(false),
        }
    }

    fn mask(&self) {
        self.masked.store(true, Ordering::Relaxed);
        self.set_mask(true);
    }

    fn unmask(&self) {
        self.masked.store(false, Ordering::Relaxed);
        self.set_mask(false);
    }

    fn call_handlers(&self) -> bool {
        // Every one of them, not only up to the first that says it was its device: several may have raised the line.
        let called = self.handlers.iter().filter_map(Once::get);
        called.fold(false, |served, handler| handler.interrupt() | served)
    }

    fn set_mask(&self, masked: bool) {
        without_interrupts(|| match io_apic_of(self.number) {
            Some((io_apic, input)) => io_apic.set_mask(input, masked),
            None => set_pic_mask(self.number, masked),
        });
    }
}

impl Handler for Line {
    fn interrupt(&self) -> bool {
        ANY_FIRED.store(true, Ordering::Relaxed);
        if self.burst.fetch_add(1, Ordering::Relaxed) >= BURST {
            self.mask();
        }
        self.call_handlers()
    }
}

fn set_pic_mask(irq: u32, masked: bool) {
    let mut pics = PICS.lock();
    // SAFETY: opens or closes one input (and the second 8259's way through the first); interrupts are off.
    unsafe {
        let mut masks = pics.read_masks();
        let (chip, bit) = (irq as usize / 8, 1u8 << (irq % 8));
        if let Some(mask) = masks.get_mut(chip) {
            *mask = if masked { *mask | bit } else { *mask & !bit };
        }
        if chip == 1 && !masked {
            masks[0] &= !(1 << 2);
        }
        pics.write_masks(masks[0], masks[1]);
    }
}

/// One I/O APIC. Its registers are reached through an index and a window, so only with interrupts off.
struct IoApic {
    registers: NonNull<u8>,
    first_input: u32,
    inputs: u32,
}

// SAFETY: the registers are mapped for good; each access to them happens with interrupts off, on the one processor.
unsafe impl Send for IoApic {}
// SAFETY: as above.
unsafe impl Sync for IoApic {}

impl IoApic {
    const VERSION: u32 = 1;
    const TABLE: u32 = 0x10;
    const MASKED: u32 = 1 << 16;
    const LEVEL: u32 = 1 << 15;
    const ACTIVE_LOW: u32 = 1 << 13;

    fn find(listed: &acpi::IoApic) -> Option<Self> {
        let registers = paging::map_mmio(listed.address, IO_APIC_BYTES)
            .inspect_err(|error| log::warn!("irq: I/O APIC at {:#x}: {error}", listed.address))
            .ok()?;
        let mut io_apic = Self {
            registers,
            first_input: listed.first_input,
            inputs: 0,
        };
        io_apic.inputs = without_interrupts(|| io_apic.read(Self::VERSION) >> 16 & 0xff) + 1;
        (0..io_apic.inputs).for_each(|input| without_interrupts(|| io_apic.set_mask(input, true)));
        Some(io_apic)
    }

    fn route(&self, input: u32, vector: u8, signal: Signal) {
        let mut low = Self::MASKED | u32::from(vector);
        if signal.level {
            low |= Self::LEVEL;
        }
        if signal.active_low {
            low |= Self::ACTIVE_LOW;
        }
        let destination = lapic::id().unwrap_or(0) << 24;
        without_interrupts(|| {
            self.write(Self::TABLE + input * 2 + 1, destination);
            self.write(Self::TABLE + input * 2, low);
        });
    }

    fn set_mask(&self, input: u32, masked: bool) {
        let register = Self::TABLE + input * 2;
        let low = self.read(register) & !Self::MASKED;
        self.write(register, if masked { low | Self::MASKED } else { low });
    }

    fn select(&self, register: u32) -> *mut u32 {
        // SAFETY: the index register is mapped at offset 0, the window at 0x10.
        unsafe {
            self.registers
                .as_ptr()
                .cast::<u32>()
                .write_volatile(register);
            self.registers.as_ptr().add(0x10).cast()
        }
    }

    fn read(&self, register: u32) -> u32 {
        // SAFETY: the window shows the register just selected.
        unsafe { self.select(register).read_volatile() }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as in `read`; the values are redirection entries.
        unsafe { self.select(register).write_volatile(value) };
    }
}
