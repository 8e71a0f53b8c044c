//! How fast the time-stamp counter and the local APIC's timer run, measured against a clock whose rate is known.

#![allow(unsafe_code)]

use x86_64::instructions::port::Port;

use super::tsc;
use crate::platform::acpi;
use crate::platform::arch::cpu;
use crate::platform::fw_cfg;
use crate::platform::interrupts::lapic;

/// How long a measurement takes: 2 ms hold 7,000 ticks of the power management timer, 2,400 of the 8254.
const WINDOW_MICROS: u64 = 2000;
/// What the local APIC timer of QEMU's own emulation and of KVM runs at.
const QEMU_APIC_HZ: u64 = 1_000_000_000;
const STATED: &str = "stated by CPUID";
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

/// Takes what CPUID states, measures the rest, with the local APIC's timer counting down.
pub(super) fn measure() -> Rates {
    let features = cpu::features();
    // Whoever sets the timer to values of the counter has no use for its own rate.
    if let (Some(tsc_hz), true) = (features.tsc_hz, features.tsc_deadline) {
        return Rates {
            tsc_hz,
            apic_hz: QEMU_APIC_HZ,
            source: STATED,
        };
    }
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
    let tsc_hz = features.tsc_hz.unwrap_or(1_000_000_000);
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
    if !clock.start() {
        return None;
    }
    let first = clock.sample();
    let wanted = clock.hz() * WINDOW_MICROS / 1_000_000;
    let (ticks, last) = loop {
        let sample = clock.sample();
        let ticks = clock.between(first.tick, sample.tick);
        if ticks >= wanted {
            break (ticks, sample);
        }
        if sample.tsc - first.tsc > PATIENCE {
            return None;
        }
    };
    let per_second =
        |counts: u64| (u128::from(counts) * u128::from(clock.hz()) / u128::from(ticks)) as u64;
    let measured = per_second(last.tsc - first.tsc);
    let apic_hz = per_second(u64::from(first.apic.wrapping_sub(last.apic)));
    let (tsc_hz, source) = match cpu::features().tsc_hz {
        Some(stated) => (stated, STATED),
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

    /// Sets the clock going. Returns whether it moves: one that is not there does not.
    fn start(&self) -> bool {
        const READS: usize = 1000;
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
        let first = self.read().tick;
        (0..READS).any(|_| self.read().tick != first)
    }

    /// The clock, the time-stamp counter and the local APIC timer at one moment.
    fn sample(&self) -> Sample {
        // An interruption by the host between the reads would spoil them: the tightest of a few is best.
        let tries = (0..8).map(|_| (self.read(), lapic::countdown()));
        let (reading, apic) = tries
            .min_by_key(|(reading, _)| reading.width)
            .unwrap_or_default();
        Sample {
            tick: reading.tick,
            tsc: reading.before + reading.width / 2,
            apic,
        }
    }

    fn read(&self) -> Reading {
        let before = tsc();
        match *self {
            Self::PowerManagement(port, mask) => {
                // SAFETY: the FADT names this port as the timer; reading it has no effect.
                let count = unsafe { Port::<u32>::new(port).read() };
                Reading::new(u64::from(count & mask), before)
            }
            Self::Pit => {
                // SAFETY: latches channel 2's count.
                unsafe { Port::<u8>::new(0x43).write(0b1000_0000) };
                let latched = Reading::new(0, before);
                let mut channel = Port::<u8>::new(0x42);
                // SAFETY: reads the two bytes of the count latched.
                let count = u16::from_le_bytes(unsafe { [channel.read(), channel.read()] });
                Reading {
                    tick: u64::from(u16::MAX - count),
                    ..latched
                }
            }
            Self::LocalApic => Reading::new(u64::from(u32::MAX - lapic::countdown()), before),
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

/// What a clock showed, between two values of the time-stamp counter.
#[derive(Clone, Copy, Default)]
struct Reading {
    tick: u64,
    before: u64,
    width: u64,
}

impl Reading {
    /// A reading that began when the time-stamp counter was at `before` and ends now.
    fn new(tick: u64, before: u64) -> Self {
        let width = tsc().wrapping_sub(before);
        Self {
            tick,
            before,
            width,
        }
    }
}

/// Three clocks at one moment.
struct Sample {
    tick: u64,
    tsc: u64,
    apic: u32,
}
