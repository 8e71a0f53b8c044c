//! What the dashboard tells, at one moment: the same sources as the status page's.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use chrono::{DateTime, Datelike, Timelike, Utc};
use vringlet::DeviceId;
use vringlet::Report;

use super::history::History;
use crate::apps::status;
use crate::devices::Device;
use crate::net::stack::Stack;
use crate::platform::journal::{self, Line};
use crate::platform::memory::{self, PAGE_BYTES};
use crate::platform::{acpi, arch, time};
use crate::{devices, net};

/// Lines of the log that a page could show.
const LOG_LINES: usize = 64;

/// The heap's figure is replaced when it is off by as many bytes.
const HEAP_STEP: usize = 4096;

/// Everything that is shown.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Whole minutes since the kernel started. Seconds would keep an idle screen busy.
    pub minutes: u64,
    /// Day and time, to the minute, if the machine has a clock.
    pub clock: Option<String>,
    /// What the processor calls itself, and how many there are.
    pub processor: (String, usize),
    /// How long the boot took, in microseconds.
    pub boot_micros: u64,
    /// Bytes of memory used, and all of them.
    pub memory: [u64; 2],
    /// Bytes of the heap used, and all of them.
    pub heap: [u64; 2],
    /// All devices.
    pub devices: Vec<DeviceFacts>,
    /// The network interfaces but `lo`.
    pub interfaces: Vec<InterfaceFacts>,
    /// Bytes per second read from and written to disks.
    pub disk: History,
    /// Bytes per second received from and sent to networks.
    pub network: History,
    /// The last lines of the log.
    pub log: Vec<Line>,
}

/// A device.
#[derive(Clone, Debug)]
pub(super) struct DeviceFacts {
    /// Such as `blk0`.
    pub name: String,
    /// What it is.
    pub summary: String,
    /// How it is heard.
    pub mode: String,
    /// What it did. A graphics adapter's work is to show this, so its counters would never rest.
    pub work: Option<Work>,
    /// It has no driver, or not one that works.
    pub failed: bool,
}

/// What a device did since it was started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Requests completed.
    pub requests: u64,
    /// Times that the guest had to tell the device.
    pub kicks: u64,
    /// Times that the device told the guest.
    pub interrupts: u64,
    /// Bytes from the device, and to it, where it counts them.
    pub bytes: Option<[u64; 2]>,
}

/// A network interface.
#[derive(Clone, Debug)]
pub(super) struct InterfaceFacts {
    /// Such as `net0`.
    pub name: String,
    /// Whether the link is up.
    pub link: bool,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// The default routers.
    pub gateways: Vec<String>,
}

/// Gathers the facts, and remembers what it takes for rates.
pub(super) struct Observer {
    disk: History,
    network: History,
    last: u64,
    heap_used: usize,
}

impl Observer {
    /// Has seen nothing yet.
    pub(super) const fn new() -> Self {
        Self {
            disk: History::new(),
            network: History::new(),
            last: 0,
            heap_used: 0,
        }
    }

    /// Looks. What comes sooner after the last look than `period` (in microseconds) is no new second for the rates.
    pub(super) fn look(&mut self, period: u64) -> Facts {
        let now = time::now().as_micros();
        let devices = devices::all();
        let reports: Vec<_> = devices.iter().map(|device| report(device)).collect();
        let elapsed = now.saturating_sub(self.last);
        if elapsed >= period {
            self.last = now;
            self.disk
                .note(total(&devices, &reports, DeviceId::BLK), elapsed);
            self.network
                .note(total(&devices, &reports, DeviceId::NET), elapsed);
        }
        let bytes = |frames: usize| frames as u64 * PAGE_BYTES as u64;
        let (free, total) = memory::frames::usage();
        let (heap_used, heap_total) = memory::heap::usage();
        self.heap_used = steady(self.heap_used, heap_used);
        Facts {
            minutes: now / 60_000_000,
            clock: time::wall().map(|now| clock(&now)),
            processor: (
                arch::cpu::features().name.to_string(),
                acpi::info().processors.max(1),
            ),
            boot_micros: status::boot_micros(),
            memory: [bytes(total - free.min(total)), bytes(total)],
            heap: [self.heap_used as u64, heap_total as u64],
            devices: devices.iter().zip(&reports).map(device).collect(),
            interfaces: net::stacks().into_iter().map(interface).collect(),
            disk: self.disk.clone(),
            network: self.network.clone(),
            log: journal::last(LOG_LINES),
        }
    }
}

/// What is shown of a figure that was `shown` and is `now`. What runs takes some bytes of the heap and gives them back: on the
/// edge between two KiB the exact figure would change all the time, and keep an idle screen busy.
fn steady(shown: usize, now: usize) -> usize {
    match shown.abs_diff(now) < HEAP_STEP {
        true => shown,
        false => now,
    }
}

fn clock(now: &DateTime<Utc>) -> String {
    let (year, month, day) = (now.year(), now.month(), now.day());
    let (hour, minute) = (now.hour(), now.minute());
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

fn report(device: &Device) -> Option<Report> {
    device.driver.as_ref().ok().map(|driver| driver.report())
}

/// Bytes from and to all devices of a type.
fn total(devices: &[&Device], reports: &[Option<Report>], id: DeviceId) -> [u64; 2] {
    let of_type = devices.iter().zip(reports);
    of_type
        .filter(|(device, _)| device.place.id == id)
        .filter_map(|(_, report)| bytes(report.as_ref()?))
        .fold([0, 0], |[all_in, all_out], [more_in, more_out]| {
            [all_in + more_in, all_out + more_out]
        })
}

/// Bytes from the device and to it.
fn bytes(report: &Report) -> Option<[u64; 2]> {
    let counter = |names: [&str; 2]| {
        let mut counters = report.counters.iter();
        let counter = counters.find(|(name, _)| names.contains(name));
        counter.map(|(_, value)| *value)
    };
    Some([
        counter(["bytes_read", "rx_bytes"])?,
        counter(["bytes_written", "tx_bytes"])?,
    ])
}

fn device((device, report): (&&'static Device, &Option<Report>)) -> DeviceFacts {
    let work = report.as_ref().map(|report| {
        let mut work = Work {
            requests: 0,
            kicks: 0,
            interrupts: 0,
            bytes: bytes(report),
        };
        for queue in &report.queues {
            work.requests += queue.stats.completed;
            work.kicks += queue.stats.kicks;
            work.interrupts += queue.stats.interrupts;
        }
        work
    });
    DeviceFacts {
        name: device.name.clone(),
        summary: match &device.driver {
            Ok(driver) => driver.summary(),
            Err(reason) => reason.clone(),
        },
        mode: device.mode().to_string(),
        work: work.filter(|_| device.place.id != DeviceId::GPU),
        failed: device.driver.is_err(),
    }
}

fn interface(stack: &Stack) -> InterfaceFacts {
    let summary = stack.summary();
    InterfaceFacts {
        name: summary.name,
        link: summary.link,
        addresses: summary.addresses.iter().map(ToString::to_string).collect(),
        gateways: summary.gateways.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bytes_of_the_heap_change_nothing_on_the_screen() {
        let shown = steady(0, 228_351);
        assert_eq!(shown, 228_351);
        for now in [228_352, 228_351 - 4095, 228_351 + 4095] {
            assert_eq!(steady(shown, now), shown);
        }
        for now in [0, 228_351 - 4096, 228_351 + 4096] {
            assert_eq!(steady(shown, now), now);
        }
    }
}
