//! What the machine is and does at this moment, as JSON: the data of the status page.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use spin::Mutex;
use vringlet::QueueReport;
use vringlet::net::MacAddress;

use crate::devices::Device;
use crate::net::stack::{SocketSummary, Stack, Summary};
use crate::platform::memory::{self, PAGE_BYTES};
use crate::platform::{acpi, arch, interrupts, serial, time};
use crate::runtime::task;
use crate::{devices, net};

/// The moments of the boot that were worth noting.
static MARKS: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// A step of the boot and when it was done.
#[derive(Clone, Serialize)]
struct Mark {
    step: &'static str,
    micros: u64,
}

/// Notes that a step of the boot is done.
pub fn mark(step: &'static str) {
    let micros = time::now().as_micros();
    MARKS.lock().push(Mark { step, micros });
}

/// How long the boot took: when its last step was done, in microseconds since the kernel's start.
pub fn boot_micros() -> u64 {
    MARKS.lock().last().map_or(0, |mark| mark.micros)
}

#[derive(Serialize)]
struct Status {
    version: &'static str,
    processor: Processor,
    uptime_micros: u64,
    asleep_micros: u64,
    sleeps: u64,
    boot: Vec<Mark>,
    memory: Memory,
    console: Console,
    devices: Vec<DeviceStatus>,
    interfaces: Vec<Interface>,
    web: Web,
    interrupts: Vec<Interrupt>,
}

/// What became of requests to the web servers.
#[derive(Serialize)]
struct Web {
    requests: u64,
    refused: u64,
    cut: u64,
}

#[derive(Serialize)]
struct Processor {
    name: &'static str,
    count: usize,
}

/// All in KiB.
#[derive(Serialize)]
struct Memory {
    free: usize,
    total: usize,
    heap_used: usize,
    heap_total: usize,
    dma: usize,
}

/// Bytes on the serial port that were not in time.
#[derive(Serialize)]
struct Console {
    lost_input: u64,
    lost_output: u64,
}

#[derive(Serialize)]
struct DeviceStatus {
    name: &'static str,
    place: String,
    interrupts: String,
    #[serde(flatten)]
    driver: DriverStatus,
}

#[derive(Serialize)]
#[serde(untagged)]
enum DriverStatus {
    Driven {
        summary: String,
        offered: Vec<String>,
        accepted: Vec<String>,
        config_changes: u64,
        counters: BTreeMap<&'static str, u64>,
        queues: Vec<Queue>,
    },
    Failed {
        error: &'static str,
    },
}

#[derive(Serialize)]
struct Queue {
    name: &'static str,
    index: u16,
    size: u16,
    in_flight: u16,
    submitted: u64,
    completed: u64,
    kicks: u64,
    kicks_saved: u64,
    interrupts: u64,
    violations: u64,
}

#[derive(Serialize)]
struct Interface {
    name: String,
    link: bool,
    mac: Option<String>,
    mtu: usize,
    addresses: Vec<String>,
    gateways: Vec<String>,
    lease: Option<LeaseStatus>,
    malformed: u64,
    foreign: u64,
    unheard: u64,
    unassembled: u64,
    unsent: u64,
    sockets: Vec<Socket>,
    /// Connections that we ended are only counted: whoever asks often leaves many of them.
    closing: usize,
}

#[derive(Serialize)]
struct LeaseStatus {
    server: Option<String>,
    dns: Vec<String>,
    seconds: Option<u64>,
    renewals: u32,
}

#[derive(Serialize)]
struct Socket {
    protocol: &'static str,
    local: String,
    remote: String,
    state: String,
    dropped: u64,
}

#[derive(Serialize)]
struct Interrupt {
    vector: u8,
    name: &'static str,
    count: u64,
}

/// All of it.
pub fn json() -> String {
    let (asleep, sleeps) = task::idle();
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        processor: Processor {
            name: &arch::cpu::features().name,
            count: acpi::info().processors.max(1),
        },
        uptime_micros: time::now().as_micros(),
        asleep_micros: u64::try_from(asleep.as_micros()).unwrap_or(u64::MAX),
        sleeps,
        boot: MARKS.lock().clone(),
        memory: memory(),
        console: Console {
            lost_input: serial::lost_input(),
            lost_output: serial::lost_output(),
        },
        devices: devices::all().into_iter().map(device).collect(),
        interfaces: net::stacks()
            .into_iter()
            .chain(net::loopback())
            .map(interface)
            .collect(),
        web: web(),
        interrupts: interrupts::vectors()
            .map(|(vector, name, count)| Interrupt {
                vector,
                name,
                count,
            })
            .collect(),
    };
    // Maps have names for keys and no number is a float: nothing here can fail.
    serde_json::to_string(&status).unwrap_or_default()
}

fn web() -> Web {
    let net::http::WebStats {
        requests,
        refused,
        cut,
    } = net::web_stats();
    Web {
        requests,
        refused,
        cut,
    }
}

fn memory() -> Memory {
    let kib = |frames: usize| frames * PAGE_BYTES / 1024;
    let (free, total) = memory::frames::usage();
    let (heap_used, heap_total) = memory::heap::usage();
    let (dma, _) = memory::dma::usage();
    Memory {
        free: kib(free),
        total: kib(total),
        heap_used: heap_used / 1024,
        heap_total: heap_total / 1024,
        dma: kib(dma),
    }
}

fn device(device: &'static Device) -> DeviceStatus {
    let words = |names: vringlet::features::FeatureNames| {
        names.to_string().split(' ').map(String::from).collect()
    };
    DeviceStatus {
        name: &device.name,
        place: device.place.to_string(),
        interrupts: device.mode().to_string(),
        driver: match &device.driver {
            Err(error) => DriverStatus::Failed { error },
            Ok(driver) => {
                let report = driver.report();
                DriverStatus::Driven {
                    summary: driver.summary(),
                    offered: words(report.offered()),
                    accepted: words(report.accepted()),
                    config_changes: report.config_changes,
                    counters: report.counters.iter().copied().collect(),
                    queues: report.queues.iter().map(queue).collect(),
                }
            }
        },
    }
}

fn queue(queue: &QueueReport) -> Queue {
    Queue {
        name: queue.name,
        index: queue.index,
        size: queue.size,
        in_flight: queue.in_flight,
        submitted: queue.stats.submitted,
        completed: queue.stats.completed,
        kicks: queue.stats.kicks,
        kicks_saved: queue.stats.kicks_saved,
        interrupts: queue.stats.interrupts,
        violations: queue.stats.violations,
    }
}

fn interface(stack: &Stack) -> Interface {
    let Summary {
        name,
        link,
        mac,
        mtu,
        addresses,
        lease,
        gateways,
        drops,
    } = stack.summary();
    let (closing, sockets): (Vec<_>, Vec<_>) = stack
        .sockets()
        .into_iter()
        .partition(|socket| socket.closing);
    Interface {
        name,
        link,
        mac: mac.map(|mac| MacAddress(mac.0).to_string()),
        mtu,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        gateways: gateways.iter().map(ToString::to_string).collect(),
        lease: lease.map(|lease| LeaseStatus {
            server: lease.server.map(|server| server.to_string()),
            dns: lease.dns.iter().map(ToString::to_string).collect(),
            seconds: lease.duration.map(|duration| duration.secs()),
            renewals: lease.renewals,
        }),
        malformed: drops.malformed,
        foreign: drops.foreign,
        unheard: drops.unheard,
        unassembled: drops.unassembled,
        unsent: drops.unsent,
        sockets: sockets.into_iter().map(socket).collect(),
        closing: closing.len(),
    }
}

fn socket(socket: SocketSummary) -> Socket {
    let SocketSummary {
        protocol,
        local,
        remote,
        state,
        dropped,
        ..
    } = socket;
    Socket {
        protocol,
        local,
        remote,
        state,
        dropped,
    }
}
