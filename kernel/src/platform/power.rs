//! Ending the guest: ACPI power-off, reset, and QEMU's isa-debug-exit for everything that must be told from success.

#![allow(unsafe_code)]

use core::time::Duration;

use x86_64::instructions::interrupts;
use x86_64::instructions::port::Port;

use crate::platform::acpi::{self, Register};
use crate::platform::{serial, time};

const DEBUG_EXIT: u16 = 0xf4;
/// What an absent port reads as.
const NO_DEVICE: u8 = 0xff;
const SLEEP_ENABLE: u16 = 1 << 13;

/// Why the guest ends; QEMU's exit status is `(value << 1) | 1`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum ExitCode {
    /// There is too little memory for the kernel. The loader's failures have the same value.
    TooLittleMemory = 0x10,
    /// The kernel panicked.
    Panic = 0x11,
    /// The processor raised an exception the kernel cannot go on from.
    FatalException = 0x12,
    /// A command of a strict script failed.
    FailedScript = 0x13,
}

/// Ends QEMU with this code, or stops for ever where the machine has no isa-debug-exit. The report must be out.
pub fn exit(code: ExitCode) -> ! {
    exit_with(code as u32);
    halt()
}

/// How often the exit port is read before the guest takes it that there is none: a fifth of a second or more.
const READS_UNTIL_GONE: u32 = 1_000_000;

/// Ends QEMU with status `(value << 1) | 1`; returns where the machine has no isa-debug-exit.
pub fn exit_with(value: u32) {
    serial::drain();
    let mut port = Port::<u32>::new(DEBUG_EXIT);
    // SAFETY: QEMU's isa-debug-exit, or no device at all, answers at this port; writing ends the guest.
    unsafe { port.write(value) };
    // QEMU only notes that it is to end, and the guest runs on until it gets to it. A read is an exit to QEMU.
    for _ in 0..READS_UNTIL_GONE {
        // SAFETY: as above; reading has no effect.
        unsafe { port.read() };
    }
}

/// Switches the machine off through ACPI (QEMU's exit status is 0). Returns why it could not.
pub fn off() -> &'static str {
    serial::drain();
    let Some(power) = acpi::info().power.as_ref() else {
        return "the machine has no ACPI";
    };
    let Some(sleep_type) = acpi::dsdt::soft_off(acpi::info().dsdt) else {
        return "ACPI does not say how (no \\_S5 in the DSDT)";
    };
    match power.sleep_control {
        // Hardware-reduced ACPI: SLP_TYP is bits 2..5 and SLP_EN bit 5 of one byte.
        Some(register) => register.write_u8(sleep_type << 2 | 1 << 5),
        None => {
            for port in power.pm1_control.into_iter().flatten() {
                let mut port = Port::<u16>::new(port);
                // SAFETY: the FADT names this as the PM1 control register; SLP_EN with the type that \_S5 gives
                // switches the machine off.
                unsafe {
                    let kept = port.read() & !(0b111 << 10 | SLEEP_ENABLE);
                    port.write(kept | u16::from(sleep_type) << 10 | SLEEP_ENABLE);
                }
            }
        }
    }
    time::spin(Duration::from_millis(100));
    "ACPI power-off had no effect"
}

/// Restarts the machine: by the FADT's reset register, else by the keyboard controller, else by a triple fault.
pub fn reboot() -> ! {
    serial::drain();
    if let Some((register, value)) = acpi::info().power.as_ref().and_then(|power| power.reset) {
        register.write_u8(value);
        time::spin(Duration::from_millis(100));
    }
    let mut keyboard = Port::<u8>::new(0x64);
    // SAFETY: 0x64 is the keyboard controller's command port or nobody's; 0xfe pulses the reset line.
    unsafe {
        if keyboard.read() != NO_DEVICE {
            keyboard.write(0xfe);
            time::spin(Duration::from_millis(100));
        }
    }
    triple_fault()
}

fn triple_fault() -> ! {
    use x86_64::instructions::tables::lidt;
    use x86_64::structures::DescriptorTablePointer;
    let empty = DescriptorTablePointer {
        limit: 0,
        base: x86_64::VirtAddr::zero(),
    };
    // SAFETY: with no descriptor for it nor for the double fault, the breakpoint resets the processor, as wanted.
    unsafe {
        lidt(&empty);
        core::arch::asm!("int3");
    }
    halt()
}

/// Stops for ever.
pub fn halt() -> ! {
    loop {
        interrupts::disable();
        x86_64::instructions::hlt();
    }
}

impl Register {
    /// Writes one byte to the register.
    fn write_u8(self, value: u8) {
        match self {
            // SAFETY: the FADT names this I/O port as a byte register of the platform.
            Self::Port(port) => unsafe { Port::<u8>::new(port).write(value) },
            Self::Memory(address) => {
                if let Ok(register) = crate::platform::memory::paging::map_mmio(address, 1) {
                    // SAFETY: the FADT names this address as a byte register of the platform, and it is mapped.
                    unsafe { register.as_ptr().write_volatile(value) };
                }
            }
        }
    }
}
