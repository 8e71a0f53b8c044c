//! The local APIC: receives messages and runs the timer. Driven by model-specific registers where CPUID offers x2APIC,
//! else by memory.
//!
//! (The `x2apic` crate was looked at: its handle may not be shared with interrupt handlers, and it leaves the two local
//! interrupt pins unmasked with vector 0.)

#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use x86_64::registers::model_specific::{ApicBase, ApicBaseFlags, Msr};

use super::{ERROR_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::platform::arch::cpu;
use crate::platform::memory::paging;

// Register offsets of the memory interface; the MSR is 0x800 + offset / 16.
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ERROR_STATUS: u32 = 0x280;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_EXTERNAL: u32 = 0b111 << 8;
const MODE_TSC_DEADLINE: u32 = 0b10 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const TSC_DEADLINE: Msr = Msr::new(0x6e0);

/// 0: no local APIC. 1: x2APIC. Else the address of the registers.
static INTERFACE: AtomicU64 = AtomicU64::new(NO_APIC);
const NO_APIC: u64 = 0;
const X2APIC: u64 = 1;

static LAST_ERROR: AtomicU32 = AtomicU32::new(0);

/// Turns the local APIC on.
pub(super) fn init() {
    if !raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_apic())
    {
        log::warn!("apic: this processor has none; only the 8259s' interrupts arrive");
        return;
    }
    let (frame, flags) = ApicBase::read();
    let mut flags = flags | ApicBaseFlags::LAPIC_ENABLE;
    if cpu::features().x2apic {
        flags |= ApicBaseFlags::X2APIC_ENABLE;
    }
    // SAFETY: the address stays what it was, and CPUID offers the modes.
    unsafe { ApicBase::write(frame, flags) };
    let interface = match flags.contains(ApicBaseFlags::X2APIC_ENABLE) {
        true => X2APIC,
        false => {
            match paging::map_mmio(
                frame.start_address().as_u64(),
                crate::platform::memory::PAGE_BYTES,
            ) {
                Ok(registers) => registers.as_ptr() as u64,
                Err(error) => {
                    log::warn!("apic: {error}");
                    return;
                }
            }
        }
    };
    INTERFACE.store(interface, Ordering::Relaxed);
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, DELIVER_NMI);
    write(ERROR_STATUS, 0);
    write(LVT_ERROR, u32::from(ERROR_VECTOR));
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    // It counts down for now: where there is no other clock, it is what the time-stamp counter is measured against.
    write(LVT_TIMER, u32::from(TIMER_VECTOR));
}

/// Has the timer fire at a value of the time-stamp counter from now on, where it can.
pub(crate) fn use_deadline() {
    if present() && cpu::features().tsc_deadline {
        write(LVT_TIMER, MODE_TSC_DEADLINE | u32::from(TIMER_VECTOR));
        // The change is a store to memory where that is the interface, and a deadline is none: without a fence it could come
        // first, and be forgotten (Intel's manual, volume 3, "TSC-Deadline Mode").
        fence(Ordering::SeqCst);
    }
}

/// Lets the 8259s' interrupts through, for a machine without I/O APIC.
pub(super) fn accept_pic() {
    if present() {
        write(LVT_LINT0, DELIVER_EXTERNAL);
    }
}

/// Whether there is one.
pub fn present() -> bool {
    INTERFACE.load(Ordering::Relaxed) != NO_APIC
}

/// This processor's id, which messages are addressed to.
pub fn id() -> Option<u32> {
    let shift = match INTERFACE.load(Ordering::Relaxed) {
        NO_APIC => return None,
        X2APIC => 0,
        _ => 24,
    };
    Some(read(ID) >> shift)
}

/// How it is driven.
pub fn interface() -> &'static str {
    match INTERFACE.load(Ordering::Relaxed) {
        NO_APIC => "none",
        X2APIC => "x2APIC",
        _ => "xAPIC",
    }
}

/// How the timer is set.
pub fn timer_kind() -> &'static str {
    match (present(), cpu::features().tsc_deadline) {
        (false, _) => "none",
        (true, true) => "TSC deadline",
        (true, false) => "local APIC one-shot",
    }
}

/// Fires the timer when the time-stamp counter reaches the value (0 disarms).
pub(crate) fn set_deadline(tsc: u64) {
    let mut deadline = TSC_DEADLINE;
    // SAFETY: only called where CPUID offers it, with the timer in that mode.
    unsafe { deadline.write(tsc) };
}

/// Fires the timer after so many ticks of its own (0 disarms).
pub(crate) fn set_countdown(ticks: u32) {
    write(TIMER_INITIAL, ticks);
}

/// What the count-down is at.
pub(crate) fn countdown() -> u32 {
    read(TIMER_CURRENT)
}

/// Tells the local APIC that the interrupt in service is done with.
pub(super) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Keeps the error that the local APIC reports, for `irq` to show.
pub(super) fn note_error() {
    write(ERROR_STATUS, 0);
    LAST_ERROR.store(read(ERROR_STATUS), Ordering::Relaxed);
}

/// The last error reported (0: none).
pub fn last_error() -> u32 {
    LAST_ERROR.load(Ordering::Relaxed)
}

fn read(register: u32) -> u32 {
    match INTERFACE.load(Ordering::Relaxed) {
        NO_APIC => 0,
        // SAFETY: x2APIC is on and these are its registers.
        X2APIC => unsafe { Msr::new(0x800 + register / 16).read() as u32 },
        // SAFETY: the registers are mapped, for good, at this address.
        base => unsafe { ((base + u64::from(register)) as *const u32).read_volatile() },
    }
}

fn write(register: u32, value: u32) {
    match INTERFACE.load(Ordering::Relaxed) {
        NO_APIC => {}
        // SAFETY: as in `read`; every value written is one the register takes.
        X2APIC => unsafe { Msr::new(0x800 + register / 16).write(u64::from(value)) },
        // SAFETY: as in `read`.
        base => unsafe { ((base + u64::from(register)) as *mut u32).write_volatile(value) },
    }
}
