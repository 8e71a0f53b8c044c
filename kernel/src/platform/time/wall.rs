//! What time it is: the real-time clock read once, and the time-stamp counter from then on.

#![allow(unsafe_code)]

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use spin::Mutex;
use x86_64::instructions::port::Port;

use super::now;
use crate::platform::acpi;

/// Ports of the real-time clock: which register, and what is in it (Motorola MC146818).
const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// Registers.
const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const STATUS_A: u8 = 10;
const STATUS_B: u8 = 11;
/// Status A: the other registers are about to change.
const UPDATING: u8 = 0x80;
/// Status B: numbers are binary, not decimal digits; hours go to 24.
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// Hours that go to 12: afternoon.
const AFTERNOON: u8 = 0x80;
/// How often the clock is asked before it is taken for absent. An update takes 2 ms, a read well over 100 ns.
const MAX_TRIES: u32 = 50_000;

/// When the kernel started.
static STARTED: Mutex<Option<DateTime<Utc>>> = Mutex::new(None);

/// Reads the clock, if there is one. It is taken to show UTC, as QEMU's does.
pub(super) fn init() {
    let since_start = TimeDelta::nanoseconds(now().as_nanos() as i64);
    *STARTED.lock() = read().and_then(|time| time.checked_sub_signed(since_start));
}

/// The time; `None` if the machine has no clock.
pub fn wall() -> Option<DateTime<Utc>> {
    let since_start = TimeDelta::nanoseconds(now().as_nanos() as i64);
    let started = *STARTED.lock();
    started?.checked_add_signed(since_start)
}

/// Two readings that are alike: one alone may have been taken while the clock changed.
fn read() -> Option<DateTime<Utc>> {
    let mut last = None;
    for _ in 0..MAX_TRIES {
        match register(STATUS_A) {
            // What is not there reads as ones.
            0xff => return None,
            status if status & UPDATING != 0 => continue,
            _ => {}
        }
        let registers = [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR].map(register);
        let century = acpi::info().century.map(register);
        if last == Some((registers, century)) {
            return decode(registers, century, register(STATUS_B));
        }
        last = Some((registers, century));
    }
    None
}

fn register(number: u8) -> u8 {
    let (mut index, mut data) = (Port::<u8>::new(INDEX), Port::<u8>::new(DATA));
    // SAFETY: the ports are the clock's on every PC, and read as ones where there is none. Nothing else in the kernel uses
    // them.
    unsafe {
        index.write(number);
        data.read()
    }
}

/// The time that the registers (second, minute, hour, day, month, year, and the century where the clock has it) show.
fn decode(registers: [u8; 6], century: Option<u8>, status: u8) -> Option<DateTime<Utc>> {
    let number = |register: u8| match status & BINARY {
        0 => u32::from(register >> 4) * 10 + u32::from(register & 0xf),
        _ => u32::from(register),
    };
    let [second, minute, hour, day, month, year] = registers;
    let hour = match status & HOURS_24 {
        0 => number(hour & !AFTERNOON) % 12 + 12 * u32::from(hour & AFTERNOON != 0),
        _ => number(hour),
    };
    // A register that is not kept may hold anything. Without one, the year is within fifty of 2020, as everybody has it.
    let century = match (century.map(number), number(year)) {
        (Some(century @ 19..=99), _) => century,
        (_, 70..) => 19,
        _ => 20,
    };
    let year = i32::try_from(century * 100 + number(year)).ok()?;
    let date = NaiveDate::from_ymd_opt(year, number(month), number(day))?;
    let time = date.and_hms_opt(hour, number(minute), number(second))?;
    Some(time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_numbers_and_hours_are_read() {
        let time = |text: &str| Some(text.parse::<DateTime<Utc>>().unwrap());
        let afternoon = time("2026-11-26T23:59:07Z");
        let digits = [0x07, 0x59, 0x23, 0x26, 0x11, 0x26];
        assert_eq!(decode(digits, None, HOURS_24), afternoon);
        let binary = [7, 59, 23, 26, 11, 26];
        assert_eq!(decode(binary, None, HOURS_24 | BINARY), afternoon);
        let twelve = [0x07, 0x59, 0x11 | AFTERNOON, 0x26, 0x11, 0x26];
        assert_eq!(decode(twelve, None, 0), afternoon);
        let midnight = [0, 0, 0x12, 0x01, 0x02, 0x28];
        assert_eq!(decode(midnight, None, 0), time("2028-02-01T00:00:00Z"));
        let noon = [0, 0, 0x12 | AFTERNOON, 0x01, 0x02, 0x28];
        assert_eq!(decode(noon, None, 0), time("2028-02-01T12:00:00Z"));
    }

    #[test]
    fn the_century_is_the_clock_s_or_the_nearest() {
        use chrono::Datelike;
        let year = |year, century| {
            let time = decode([0, 0, 0, 0x01, 0x01, year], century, HOURS_24);
            time.map(|time| time.year())
        };
        for (century, years) in [
            (Some(0x19), [1900, 1969, 1970, 1999]),
            (Some(0x20), [2000, 2069, 2070, 2099]),
            (Some(0x21), [2100, 2169, 2170, 2199]),
            (None, [2000, 2069, 1970, 1999]),
            (Some(0), [2000, 2069, 1970, 1999]),
            (Some(0xff), [2000, 2069, 1970, 1999]),
        ] {
            let read = [0x00, 0x69, 0x70, 0x99].map(|last| year(last, century));
            assert_eq!(read, years.map(Some), "{century:?}");
        }
        let binary = decode([0, 0, 0, 1, 1, 70], Some(19), HOURS_24 | BINARY);
        assert_eq!(binary.map(|time| time.year()), Some(1970));
    }

    #[test]
    fn impossible_times_are_refused() {
        assert_eq!(decode([0xff; 6], None, 0xff), None);
        assert_eq!(decode([0, 0, 0, 0x30, 0x02, 0x26], None, HOURS_24), None);
        assert_eq!(decode([0, 0, 0x24, 0x01, 0x02, 0x26], None, HOURS_24), None);
        assert_eq!(decode([0; 6], None, HOURS_24), None);
    }
}
