//! How fast the time-stamp counter and the local APIC's timer run, measured against a clock whose rate is known.

#![allow(unsafe_code)]

use x86_64::instructions::port::Port;

use super::tsc;
use crate::acpi;
use crate::arch::cpu;
use crate::fw_cfg;
use crate::interrupts::lapic;

/// How long a measurement takes: 2 ms hold 7,000 ticks of the power management timer, 2,400 of the 8254.
const WINDOW_MICROS: u64 = 2000;
/// What the local APIC timer of QEMU's own emulation and of KVM runs at.
const QEMU_APIC_HZ: u64 = 1_000_000_000;
/// A clock that has not moved after so many counts (seconds on any machine) is broken.
const PATIENCE: u64 = 1 << 34;

/// The rates, and what they were measured against.
pub(super) struct Rates {
    pub(super) tsc_hz: u64,
    pub(super) apic_hz: u64,
    pub(super) source: &'static str,
}

/// A clock to measure against.
enum Clock {
    /// ACPI's power management timer: port and counter mask.
    PowerManagement(u16, u32),
    /// Channel 2 of the 8254.
    Pit,
    /// The local APIC timer of an emulated machine.
    LocalApic,
}

/// Takes what CPUID states, measures the rest.
pub(super) fn measure() -> Rates {
    lapic::set_countdown(u32::MAX);
    let clocks = [power_management(), pit(), local_apic()];
    for clock in clocks.into_iter().flatten() {
        if let Some(rates) = against(&clock) {
            lapic::set_countdown(0);
            return rates;
        }
    }
    lapic::set_countdown(0);
    // Nothing to measure with: better a clock that may run fast or slow than none.
    let tsc_hz = cpu::features().tsc_hz.unwrap_or(1_000_000_000);
    log::warn!("time: no clock to calibrate with");
    Rates {
        tsc_hz,
        apic_hz: QEMU_APIC_HZ,
        source: "guessed",
    }
}

fn power_management() -> Option<Clock> {
    let (port, is_32_bit) = acpi::info().pm_timer?;
    Some(Clock::PowerManagement(
        port,
        if is_32_bit { u32::MAX } else { 0xff_ffff },
    ))
}

fn pit() -> Option<Clock> {
    Some(Clock::Pit)
}

fn local_apic() -> Option<Clock> {
    (lapic::present() && fw_cfg::present()).then_some(Clock::LocalApic)
}

fn against(clock: &Clock) -> Option<Rates> {
    clock.start();
    let (first_tick, first_tsc, first_apic) = clock.sample()?;
    let wanted = clock.hz() * WINDOW_MICROS / 1_000_000;
    let last_tsc = first_tsc + PATIENCE;
    let (ticks, last) = loop {
        let sample = clock.sample()?;
        let ticks = clock.between(first_tick, sample.0);
        if ticks >= wanted {
            break (ticks, sample);
        }
        if sample.1 > last_tsc {
            return None;
        }
    };
    let per_second =
        |counts: u64| (u128::from(counts) * u128::from(clock.hz()) / u128::from(ticks)) as u64;
    let measured = per_second(last.1 - first_tsc);
    let apic_hz = per_second(u64::from(first_apic.wrapping_sub(last.2)));
    let (tsc_hz, source) = match cpu::features().tsc_hz {
        Some(stated) => (stated, "stated by CPUID"),
        None => (measured, clock.name()),
    };
    Some(Rates {
        tsc_hz,
        apic_hz,
        source,
    })
}

impl Clock {
    fn name(&self) -> &'static str {
        match self {
            Self::PowerManagement(..) => "by the ACPI timer",
            Self::Pit => "by the 8254",
            Self::LocalApic => "by QEMU's local APIC timer",
        }
    }

    fn hz(&self) -> u64 {
        match self {
            Self::PowerManagement(..) => 3_579_545,
            Self::Pit => 1_193_182,
            Self::LocalApic => QEMU_APIC_HZ,
        }
    }

    fn start(&self) {
        if let Self::Pit = self {
            // SAFETY: the 8254's ports on every PC, or nobody's. Channel 2, both bytes, mode 0, binary: counts down
            // from 0xffff; port 0x61 opens its gate and keeps the speaker off.
            unsafe {
                let mut gate = Port::<u8>::new(0x61);
                let kept = gate.read();
                gate.write(kept & !0b10 | 1);
                Port::<u8>::new(0x43).write(0b1011_0000);
                Port::<u8>::new(0x42).write(0xff);
                Port::<u8>::new(0x42).write(0xff);
            }
        }
    }

    /// The clock, the time-stamp counter and the local APIC timer at one moment. `None` if the clock is not there.
    fn sample(&self) -> Option<(u64, u64, u32)> {
        // An interruption by the host between the reads would spoil them: take the tightest of a few.
        let mut best: Option<(u64, (u64, u64, u32))> = None;
        for _ in 0..4 {
            let before = tsc();
            let tick = self.read()?;
            let after = tsc();
            let width = after.wrapping_sub(before);
            if best.is_none_or(|(narrowest, _)| width < narrowest) {
                best = Some((width, (tick, before + width / 2, lapic::countdown())));
            }
        }
        best.map(|(_, sample)| sample)
    }

    fn read(&self) -> Option<u64> {
        match *self {
            Self::PowerManagement(port, mask) => {
                // SAFETY: the FADT names this port as the timer; reading it has no effect.
                let count = unsafe { Port::<u32>::new(port).read() };
                Some(u64::from(count & mask))
            }
            Self::Pit => {
                // SAFETY: latches channel 2's count and reads its two bytes.
                let count = unsafe {
                    Port::<u8>::new(0x43).write(0b1000_0000);
                    let mut channel = Port::<u8>::new(0x42);
                    u16::from_le_bytes([channel.read(), channel.read()])
                };
                // Absent, it reads all ones for ever.
                (count != u16::MAX).then(|| u64::from(u16::MAX - count))
            }
            Self::LocalApic => Some(u64::from(u32::MAX - lapic::countdown())),
        }
    }

    fn between(&self, first: u64, last: u64) -> u64 {
        let difference = last.wrapping_sub(first);
        match self {
            Self::PowerManagement(_, mask) => difference & u64::from(*mask),
            Self::Pit => difference & u64::from(u16::MAX),
            Self::LocalApic => difference,
        }
    }
}
